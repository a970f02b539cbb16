//! From the master's status messages to lines for people. Pure: no clock, no terminal.

use crate::display::{between, count, duration, one_line, plural, shorten};
use firesteel_proto::v1::{
    ApplicationState, ApplicationStatus, ExecutorState, JobProgress, StageProgress, TaskState,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// Something that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub text: String,
    /// Worth keeping on a terminal, too, where the current state is shown by [`live`].
    pub keep: bool,
}

/// Remembers what has been said, so that each change is told once.
#[derive(Debug, Default)]
pub struct Tracker {
    waiting: String,
    running_executors: u64,
    ended_executors: Vec<u32>,
    /// The driver's process, as last told; only a supervised one gets a successor.
    driver: String,
    /// By job id: its state and restarts as last told.
    jobs: BTreeMap<u32, (TaskState, u32)>,
}

impl Tracker {
    /// What is new in `status`.
    pub fn update(&mut self, status: &ApplicationStatus) -> Vec<Line> {
        let mut lines = Vec::new();
        if status.state() == ApplicationState::Waiting {
            let why = waiting(status);
            if !status.message.is_empty() && why != self.waiting {
                lines.push(Line { text: why.clone(), keep: false });
                self.waiting = why;
            }
        }
        if !status.driver.is_empty() && status.driver != self.driver {
            let before = std::mem::replace(&mut self.driver, status.driver.clone());
            if !before.is_empty() {
                let (before, now) = (one_line(&before), one_line(&status.driver));
                lines.push(Line { text: format!("{before} died; started again as {now}"), keep: true });
                // The new one begins at the first statement.
                self.jobs.clear();
            }
        }
        self.executors(status, &mut lines);
        let jobs = status.progress.as_ref().map_or(&[][..], |progress| &progress.jobs);
        for (index, job) in jobs.iter().enumerate() {
            self.job(index + 1, jobs.len(), job, &mut lines);
        }
        lines
    }

    fn executors(&mut self, status: &ApplicationStatus, lines: &mut Vec<Line>) {
        let alive = status.state() == ApplicationState::Running;
        let mut running = 0;
        let mut launching = 0;
        for executor in &status.executors {
            match executor.state() {
                ExecutorState::Running => running += 1,
                ExecutorState::Launching => launching += 1,
                state @ (ExecutorState::Failed | ExecutorState::Lost)
                    if alive && !self.ended_executors.contains(&executor.number) =>
                {
                    self.ended_executors.push(executor.number);
                    let what = if state == ExecutorState::Lost { "was lost" } else { "failed" };
                    let host = one_line(&executor.host);
                    let why = one_line(&executor.message);
                    let separator = if why.is_empty() { "" } else { ": " };
                    let text = format!("executor {} on {host} {what}{separator}{why}", executor.number);
                    lines.push(Line { text, keep: true });
                }
                _ => {}
            }
        }
        // While some are still starting the number changes again in a moment.
        if alive && running > 0 && launching == 0 && running != self.running_executors {
            self.running_executors = running;
            lines.push(Line { text: format!("running on {}", plural(running, "executor")), keep: false });
        }
    }

    fn job(&mut self, index: usize, total: usize, job: &JobProgress, lines: &mut Vec<Line>) {
        let before = self.jobs.insert(job.id, (job.state(), job.restarts));
        let (state_before, restarts_before) = before.unwrap_or((TaskState::Unspecified, 0));
        let name = format!("statement {index}/{total}");
        if job.restarts > restarts_before {
            lines.push(Line { text: format!("{name} started again after an executor was lost"), keep: true });
        }
        if job.state() == state_before {
            return;
        }
        match job.state() {
            TaskState::Succeeded if total > 1 => {
                let time = between(job.started_ms, job.ended_ms);
                // Most statements without rows are no queries.
                let text = match job.rows {
                    0 => format!("{name}: {time}"),
                    rows => format!("{name}: {} in {time}", plural(rows, "row")),
                };
                lines.push(Line { text, keep: false });
            }
            // The application's own error says it in full; this names the statement.
            TaskState::Failed => {
                let text = format!("{name} failed: {}", shorten(&one_line(&job.error), 200));
                lines.push(Line { text, keep: false });
            }
            _ => {}
        }
    }
}

