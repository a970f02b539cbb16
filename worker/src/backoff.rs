//! How long to wait before the next attempt.

use std::time::Duration;

/// Doubles from `first` to `last`; each wait is spread over its upper half, so that workers that lost the same master do
/// not come back in step.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, next: first }
    }

    /// `random` in 0..=1.
    pub fn next(&mut self, random: f64) -> Duration {
        let ceiling = self.next;
        self.next = (self.next * 2).min(self.last);
        ceiling.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_last_and_start_over() {
        let mut b = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let waits: Vec<_> = (0..8).map(|_| b.next(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(b.next(0.0).as_millis(), 2500);
        b.reset();
        assert_eq!(b.next(0.0).as_millis(), 50);
    }
}
