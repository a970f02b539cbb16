//! Where a process fits: the free room of the alive workers, as a scheduling round uses it up.

use crate::state::{Application, ClusterState, Worker};
use firesteel_common::{Resources, WorkerId};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// The alive workers and what is free on each.
#[derive(Debug, Clone)]
pub(crate) struct Rooms<'a> {
    rooms: Vec<Room<'a>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Room<'a> {
    pub worker: &'a Worker,
    pub free: Resources,
}

/// How many live executors an application has on each worker.
pub(crate) type ExecutorsByWorker = BTreeMap<WorkerId, u32>;

pub(crate) fn executors_by_worker(app: &Application) -> ExecutorsByWorker {
    let mut counts = ExecutorsByWorker::new();
    for (_, executor) in app.live_executors() {
        *counts.entry(executor.worker.clone()).or_default() += 1;
    }
    counts
}

impl<'a> Rooms<'a> {
    pub fn of(state: &'a ClusterState) -> Self {
        Self { rooms: state.alive_workers().map(|worker| Room { worker, free: worker.free() }).collect() }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Room<'a>> {
        self.rooms.iter()
    }

    /// Spread-out: the room with the most free cores, then the most free memory, then the fewest executors of the
    /// application, then the first id.
    pub fn best(&self, need: Resources, own: &ExecutorsByWorker) -> Option<usize> {
        self.in_order(need, own).next()
    }

    /// Rooms that hold `need` now, the best first.
    fn in_order(&self, need: Resources, own: &ExecutorsByWorker) -> impl Iterator<Item = usize> + use<> {
        let mut fitting: Vec<usize> =
            (0..self.rooms.len()).filter(|&i| self.rooms[i].free.fits(need)).collect();
        fitting.sort_by_key(|&i| {
            let room = &self.rooms[i];
            let executors = own.get(&room.worker.id).copied().unwrap_or(0);
            (Reverse(room.free.cores), Reverse(room.free.memory_mib), executors, &room.worker.id)
        });
        fitting.into_iter()
    }

    /// A place for a driver that leaves a place for an executor, so that no driver ever waits alone on what another
    /// driver holds.
    pub fn best_with_companion(&self, driver: Resources, executor: Resources) -> Option<usize> {
        self.in_order(driver, &ExecutorsByWorker::new()).find(|&i| {
            self.rooms[i].free.checked_sub(driver).is_some_and(|rest| self.fits_with(i, rest, executor))
        })
    }

    /// Whether `need` fits anywhere when room `changed` has `free` left.
    fn fits_with(&self, changed: usize, free: Resources, need: Resources) -> bool {
        free.fits(need) || self.rooms.iter().enumerate().any(|(i, room)| i != changed && room.free.fits(need))
    }

    pub fn take(&mut self, room: usize, need: Resources) -> &'a Worker {
        let room = &mut self.rooms[room];
        room.free = room.free.saturating_sub(need);
        room.worker
    }

    /// The same workers with nothing on them but `app`'s own driver: what `app` could ever get of them.
    pub fn idle_but_for(&self, app: &Application) -> Self {
        let rooms = self
            .rooms
            .iter()
            .map(|room| {
                let own_driver = app
                    .live_driver()
                    .filter(|(_, driver)| driver.worker == room.worker.id)
                    .map_or(Resources::default(), |(_, driver)| driver.resources);
                Room { worker: room.worker, free: room.worker.capacity.saturating_sub(own_driver) }
            })
            .collect();
        Self { rooms }
    }

    /// Whether the first things `app` lacks (its driver, if it needs one, and one executor) fit at the same time.
    pub fn can_start(&self, app: &Application) -> bool {
        self.hold(app.needs_driver().then_some(app.spec.driver), app.spec.executor)
    }

    /// Whether an executor and, if there is one to place, a driver fit at the same time.
    pub fn hold(&self, driver: Option<Resources>, executor: Resources) -> bool {
        match driver {
            Some(driver) => self.best_with_companion(driver, executor).is_some(),
            None => self.rooms.iter().any(|room| room.free.fits(executor)),
        }
    }
}
