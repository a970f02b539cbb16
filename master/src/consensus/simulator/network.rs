//! The wires between masters: what they lose, double, delay and let through.

use super::random::Random;
use std::collections::BTreeSet;

#[derive(Default)]
pub struct Network {
    /// (from, to): nothing arrives.
    cuts: BTreeSet<(u64, u64)>,
    pub loss_percent: u64,
    pub doubled_percent: u64,
    /// How many messages are late, and by how much at most.
    pub late_percent: u64,
    pub late_ms: u64,
}

impl Network {
    pub fn passes(&self, from: u64, to: u64) -> bool {
        !self.cuts.contains(&(from, to))
    }

    pub fn cut(&mut self, from: u64, to: u64) {
        self.cuts.insert((from, to));
    }

    /// Cuts between `side` and all the others, both ways.
    pub fn part(&mut self, side: &[u64], all: &[u64]) {
        for a in side {
            for b in all.iter().filter(|b| !side.contains(b)) {
                self.cut(*a, *b);
                self.cut(*b, *a);
            }
        }
    }

    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    pub fn delay_ms(&self, random: &mut Random) -> u64 {
        match random.chance(self.late_percent) {
            true => random.between(1, self.late_ms.max(1)),
            false => random.between(1, 5),
        }
    }
}
