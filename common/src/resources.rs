//! Cores and memory, with arithmetic that cannot wrap.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An amount of a machine: whole cores and memory in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Resources {
    pub cores: u32,
    pub memory_mib: u64,
}

impl Resources {
    pub const fn new(cores: u32, memory_mib: u64) -> Self {
        Self { cores, memory_mib }
    }

    /// `None` when either axis would overflow.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        Some(Self {
            cores: self.cores.checked_add(other.cores)?,
            memory_mib: self.memory_mib.checked_add(other.memory_mib)?,
        })
    }

    /// `None` when either axis would go below zero.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        Some(Self {
            cores: self.cores.checked_sub(other.cores)?,
            memory_mib: self.memory_mib.checked_sub(other.memory_mib)?,
        })
    }

    /// What is left, each axis at least zero: for showing, when a worker came back smaller than what it runs.
    pub fn saturating_sub(self, other: Self) -> Self {
        Self {
            cores: self.cores.saturating_sub(other.cores),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
        }
    }

    /// Sums any number of amounts; each axis stops at its maximum.
    pub fn total(amounts: impl IntoIterator<Item = Self>) -> Self {
        amounts.into_iter().fold(Self::default(), |sum, r| Self {
            cores: sum.cores.saturating_add(r.cores),
            memory_mib: sum.memory_mib.saturating_add(r.memory_mib),
        })
    }

    /// Whether `need` fits in `self` on both axes.
    pub fn fits(self, need: Self) -> bool {
        need.cores <= self.cores && need.memory_mib <= self.memory_mib
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.cores == 1 { "" } else { "s" };
        write!(f, "{} core{plural}, {}", self.cores, crate::MemorySize::from_mib(self.memory_mib))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_is_checked_on_both_axes() {
        let a = Resources::new(2, 100);
        assert_eq!(a.checked_sub(Resources::new(1, 101)), None);
        assert_eq!(a.checked_sub(Resources::new(3, 1)), None);
        assert_eq!(a.checked_sub(a), Some(Resources::default()));
        assert_eq!(Resources::new(u32::MAX, 0).checked_add(a), None);
        assert!(a.fits(a) && !a.fits(Resources::new(2, 101)) && !a.fits(Resources::new(3, 1)));
        assert_eq!(Resources::total([a, a]), Resources::new(4, 200));
    }
}
