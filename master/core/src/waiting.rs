//! Why an application waits: one primary reason per alive worker, and a way out.

use crate::placement::{Room, Rooms};
use crate::state::{Application, ClusterState};
use firesteel_common::{
    ApplicationId, ApplicationSpec, ApplicationState, ExecutorState, MemorySize, Resources, WorkerId,
};
use std::collections::BTreeMap;
use std::fmt::Write;

const MAX_REASON_CHARS: usize = 200;

/// Why one application has not got all that it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// 1 is the head of the queue; `None` once the application runs with fewer executors than it wants.
    pub queue_position: Option<u32>,
    /// For people: "Waiting, 2nd in queue. Needs …"
    pub text: String,
    /// For each alive worker the first thing that speaks against it.
    pub workers: BTreeMap<WorkerId, Obstacle>,
}

/// What keeps an executor from a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// It would not fit if the worker were idle.
    TooSmall,
    LacksCores {
        free: u32,
    },
    LacksMemory {
        free_mib: u64,
    },
    /// An executor would fit, but there is no place for the driver at the same time.
    NoRoomForDriver,
    /// An executor would fit, but that application comes first.
    HeldFor(ApplicationId),
    /// Nothing: it is about to be granted, or the next attempt has been put off after failures.
    Fits,
}

/// Explains every active application that has not got all it asked for. One whose next grant is only a commit away is
/// left out: a reason that is gone before anybody reads it is noise.
pub fn waiting(state: &ClusterState) -> BTreeMap<ApplicationId, Explanation> {
    let rooms = Rooms::of(state);
    let mut explanations = BTreeMap::new();
    let mut position = 0;
    let mut holder: Option<&Application> = None;
    for app in state.active() {
        let queued = app.state == ApplicationState::Waiting;
        position += u32::from(queued);
        if app.missing_executors() == 0 && !app.needs_driver() {
            continue;
        }
        let case = Case { state, rooms: &rooms, app, holder };
        let explanation = case.explain(queued.then_some(position));
        let put_off = app.quick_ends > 1 || app.awaits_next_driver();
        let imminent = !put_off && explanation.workers.values().any(|o| *o == Obstacle::Fits);
        if !imminent {
            explanations.insert(app.id.clone(), explanation);
        }
        let has_executors = app.live_executors().next().is_some();
        // An application that awaits its next driver holds nobody before it is time. When it is, there is only a lack of
        // room to wait for.
        let before_time = app.awaits_next_driver() && rooms.can_start(app);
        if holder.is_none() && !has_executors && !before_time && rooms.idle_but_for(app).can_start(app) {
            holder = Some(app);
        }
    }
    explanations
}

struct Case<'a> {
    state: &'a ClusterState,
    rooms: &'a Rooms<'a>,
    app: &'a Application,
    /// The application that holds the queue before this one.
    holder: Option<&'a Application>,
}

