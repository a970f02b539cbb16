//! What the leader does by itself: place what waits, and notice who has gone silent.

use crate::cluster::{Cluster, Timing, now_ms};
use crate::consensus::{ProposeError, Published};
use crate::soft::{DriverSigns, Soft, WorkerSigns};
use firesteel_common::{DeployMode, WorkerStatus};
use firesteel_master_core::{ClusterState, Command, Outcome, schedule, wake_at_ms};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep_until;

/// After a plan of which nothing was accepted (a fault of ours), so that it does not spin.
const PAUSE: Duration = Duration::from_secs(1);
/// While it leads, a leader looks at least so often; one that is late by more has been stopped or starved, and silence that it
/// could not have heard proves nothing.
const LOOK: Duration = Duration::from_secs(1);
const STALL: Duration = Duration::from_secs(2);
/// A follower that has kept up for so long is not replaying its log.
const SETTLED: Duration = Duration::from_secs(60);
/// For so long at most a leader that has been replaced may go on lending leases.
const OVERLAP: Duration = Duration::from_secs(3);

/// Runs until the master stops. Acts only while this master leads.
pub async fn run(cluster: Cluster) {
    let mut published = cluster.published();
    let mut leading_since: Option<Instant> = None;
    let mut seen: Option<Arc<ClusterState>> = None;
    let mut last_look = Instant::now();
    let mut current_since: Option<Instant> = None;
    loop {
        let now: Published = published.borrow_and_update().clone();
        // A state that is still being replayed knows nothing of the newest applications: what it does not name may be needed.
        let current = now.leader || (now.leader_id.is_some() && now.applied == now.committed);
        let since = current.then(|| *current_since.get_or_insert_with(Instant::now));
        current_since = since;
        let settled = now.leader || since.is_some_and(|since| since.elapsed() >= SETTLED);
        if settled && seen.as_ref().is_none_or(|old| !Arc::ptr_eq(old, &now.state)) {
            tidy(&cluster, seen.as_deref(), &now.state).await;
            seen = Some(now.state.clone());
        }
        let stalled = last_look.elapsed() > LOOK + STALL;
        last_look = Instant::now();
        let mut wake = None;
        if now.leader {
            if stalled && leading_since.take().is_some() {
                tracing::warn!("this master was held up: the workers' silence meanwhile does not count");
            }
            let since = *leading_since.get_or_insert_with(|| {
                tracing::info!(epoch = now.epoch.0, "this master leads");
                Instant::now()
            });
            let clock = Clock { now: Instant::now(), leading_since: since, now_ms: now_ms() };
            let (mut plan, next) = overdue(&now.state, cluster.soft(), cluster.timing(), clock);
            for command in &plan {
                log_overdue(command);
            }
            plan.extend(schedule(&now.state, clock.now_ms));
            if !plan.is_empty() {
                if propose(&cluster, plan).await {
                    continue;
                }
                wake = Some(Instant::now() + PAUSE);
            } else {
                let retry = wake_at_ms(&now.state, clock.now_ms)
                    .map(|at| clock.now + Duration::from_millis(at.saturating_sub(clock.now_ms)));
                wake = [next, retry].into_iter().flatten().min();
            }
        } else {
            leading_since = None;
        }
        tokio::select! {
            () = cluster.stopping().cancelled() => return,
            changed = published.changed() => if changed.is_err() { return },
            () = cluster.soft().deadline_changed() => {}
            () = async {
                match wake {
                    Some(at) => sleep_until(at.min(last_look + LOOK).into()).await,
                    None if now.leader => sleep_until((last_look + LOOK).into()).await,
                    None => std::future::pending().await,
                }
            } => {}
        }
    }
}

/// Whether the state has moved on, so that a new look makes sense at once.
async fn propose(cluster: &Cluster, plan: Vec<Command>) -> bool {
    match cluster.propose(plan).await {
        Ok(outcomes) => {
            let refused = outcomes.iter().filter_map(|(_, outcome)| match outcome {
                Outcome::Rejected(why) => Some(why),
                _ => None,
            });
            let mut count = 0;
            for why in refused {
                // Normal when something else was committed in between.
                tracing::debug!(%why, "a decision came too late");
                count += 1;
            }
            count < outcomes.len()
        }
        Err(ProposeError::NotLeader { .. } | ProposeError::LeadershipLost) => false,
        Err(error) => {
            tracing::warn!(%error, "cannot propose");
            false
        }
    }
}

