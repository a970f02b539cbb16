//! The median of a growing multitude.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Two heaps that meet in the middle: O(log n) to add, O(1) to ask.
#[derive(Debug, Default)]
pub(crate) struct Median {
    /// As many as `upper`, or one more.
    lower: BinaryHeap<Duration>,
    upper: BinaryHeap<Reverse<Duration>>,
}

impl Median {
    pub fn add(&mut self, value: Duration) {
        if self.lower.peek().is_some_and(|&middle| value > middle) {
            self.upper.push(Reverse(value));
        } else {
            self.lower.push(value);
        }
        if self.upper.len() > self.lower.len() {
            self.lower.extend(self.upper.pop().map(|Reverse(value)| value));
        } else if self.lower.len() > self.upper.len() + 1 {
            self.upper.extend(self.lower.pop().map(Reverse));
        }
    }

    /// The lower of the two in the middle when their number is even; zero when there are none.
    pub fn get(&self) -> Duration {
        self.lower.peek().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_one_in_the_middle() {
        let mut median = Median::default();
        assert_eq!(median.get(), Duration::ZERO);
        let mut seen = Vec::new();
        for n in 0..200u64 {
            let value = Duration::from_millis(n * 7919 % 101);
            median.add(value);
            seen.push(value);
            seen.sort();
            assert_eq!(median.get(), seen[(seen.len() - 1) / 2], "{seen:?}");
        }
    }
}