impl Case<'_> {
    fn explain(&self, queue_position: Option<u32>) -> Explanation {
        let workers: BTreeMap<_, _> =
            self.rooms.iter().map(|room| (room.worker.id.clone(), self.obstacle(room))).collect();
        let mut text = match queue_position {
            Some(n) => format!("Waiting, {} in queue. ", ordinal(n)),
            None => {
                let target = self.app.spec.executor_target();
                format!("{} of {target} executors granted. ", target - self.app.missing_executors())
            }
        };
        let next_driver = self.next_driver();
        text.push_str(&next_driver);
        if workers.is_empty() {
            text.push_str(&self.no_workers());
        } else if !self.rooms.idle_but_for(self.app).can_start(self.app) {
            text.push_str(&self.never());
        } else if !next_driver.is_empty() && self.holder.is_none() && self.rooms.can_start(self.app) {
            // Only the delay speaks against it.
            text.truncate(text.trim_end().len());
        } else {
            let _ = write!(text, "Needs {}. {}.", self.needs(), counts(&workers, self.rooms));
            if let Some(remedy) = self.remedy(&workers) {
                let _ = write!(text, " {remedy}.");
            }
        }
        Explanation { queue_position, text, workers }
    }

    /// "The driver is started again 4 s after it exited with code 1. " Empty unless its driver ended and is supervised.
    fn next_driver(&self) -> String {
        let app = self.app;
        let Some((_, last)) = app.driver().filter(|_| app.awaits_next_driver()) else { return String::new() };
        let delay_ms = app.driver_retry_at_ms.saturating_sub(last.ended_ms.unwrap_or(0));
        // A reason may be a page long; the driver's record has it in full.
        let line = last.message.lines().next().unwrap_or_default();
        let why: String = line.trim_end_matches('.').chars().take(MAX_REASON_CHARS).collect();
        let subject = if last.state == ExecutorState::Lost { "" } else { "it " };
        format!("The driver is started again {} s after {subject}{why}. ", delay_ms / 1000)
    }

    fn obstacle(&self, room: &Room<'_>) -> Obstacle {
        let need = self.app.spec.executor;
        if !room.worker.capacity.fits(need) {
            Obstacle::TooSmall
        } else if room.free.cores < need.cores {
            Obstacle::LacksCores { free: room.free.cores }
        } else if room.free.memory_mib < need.memory_mib {
            Obstacle::LacksMemory { free_mib: room.free.memory_mib }
        } else if let Some(holder) = self.holder {
            Obstacle::HeldFor(holder.id.clone())
        } else if !self.rooms.can_start(self.app) {
            Obstacle::NoRoomForDriver
        } else {
            Obstacle::Fits
        }
    }

    fn needs(&self) -> String {
        let need = self.app.spec.executor;
        let mut text = format!("{} per executor", brief(need));
        if self.app.needs_driver() {
            let _ = write!(text, " and {} for the driver", brief(self.app.spec.driver));
        }
        text
    }

    fn no_workers(&self) -> String {
        let gone = self.state.workers().max_by_key(|w| (w.status_changed_ms, &w.id));
        match gone {
            None => "No worker has registered: scripts/start-worker.sh URL starts one.".to_owned(),
            Some(last) => format!(
                "No worker is alive (the last was {}, {}): scripts/start-worker.sh URL starts one.",
                last.id, last.status
            ),
        }
    }

    /// Nothing that could be released would help.
    fn never(&self) -> String {
        let need = self.app.spec.executor;
        let largest_cores = self.rooms.iter().map(|r| r.worker.capacity.cores).max().unwrap_or(0);
        let largest_mib = self.rooms.iter().map(|r| r.worker.capacity.memory_mib).max().unwrap_or(0);
        if largest_cores < need.cores {
            format!(
                "No worker has {} cores: the largest has {largest_cores}; lower --executor-cores or add a larger worker.",
                need.cores
            )
        } else if largest_mib < need.memory_mib {
            format!(
                "No worker has {} of memory: the largest has {}; lower --executor-memory or add a larger worker.",
                MemorySize::from_mib(need.memory_mib),
                MemorySize::from_mib(largest_mib)
            )
        } else if !self.rooms.iter().any(|r| r.worker.capacity.fits(need)) {
            format!(
                "No worker has {} together; lower --executor-cores or --executor-memory, or add a larger worker.",
                brief(need)
            )
        } else {
            let driver = self.app.spec.driver;
            format!(
                "No place for the driver ({}) besides an executor ({}), even on idle workers; lower --driver-memory or \
                 --executor-memory, or add a worker.",
                brief(driver),
                brief(need)
            )
        }
    }

    fn remedy(&self, workers: &BTreeMap<WorkerId, Obstacle>) -> Option<String> {
        if let Some(holder) = self.holder
            && workers.values().any(|o| matches!(o, Obstacle::HeldFor(_)))
        {
            return Some(format!("{} is ahead in the queue and comes first", holder.id));
        }
        if workers.values().any(|o| *o == Obstacle::Fits) {
            let n = self.app.quick_ends;
            return Some(format!(
                "{n} executors in a row ended soon after their start; the next is tried in a moment"
            ));
        }
        let ways: Vec<String> = [self.release(), self.smaller()].into_iter().flatten().collect();
        (!ways.is_empty()).then(|| ways.join("; or "))
    }

    /// The worker that lacks least, and who would have to give it back.
    fn release(&self) -> Option<String> {
        let executor = self.app.spec.executor;
        // Without a place for the driver elsewhere, one worker must hold both.
        let driver = self.app.spec.driver;
        let driver_elsewhere =
            |room: &Room<'_>| self.rooms.iter().any(|r| r.worker.id != room.worker.id && r.free.fits(driver));
        let lack_on = |room: &Room<'_>| {
            let both = self.app.needs_driver() && !driver_elsewhere(room);
            let need = if both { Resources::total([executor, driver]) } else { executor };
            need.saturating_sub(room.free)
        };
        let (lack, room) = self
            .rooms
            .iter()
            .filter(|room| room.worker.capacity.fits(executor))
            .map(|room| (lack_on(room), room))
            .min_by_key(|(lack, room)| (lack.cores, lack.memory_mib, &room.worker.id))?;
        let lack_text = match (lack.cores, lack.memory_mib) {
            (0, 0) => return None,
            (0, mib) => MemorySize::from_mib(mib).to_string(),
            (cores, 0) => cores_text(cores),
            (cores, mib) => format!("{} and {}", cores_text(cores), MemorySize::from_mib(mib)),
        };
        let holder = self
            .state
            .active()
            .filter(|other| other.id != self.app.id)
            .find(|other| held_on(other, &room.worker.id).fits(lack));
        Some(match holder {
            Some(other) => format!("Fits when {} releases {lack_text}", other.id),
            None => format!("Fits when {lack_text} are released on {}", room.worker.id),
        })
    }

    /// A smaller executor that would fit now.
    fn smaller(&self) -> Option<String> {
        let need = self.app.spec.executor;
        if self.holder.is_some() {
            return None;
        }
        let driver = self.app.needs_driver().then_some(self.app.spec.driver);
        let fits = |executor: Resources| self.rooms.hold(driver, executor);
        let fewer_cores =
            self.rooms.iter().map(|r| r.free.cores).filter(|free| (1..need.cores).contains(free));
        if let Some(cores) = fewer_cores.filter(|&cores| fits(Resources { cores, ..need })).max() {
            return Some(format!("--executor-cores {cores}"));
        }
        let minimum = ApplicationSpec::MIN_EXECUTOR_MEMORY_MIB;
        let less_memory = self
            .rooms
            .iter()
            .map(|r| r.free.memory_mib)
            .filter(|free| (minimum..need.memory_mib).contains(free));
        less_memory
            .filter(|&memory_mib| fits(Resources { memory_mib, ..need }))
            .max()
            .map(|mib| format!("--executor-memory {mib}m"))
    }
}