/// The moment at which things are judged.
#[derive(Debug, Clone, Copy)]
struct Clock {
    now: Instant,
    /// Nobody can have been heard of before this.
    leading_since: Instant,
    now_ms: u64,
}

/// Who has been silent too long, as commands; and when to look again if nothing else happens.
fn overdue(
    state: &ClusterState,
    soft: &Soft,
    timing: Timing,
    clock: Clock,
) -> (Vec<Command>, Option<Instant>) {
    let mut commands = Vec::new();
    let mut next: Option<Instant> = None;
    let mut due = |deadline: Instant| {
        let late = deadline <= clock.now;
        if !late {
            next = Some(next.map_or(deadline, |n| n.min(deadline)));
        }
        late
    };
    for worker in state.alive_workers() {
        let signs = soft.worker(&worker.id).filter(|s| s.incarnation == worker.incarnation);
        let heard = signs.map_or(clock.leading_since, |WorkerSigns { last_heartbeat, .. }| last_heartbeat);
        // What an earlier leader has lent must have run out, too.
        let patience = match heard <= clock.leading_since {
            true => timing.worker_timeout.max(timing.lease() + OVERLAP),
            false => timing.worker_timeout,
        };
        if due(heard.max(clock.leading_since) + patience) {
            commands.push(Command::SetWorkerStatus {
                id: worker.id.clone(),
                incarnation: worker.incarnation,
                status: WorkerStatus::Dead,
                at_ms: clock.now_ms,
            });
        }
    }
    for app in state.active().filter(|app| app.spec.deploy_mode == DeployMode::Client) {
        let (deadline, message) = match soft.driver(&app.id) {
            DriverSigns::Attached => continue,
            DriverSigns::GoneSince(since) => (
                since.max(clock.leading_since) + timing.driver_timeout,
                format!("the driver has not been heard of for {} s", timing.driver_timeout.as_secs()),
            ),
            DriverSigns::NeverAttached => {
                let age = Duration::from_millis(clock.now_ms.saturating_sub(app.submitted_ms));
                let submitted = clock.now.checked_sub(age).unwrap_or(clock.leading_since);
                (
                    submitted.max(clock.leading_since) + timing.first_attach_timeout,
                    format!(
                        "the driver has not connected within {} s of the submission",
                        timing.first_attach_timeout.as_secs()
                    ),
                )
            }
        };
        if due(deadline) {
            commands.push(Command::FinishApplication {
                application: app.id.clone(),
                success: false,
                message,
                at_ms: clock.now_ms,
            });
        }
    }
    (commands, next)
}

fn log_overdue(command: &Command) {
    match command {
        Command::SetWorkerStatus { id, .. } => {
            tracing::warn!(worker = %id, "no heartbeat: the worker is dead")
        }
        Command::FinishApplication { application, message, .. } => {
            tracing::warn!(%application, "{message}");
        }
        _ => {}
    }
}

