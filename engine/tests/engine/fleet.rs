use firesteel_common::{ExecutorState, Resources};
use firesteel_engine::driver::fleet::{Executor, Fleet, Readiness, STRAGGLER_PATIENCE};
use std::time::{Duration, Instant};

fn executor(number: u32, state: ExecutorState) -> Executor {
    Executor {
        number,
        state,
        address: if state == ExecutorState::Running { format!("h:{number}") } else { String::new() },
        worker: "w".into(),
        host: "h".into(),
        resources: Resources::new(1, 1024),
        message: "was killed by signal 9 (SIGKILL)".into(),
    }
}

fn fleet(now: Instant) -> Fleet {
    Fleet::new(now, Duration::from_secs(120))
}

#[test]
fn a_queued_application_waits_without_end() {
    let t = Instant::now();
    let mut f = fleet(t);
    f.update(vec![], 2, "no room".into(), t);
    assert_eq!(f.readiness(t + Duration::from_secs(9999)), Readiness::Wait(None));
    assert_eq!(f.planned(), 2);
}

#[test]
fn stragglers_hold_a_query_back_only_for_a_while() {
    use ExecutorState::{Launching, Running};
    let t = Instant::now();
    let mut f = fleet(t);
    f.update(vec![executor(0, Running), executor(1, Launching)], 2, String::new(), t);
    assert_eq!(f.readiness(t), Readiness::Wait(Some(STRAGGLER_PATIENCE)));
    assert_eq!(f.planned(), 2);
    let late = t + STRAGGLER_PATIENCE;
    assert!(matches!(f.readiness(late), Readiness::Ready(r) if r.len() == 1));
    f.update(vec![executor(0, Running), executor(1, Running)], 2, String::new(), t);
    assert!(matches!(f.readiness(t), Readiness::Ready(r) if r.len() == 2));
}

#[test]
fn losing_the_last_executor_ends_in_a_clear_error_after_the_grace_period() {
    use ExecutorState::{Failed, Running};
    let t = Instant::now();
    let mut f = fleet(t);
    f.update(vec![executor(0, Running)], 1, String::new(), t);
    f.suspect(0, t + Duration::from_secs(10));
    assert_eq!(f.readiness(t + Duration::from_secs(11)), Readiness::Wait(Some(Duration::from_secs(119))));
    f.update(vec![executor(0, Failed)], 1, "1 worker lacks memory".into(), t + Duration::from_secs(12));
    let Readiness::GaveUp(text) = f.readiness(t + Duration::from_secs(130)) else { panic!("must give up") };
    assert!(text.contains("120 s") && text.contains("SIGKILL") && text.contains("lacks memory"), "{text}");
}

#[test]
fn a_replacement_is_used_and_a_suspect_is_not() {
    use ExecutorState::Running;
    let t = Instant::now();
    let mut f = fleet(t);
    f.update(vec![executor(0, Running), executor(1, Running)], 2, String::new(), t);
    f.suspect(1, t);
    f.update(vec![executor(0, Running), executor(1, Running), executor(2, Running)], 2, String::new(), t);
    let Readiness::Ready(ready) = f.readiness(t) else { panic!("ready") };
    assert_eq!(ready.iter().map(|e| e.number).collect::<Vec<_>>(), [0, 2]);
}