/// What an application's live processes hold on one worker.
fn held_on(app: &Application, worker: &WorkerId) -> Resources {
    let processes = app.drivers.values().chain(app.executors.values());
    Resources::total(processes.filter(|p| p.is_live() && p.worker == *worker).map(|p| p.resources))
}

/// "3 workers: 2 lack cores (most free: 2), 1 lacks memory (5 GiB)": the parts sum to the number of workers.
fn counts(workers: &BTreeMap<WorkerId, Obstacle>, rooms: &Rooms<'_>) -> String {
    let total = workers.len();
    let many = |n: usize, one: &str, several: &str| format!("{n} {}", if n == 1 { one } else { several });
    let count = |wanted: fn(&Obstacle) -> bool| workers.values().filter(|o| wanted(o)).count();
    let mut parts = Vec::new();
    let too_small: Vec<_> =
        rooms.iter().filter(|r| workers.get(&r.worker.id) == Some(&Obstacle::TooSmall)).collect();
    if let Some(largest) = too_small.iter().map(|r| r.worker.capacity).max_by_key(|c| (c.cores, c.memory_mib))
    {
        parts.push(format!(
            "{} ({} {})",
            many(too_small.len(), "is too small", "are too small"),
            if too_small.len() == 1 { "it has" } else { "the largest has" },
            brief(largest)
        ));
    }
    let most_cores = workers
        .values()
        .filter_map(|o| if let Obstacle::LacksCores { free } = o { Some(*free) } else { None });
    if let Some(most) = most_cores.max() {
        let n = count(|o| matches!(o, Obstacle::LacksCores { .. }));
        parts.push(format!("{} (most free: {most})", many(n, "lacks cores", "lack cores")));
    }
    let most_memory = workers
        .values()
        .filter_map(|o| if let Obstacle::LacksMemory { free_mib } = o { Some(*free_mib) } else { None });
    if let Some(most) = most_memory.max() {
        let n = count(|o| matches!(o, Obstacle::LacksMemory { .. }));
        let free = MemorySize::from_mib(most);
        parts.push(format!("{} (most free: {free})", many(n, "lacks memory", "lack memory")));
    }
    let driver = count(|o| *o == Obstacle::NoRoomForDriver);
    if driver > 0 {
        let text = "room for an executor but nowhere is room for the driver besides";
        parts.push(format!("{} {text}", many(driver, "has", "have")));
    }
    let held = workers.values().find_map(|o| if let Obstacle::HeldFor(id) = o { Some(id) } else { None });
    if let Some(id) = held {
        let n = count(|o| matches!(o, Obstacle::HeldFor(_)));
        parts.push(format!("{} for {id}", many(n, "is held", "are held")));
    }
    let fits = count(|o| *o == Obstacle::Fits);
    if fits > 0 {
        parts.push(format!("{} room", many(fits, "has", "have")));
    }
    format!("{}: {}", many(total, "worker", "workers"), parts.join(", "))
}

/// "4 cores/8 GiB"; "512 MiB" for a driver, which needs no core.
fn brief(r: Resources) -> String {
    let memory = MemorySize::from_mib(r.memory_mib);
    if r.cores == 0 { memory.to_string() } else { format!("{}/{memory}", cores_text(r.cores)) }
}

fn cores_text(cores: u32) -> String {
    format!("{cores} core{}", if cores == 1 { "" } else { "s" })
}

fn ordinal(n: u32) -> String {
    let suffix = match (n % 100, n % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{n}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::ordinal;

    #[test]
    fn positions_read_as_english() {
        let text: Vec<_> = [1, 2, 3, 4, 11, 12, 13, 21, 22, 101, 111].map(ordinal).into();
        assert_eq!(text.join(" "), "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 101st 111th");
    }
}
