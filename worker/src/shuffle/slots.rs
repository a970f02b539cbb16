//! How many map outputs are open at a time, for the whole worker.
//!
//! Whoever finds no free slot waits in line. Nobody keeps a slot while it waits for its reader and others wait for a slot:
//! a consumer that merges the outputs of very many tasks reads none of them on before it has the first bytes of all, so
//! slots that were kept for slow readers could wait for each other for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

#[derive(Debug)]
pub struct Slots {
    free: Arc<Semaphore>,
    total: usize,
    waiting: AtomicUsize,
    /// Rings when somebody begins to wait.
    wanted: Notify,
    peak: AtomicUsize,
}

/// The right to have one file open, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    pub fn new(total: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(total)),
            total,
            waiting: AtomicUsize::new(0),
            wanted: Notify::new(),
            peak: AtomicUsize::new(0),
        }
    }

    /// Waits in line for a slot.
    pub async fn take(&self) -> Slot {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = Waiting::new(&self.waiting);
                self.wanted.notify_waiters();
                match self.free.clone().acquire_owned().await {
                    Ok(permit) => permit,
                    // Nobody closes it.
                    Err(_) => std::future::pending().await,
                }
            }
        };
        self.peak.fetch_max(self.used(), Ordering::Relaxed);
        Slot { _permit: permit }
    }

    /// Returns when somebody waits for a slot.
    pub async fn wanted(&self) {
        let mut ring = std::pin::pin!(self.wanted.notified());
        loop {
            // Before the look, so that nobody begins to wait unnoticed in between.
            ring.as_mut().enable();
            if self.waiting() > 0 {
                return;
            }
            ring.as_mut().await;
            ring.set(self.wanted.notified());
        }
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    pub fn used(&self) -> usize {
        self.total.saturating_sub(self.free.available_permits())
    }

    /// The most that have been in use at a time.
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;
    use std::pin::pin;
    use std::task::Poll;

    #[tokio::test]
    async fn they_are_given_in_order_and_holders_hear_that_somebody_waits() {
        let slots = Slots::new(1);
        let held = slots.take().await;
        let mut wanted = pin!(slots.wanted());
        assert!(poll!(&mut wanted).is_pending());
        let mut second = Box::pin(slots.take());
        let mut third = Box::pin(slots.take());
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        assert!(poll!(&mut wanted).is_ready());
        assert_eq!((slots.used(), slots.waiting()), (1, 2));
        drop(held);
        assert!(poll!(&mut third).is_pending());
        let Poll::Ready(held) = poll!(&mut second) else { panic!("it was the first to wait") };
        // Who has gone away does not want it any more.
        drop(third);
        assert_eq!(slots.waiting(), 0);
        assert!(poll!(pin!(slots.wanted())).is_pending());
        drop(held);
        assert_eq!((slots.used(), slots.peak()), (0, 1));
    }
}