/// The state of affairs in one line of at most `width` characters, for a terminal.
pub fn live(status: &ApplicationStatus, elapsed: Duration, width: usize) -> String {
    let mut parts = Vec::new();
    match status.state() {
        ApplicationState::Waiting => {
            parts.push(waiting(status));
        }
        ApplicationState::Running => {
            let jobs = status.progress.as_ref().map_or(&[][..], |progress| &progress.jobs);
            match jobs
                .iter()
                .enumerate()
                .find(|(_, job)| job.ended_ms == 0 && job.state() == TaskState::Running)
            {
                Some((index, job)) => running_job(index, jobs.len(), job, &mut parts),
                None => parts.push("running".to_owned()),
            }
            let (ready, all) = executor_counts(status);
            parts.push(if ready == all {
                plural(ready, "executor")
            } else {
                format!("{ready} of {} up", plural(all, "executor"))
            });
        }
        state => parts.push(state_name(state).to_lowercase()),
    }
    // The time must stay visible when the rest is too long.
    let time = duration(elapsed);
    let room = width.saturating_sub(time.chars().count() + 2);
    format!("{}  {time}", shorten(&parts.join(" · "), room))
}

/// The master's reason says itself that it is one for waiting, as a rule.
fn waiting(status: &ApplicationStatus) -> String {
    let why = one_line(&status.message);
    match why.get(..7) {
        _ if why.is_empty() => "waiting".to_owned(),
        Some(word) if word.eq_ignore_ascii_case("waiting") => why,
        _ => format!("waiting: {why}"),
    }
}

fn running_job(index: usize, total: usize, job: &JobProgress, parts: &mut Vec<String>) {
    parts.push(format!("statement {}/{total}", index + 1));
    if let Some(stage) = current_stage(job) {
        let title = shorten(&one_line(&stage.description), 30);
        parts.push(if title.is_empty() {
            format!("stage {}", stage.id)
        } else {
            format!("stage {} {title}", stage.id)
        });
    }
    let tasks = || job.stages.iter().flat_map(|stage| &stage.tasks);
    let all = tasks().count();
    if all > 0 {
        let done = tasks().filter(|task| task.state() == TaskState::Succeeded).count();
        parts.push(format!("tasks {done}/{all}"));
    }
    if job.rows > 0 {
        parts.push(format!("{} rows", count(job.rows)));
    }
}

/// The first stage with a running task.
fn current_stage(job: &JobProgress) -> Option<&StageProgress> {
    job.stages.iter().find(|stage| stage.tasks.iter().any(|task| task.state() == TaskState::Running))
}

/// Executors that run, and those that are meant to.
pub fn executor_counts(status: &ApplicationStatus) -> (u64, u64) {
    let count = |state| status.executors.iter().filter(|e| e.state() == state).count() as u64;
    let running = count(ExecutorState::Running);
    (running, running + count(ExecutorState::Launching))
}

/// `WAITING`, `RUNNING`, …
pub fn state_name(state: ApplicationState) -> &'static str {
    firesteel_common::ApplicationState::try_from(state).map_or("UNKNOWN", |state| state.as_str())
}

pub fn is_final(status: &ApplicationStatus) -> bool {
    firesteel_common::ApplicationState::try_from(status.state()).is_ok_and(|state| state.is_final())
}

#[cfg(test)]
mod tests {
    use super::*;
    use firesteel_proto::v1::{ExecutorInfo, Progress, TaskProgress};

    fn status(state: ApplicationState, message: &str) -> ApplicationStatus {
        ApplicationStatus { state: state.into(), message: message.into(), ..Default::default() }
    }

    fn executor(number: u32, state: ExecutorState) -> ExecutorInfo {
        ExecutorInfo {
            number,
            state: state.into(),
            host: "h".into(),
            message: "gone".into(),
            ..Default::default()
        }
    }

    fn job(id: u32, state: TaskState) -> JobProgress {
        JobProgress { id, state: state.into(), started_ms: 1000, ..Default::default() }
    }

