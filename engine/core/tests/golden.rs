//! Stories of queries as text: what happens, and what the scheduler wants done about it.
//!
//! A file in `golden/` is a row of blocks: command lines, `---`, and what they print, up to an empty line.
//! `UPDATE_GOLDEN=1 cargo test -p firesteel-engine-core --test golden` rewrites the outputs. Commands:
//!
//! ```text
//! policy [KEY=VALUE…]                begins anew; times in ms; none for no exclusion or speculation
//! up E on W SLOTS                    lost E REASON | worker-lost W REASON
//! job N [pool=NAME] STAGE… -> RESULT…
//!     STAGE is ID:TASKS[!][<INPUT,…]; ! is not repeatable; INPUT is a stage with * broadcast, + coalesce, ~ streamed
//! ok ATTEMPT… [bytes=N] [inline] [at=W]    success; `0.*` is all that run of stage 0 now
//! all STAGE                          success of what runs of a stage, until nothing does
//! fail | oom | fatal | gone | cancelled ATTEMPT [MESSAGE]
//! fetch ATTEMPT lost ATTEMPT         driver-fetch ATTEMPT
//! delivered TASK all | some          cancel JOB REASON | release JOB
//! pass MS                            then tick
//! wake | state | counters | outputs STAGE | attempts TASK
//! ```
//!
//! An attempt is written `stage.task#attempt`, with `jN:` before it if it is not of job 1.

mod story;

use std::path::PathBuf;

fn run(name: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
    let text = std::fs::read_to_string(&path).expect("the story is readable");
    let told = story::tell(&text);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &told).expect("the story is writable");
        return;
    }
    for (n, (old, new)) in text.lines().zip(told.lines()).enumerate() {
        assert_eq!(old, new, "{name}.txt line {}", n + 1);
    }
    assert_eq!(text.lines().count(), told.lines().count(), "{name}.txt ends elsewhere");
}

macro_rules! stories {
    ($($name:ident),+ $(,)?) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })+

        #[test]
        fn every_story_file_is_told() {
            let told = [$(stringify!($name)),+];
            let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
            for entry in std::fs::read_dir(dir).expect("golden/ is there") {
                let name = entry.expect("an entry").file_name().into_string().expect("a plain name");
                assert!(told.contains(&name.trim_end_matches(".txt")), "{name} is told by no test");
            }
        }
    };
}

stories!(
    ready_order,
    placement,
    locality,
    locality_wait,
    retries,
    executor_death,
    unreachable,
    worker_death,
    fetch_failure,
    loss_bounds,
    not_repeatable,
    speculation,
    exclusion,
    exclusion_worker,
    gangs,
    fair_pools,
    cancellation,
    late_reports,
    delivery,
    invalid_jobs,
);