/// Removes what belongs to applications and workers that the state has forgotten.
async fn tidy(cluster: &Cluster, old: Option<&ClusterState>, new: &ClusterState) {
    if let Some(old) = old
        && old.forgotten_applications() == new.forgotten_applications()
        && old.workers().all(|w| new.worker(&w.id).is_some())
    {
        return;
    }
    cluster.soft().retain(|id| new.application(id).is_some(), |id| new.worker(id).is_some());
    let keep = new.applications().map(|app| app.spec.artifact.clone()).collect();
    match cluster.artifacts().sweep(&keep).await {
        Ok(0) => {}
        Ok(removed) => tracing::info!(removed, "artifacts that no application names any more"),
        Err(error) => tracing::warn!(%error, "cannot remove old artifacts"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soft::Usage;
    use firesteel_common::{
        ApplicationId, ApplicationSpec, ExecutorCount, OutputFormat, Resources, Secret, WorkerId,
    };
    use firesteel_master_core::apply;

    const NOW_MS: u64 = 1_795_247_100_000;

    fn worker() -> WorkerId {
        "worker-1".parse().unwrap()
    }

    /// One worker and one client-mode application.
    fn state() -> (ClusterState, ApplicationId) {
        let mut state = ClusterState::default();
        let register = Command::RegisterWorker {
            id: worker(),
            incarnation: 1,
            host: "h".into(),
            port: 1,
            capacity: Resources::new(2, 2048),
            version: String::new(),
            ui_url: String::new(),
            at_ms: NOW_MS,
        };
        assert_eq!(apply(&mut state, 1, register), Outcome::Ok);
        let spec = ApplicationSpec {
            name: "q".into(),
            user: "ana".into(),
            deploy_mode: DeployMode::Client,
            resource: "q.sql".into(),
            artifact: String::new(),
            conf: Default::default(),
            output: OutputFormat::Table,
            driver: Resources::new(0, 512),
            executor: Resources::new(1, 1024),
            executors: ExecutorCount::Exactly(1),
            supervise: false,
        };
        let submit = Command::SubmitApplication {
            spec,
            token: Secret::new("t"),
            key: String::new(),
            ticket: 0,
            at_ms: NOW_MS,
        };
        match apply(&mut state, 2, submit) {
            Outcome::Submitted { id } => (state, id),
            other => panic!("{other:?}"),
        }
    }

    /// Who is overdue so many seconds after the start, as words; and the seconds to the next look.
    fn at(state: &ClusterState, soft: &Soft, start: Instant, seconds: u64) -> (Vec<String>, Option<u64>) {
        let now = start + Duration::from_secs(seconds);
        let clock = Clock { now, leading_since: start, now_ms: NOW_MS + seconds * 1000 };
        let (commands, next) = overdue(state, soft, Timing::default(), clock);
        let words = commands.into_iter().map(|command| match command {
            Command::SetWorkerStatus { id, status, .. } => format!("{id} {status}"),
            Command::FinishApplication { message, .. } => message,
            other => panic!("{other:?}"),
        });
        (words.collect(), next.map(|at| (at - now).as_secs()))
    }

    #[test]
    fn silence_counts_from_the_start_of_leadership() {
        let (state, _) = state();
        let (soft, start) = (Soft::new(), Instant::now());
        assert_eq!(at(&state, &soft, start, 14), (vec![], Some(1)));
        assert_eq!(at(&state, &soft, start, 15).0, ["worker-1 DEAD"]);
    }

    #[test]
    fn a_heartbeat_puts_the_end_off_but_only_the_right_incarnations() {
        let (state, _) = state();
        let (soft, start) = (Soft::new(), Instant::now());
        let session = soft.attach_worker(&worker(), 1, start);
        soft.heartbeat(&session, Usage::default(), start + Duration::from_secs(10));
        assert_eq!(at(&state, &soft, start, 24), (vec![], Some(1)));
        assert_eq!(at(&state, &soft, start, 25).0, ["worker-1 DEAD"]);
        soft.attach_worker(&worker(), 2, start + Duration::from_secs(20));
        assert_eq!(at(&state, &soft, start, 15).0, ["worker-1 DEAD"], "not yet the one that is registered");
    }

    #[test]
    fn a_client_mode_driver_may_be_late_once_and_away_for_a_while() {
        let (mut state, app) = state();
        let left = Command::SetWorkerStatus {
            id: worker(),
            incarnation: 1,
            status: WorkerStatus::Left,
            at_ms: NOW_MS,
        };
        assert_eq!(apply(&mut state, 3, left), Outcome::Ok);
        let (soft, start) = (Soft::new(), Instant::now());
        assert_eq!(at(&state, &soft, start, 59), (vec![], Some(1)));
        assert_eq!(
            at(&state, &soft, start, 60).0,
            ["the driver has not connected within 60 s of the submission"]
        );
        soft.attach_driver(&app);
        assert_eq!(at(&state, &soft, start, 600), (vec![], None));
        soft.detach_driver(&app, start + Duration::from_secs(600));
        assert_eq!(at(&state, &soft, start, 610), (vec![], Some(20)));
        assert_eq!(at(&state, &soft, start, 630).0, ["the driver has not been heard of for 30 s"]);
    }
}
