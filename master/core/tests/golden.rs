//! Stories of a cluster as text: commands in, decisions and states out.
//!
//! A file in `golden/` is a row of blocks: command lines, `---`, and what they print, up to an empty line.
//! `UPDATE_GOLDEN=1 cargo test -p firesteel-master-core --test golden` rewrites the outputs. Commands:
//!
//! ```text
//! register W CORES MEMORY [inc=N]         dead W | alive W | left W
//! submit NAME client|cluster [driver=CORES/MEMORY] [executor=CORES/MEMORY] [n=COUNT | total=CORES] [supervise]
//!        [key=KEY] [ticket=INDEX]
//! schedule                                until it has nothing more to say
//! started A/P [ADDRESS]                   ended A/P exit N | signal N | failure REASON
//! finish A ok | failed MESSAGE            kill A BY
//! waiting | state | desired W             pass MS
//! member ID ADDRESS [level=N] [version=V] [non-voter]
//! voter ID | non-voter ID | remove ID     level N | members
//! ```
//!
//! Applications are written `a1`, `a2`, … in the order of submission.

mod story;

use std::path::PathBuf;

fn run(name: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
    let text = std::fs::read_to_string(&path).expect("the story is readable");
    let told = story::tell(&text);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &told).expect("the story is writable");
    }
    let expected = if std::env::var_os("UPDATE_GOLDEN").is_some() { told.clone() } else { text };
    for (n, (old, new)) in expected.lines().zip(told.lines()).enumerate() {
        assert_eq!(old, new, "{name}.txt line {}", n + 1);
    }
    assert_eq!(expected.lines().count(), told.lines().count(), "{name}.txt ends elsewhere");
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
    queue,
    placement,
    loss_and_recovery,
    kill,
    fifo_blocking,
    replacement,
    too_large,
    rejections,
    supervised,
    supervised_queue,
    exactly_once,
    members,
);
