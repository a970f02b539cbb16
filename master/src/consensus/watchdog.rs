//! Ends a master whose disk hangs. Such a leader would go on sending heartbeats: nobody could take over from it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Watched {
    /// When the unfinished write began.
    since: Option<Instant>,
    /// The thread waits without a deadline and must be woken; otherwise it comes by in time by itself.
    asleep: bool,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    watched: Mutex<Watched>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches the age of at most one unfinished operation.
pub struct Watchdog(Option<Arc<Shared>>);

impl Watchdog {
    /// `stalled` is called once, on a thread of its own, when an operation has taken longer than `limit`.
    pub fn start(limit: Duration, stalled: impl FnOnce(Duration) + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        thread::Builder::new().name("disk-watchdog".into()).spawn(move || {
            if let Some(age) = watch(&theirs, limit) {
                stalled(age);
            }
        })?;
        Ok(Self(Some(shared)))
    }

    /// For a medium that cannot hang.
    pub fn none() -> Self {
        Self(None)
    }

    /// Runs `operation` under watch.
    pub fn watch<T>(&self, operation: impl FnOnce() -> T) -> T {
        let Some(shared) = &self.0 else { return operation() };
        {
            let mut watched = shared.lock();
            watched.since = Some(Instant::now());
            if watched.asleep {
                shared.changed.notify_one();
            }
        }
        let result = operation();
        shared.lock().since = None;
        result
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.lock().closed = true;
            shared.changed.notify_one();
        }
    }
}

/// Returns the age of an operation that took too long, or `None` when the watchdog is dropped.
fn watch(shared: &Shared, limit: Duration) -> Option<Duration> {
    let mut watched = shared.lock();
    loop {
        if watched.closed {
            return None;
        }
        watched = match watched.since {
            None => {
                watched.asleep = true;
                let mut woken = shared.changed.wait(watched).unwrap_or_else(PoisonError::into_inner);
                woken.asleep = false;
                woken
            }
            Some(since) => {
                let age = since.elapsed();
                if age >= limit {
                    return Some(age);
                }
                let (woken, _) =
                    shared.changed.wait_timeout(watched, limit - age).unwrap_or_else(PoisonError::into_inner);
                woken
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_hanging_operation_is_reported_and_quick_ones_are_not() {
        let (report, reports) = mpsc::channel();
        let dog = Watchdog::start(Duration::from_millis(200), move |age| report.send(age).unwrap()).unwrap();
        for _ in 0..1000 {
            dog.watch(|| ());
        }
        assert!(reports.try_recv().is_err());
        let age = dog.watch(|| reports.recv_timeout(Duration::from_secs(20)).unwrap());
        assert!(age >= Duration::from_millis(200));
    }

    #[test]
    fn dropping_it_ends_the_thread() {
        let (report, reports) = mpsc::channel::<()>();
        let dog = Watchdog::start(Duration::from_secs(3600), move |_| drop(report)).unwrap();
        drop(dog);
        let end = reports.recv_timeout(Duration::from_secs(20)).unwrap_err();
        assert_eq!(end, mpsc::RecvTimeoutError::Disconnected);
    }
}