    fn texts(lines: Vec<Line>) -> Vec<String> {
        lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn the_reason_for_waiting_is_told_once_per_change() {
        let mut tracker = Tracker::default();
        assert!(tracker.update(&status(ApplicationState::Waiting, "")).is_empty());
        let why = status(ApplicationState::Waiting, "needs 4 cores;\nnone is free");
        assert_eq!(texts(tracker.update(&why)), ["waiting: needs 4 cores; none is free"]);
        assert!(tracker.update(&why).is_empty());
        let other = status(ApplicationState::Waiting, "Waiting, 2nd in queue.");
        assert_eq!(texts(tracker.update(&other)), ["Waiting, 2nd in queue."]);
    }

    #[test]
    fn executors_are_counted_when_none_is_starting() {
        let mut tracker = Tracker::default();
        let mut s = status(ApplicationState::Running, "");
        s.executors = vec![executor(0, ExecutorState::Running), executor(1, ExecutorState::Launching)];
        assert!(tracker.update(&s).is_empty());
        s.executors[1] = executor(1, ExecutorState::Running);
        assert_eq!(texts(tracker.update(&s)), ["running on 2 executors"]);
        s.executors[1] = executor(1, ExecutorState::Lost);
        assert_eq!(texts(tracker.update(&s)), ["executor 1 on h was lost: gone", "running on 1 executor"]);
        assert!(tracker.update(&s).is_empty());
    }

    #[test]
    fn executors_that_end_with_the_application_are_no_news() {
        let mut s = status(ApplicationState::Finished, "");
        s.executors = vec![executor(0, ExecutorState::Failed)];
        assert!(Tracker::default().update(&s).is_empty());
    }

    #[test]
    fn statements_are_told_as_they_end() {
        let mut tracker = Tracker::default();
        let mut s = status(ApplicationState::Running, "");
        s.progress =
            Some(Progress { jobs: vec![job(1, TaskState::Running), job(2, TaskState::Pending)], at_ms: 0 });
        assert!(tracker.update(&s).is_empty());
        let done = JobProgress { ended_ms: 1300, rows: 4, ..job(1, TaskState::Succeeded) };
        let failed = JobProgress { error: "no such table".into(), restarts: 1, ..job(2, TaskState::Failed) };
        s.progress = Some(Progress { jobs: vec![done, failed], at_ms: 0 });
        assert_eq!(
            texts(tracker.update(&s)),
            [
                "statement 1/2: 4 rows in 300 ms",
                "statement 2/2 started again after an executor was lost",
                "statement 2/2 failed: no such table"
            ]
        );
        assert!(tracker.update(&s).is_empty());
    }

    #[test]
    fn a_driver_that_was_started_again_is_told_once() {
        let mut tracker = Tracker::default();
        let mut s = status(ApplicationState::Running, "");
        let mut told = |driver: &str| {
            s.driver = driver.into();
            texts(tracker.update(&s))
        };
        assert!(told("").is_empty() && told("driver-0").is_empty());
        // Between two attempts there is none.
        assert!(told("").is_empty());
        assert_eq!(told("driver-1"), ["driver-0 died; started again as driver-1"]);
        assert!(told("driver-1").is_empty());
    }

    #[test]
    fn the_live_line_shows_where_it_is() {
        let mut s = status(ApplicationState::Running, "");
        s.executors = vec![executor(0, ExecutorState::Running), executor(1, ExecutorState::Launching)];
        let task = |state: TaskState| TaskProgress { state: state.into(), ..Default::default() };
        let mut running = JobProgress { rows: 1234, ..job(2, TaskState::Running) };
        running.stages = vec![
            StageProgress {
                id: 1,
                description: "scan".into(),
                tasks: vec![task(TaskState::Succeeded)],
                ..Default::default()
            },
            StageProgress {
                id: 2,
                description: "join\x1b[m".into(),
                tasks: vec![task(TaskState::Running)],
                ..Default::default()
            },
        ];
        let done = JobProgress { ended_ms: 5, ..job(1, TaskState::Succeeded) };
        s.progress = Some(Progress { jobs: vec![done, running], at_ms: 0 });
        let line = live(&s, Duration::from_millis(3400), 200);
        assert_eq!(
            line,
            "statement 2/2 · stage 2 join [m · tasks 1/2 · 1,234 rows · 1 of 2 executors up  3.4 s"
        );
    }

    #[test]
    fn the_live_line_keeps_to_the_width_and_shows_the_time() {
        let s = status(ApplicationState::Waiting, &"why ".repeat(100));
        let line = live(&s, Duration::from_secs(3), 40);
        assert_eq!(line.chars().count(), 40);
        assert!(line.starts_with("waiting: why") && line.ends_with("…  3.0 s"), "{line}");
    }
}
