//! Who gets what: FIFO, spread out.
//!
//! Problem: a stream of applications, each with an optional driver and a number of equal executors, on workers of
//! different sizes. Rules, in this order:
//!
//! 1. Applications are served in the order of their submission.
//! 2. A cluster-mode driver is granted only together with a place for a first executor. So scheduling never makes two
//!    applications each hold a driver and wait for the other's room. (A lost worker can leave two drivers without
//!    executors on a cluster that has become too small for both; drivers do not move, so they wait for a worker.)
//! 3. An application may start with fewer executors than it wants. What it still wants and cannot get now is free for
//!    those behind it.
//! 4. An application without any executor that could run on the alive workers if they were idle holds everything behind
//!    it: otherwise small applications would starve a large one. One that could not run even then holds nobody.
//! 5. A supervised driver that ended is granted again only after a delay, and while that lasts its application holds
//!    nobody: one driver that keeps ending must not stop a cluster.
//! 6. Each process goes to the alive worker with the most free cores, then the most free memory, then the fewest
//!    executors of the application, then the first id (Spark's `spreadOut`).

use crate::apply::{DRIVER_RETRY_MAX_MS, RETRY_MAX_MS};
use crate::command::Command;
use crate::placement::{Rooms, executors_by_worker};
use crate::state::{Application, ClusterState};

/// A plan is one batch in the log; what it leaves out comes with the next.
pub const MAX_GRANTS_PER_PLAN: usize = 1000;

/// The grants that the leader shall propose now. Nothing when all is placed that can be.
pub fn schedule(state: &ClusterState, now_ms: u64) -> Vec<Command> {
    let mut rooms = Rooms::of(state);
    let mut plan = Vec::new();
    for app in state.active() {
        let missing = app.missing_executors();
        if missing == 0 && !app.needs_driver() {
            continue;
        }
        if driver_put_off_until(app, now_ms).is_some() {
            continue;
        }
        let has_executors = app.live_executors().next().is_some();
        if !has_executors && !rooms.idle_but_for(app).can_start(app) {
            continue;
        }
        let may_start = has_executors || rooms.can_start(app);
        if may_start && pending(app.retry_at_ms, now_ms, RETRY_MAX_MS).is_none() {
            grant(app, missing, &mut rooms, now_ms, &mut plan);
        } else if !has_executors {
            break;
        }
        if plan.len() >= MAX_GRANTS_PER_PLAN {
            break;
        }
    }
    plan
}

fn grant(app: &Application, missing: u32, rooms: &mut Rooms<'_>, now_ms: u64, plan: &mut Vec<Command>) {
    if app.needs_driver() {
        let Some(room) = rooms.best_with_companion(app.spec.driver, app.spec.executor) else { return };
        let worker = rooms.take(room, app.spec.driver);
        plan.push(Command::GrantDriver {
            application: app.id.clone(),
            attempt: app.driver_starts(),
            worker: worker.id.clone(),
            incarnation: worker.incarnation,
            at_ms: now_ms,
        });
    }
    let mut own = executors_by_worker(app);
    for number in app.next_executor..app.next_executor.saturating_add(missing) {
        if plan.len() >= MAX_GRANTS_PER_PLAN {
            return;
        }
        let Some(room) = rooms.best(app.spec.executor, &own) else { return };
        let worker = rooms.take(room, app.spec.executor);
        *own.entry(worker.id.clone()).or_default() += 1;
        plan.push(Command::GrantExecutor {
            application: app.id.clone(),
            number,
            worker: worker.id.clone(),
            incarnation: worker.incarnation,
            at_ms: now_ms,
        });
    }
}

/// When [`schedule`] may have something to say although no state has changed: the end of the nearest retry delay.
pub fn wake_at_ms(state: &ClusterState, now_ms: u64) -> Option<u64> {
    let put_off_until = |app: &Application| {
        let executor = pending(app.retry_at_ms, now_ms, RETRY_MAX_MS);
        driver_put_off_until(app, now_ms).max(executor)
    };
    state.active().filter(|app| app.missing_executors() > 0).filter_map(|app| put_off_until(app)).min()
}

fn driver_put_off_until(app: &Application, now_ms: u64) -> Option<u64> {
    app.awaits_next_driver().then(|| pending(app.driver_retry_at_ms, now_ms, DRIVER_RETRY_MAX_MS)).flatten()
}

/// The end of a delay of at most `max_ms` that has not run out. One that would last much longer was set by a leader whose
/// clock was ahead: nobody shall wait for the difference.
fn pending(end_ms: u64, now_ms: u64, max_ms: u64) -> Option<u64> {
    (end_ms > now_ms && end_ms - now_ms <= 2 * max_ms).then_some(end_ms)
}
