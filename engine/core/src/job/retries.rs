//! What has gone wrong with a task, or with a gang, so far.

use crate::Policy;

#[derive(Debug, Default)]
pub(crate) struct Retries {
    /// By its own doing.
    pub failures: u32,
    /// Dead executors, cancellations from outside, stale inputs.
    pub interruptions: u32,
    /// How often its output got lost since a consumer last finished.
    pub losses: u32,
    /// [`crate::job::Stage::consumed`] at the last loss.
    pub losses_at: u64,
    pub out_of_memory: bool,
    pub last_error: String,
}

impl Retries {
    pub fn failed_too_often(&self, policy: &Policy) -> bool {
        self.failures >= policy.task_attempts_max.max(1)
    }

    pub fn interrupted_too_often(&self, policy: &Policy) -> bool {
        self.interruptions >= policy.interruptions_max.max(1)
    }

    /// Notes a loss. A consumer that has finished since the last one shows that this is no loop: the count begins anew. It
    /// does not if consumers are to run again with the loss, because then their finishing shows nothing.
    pub fn lost_too_often(&mut self, policy: &Policy, consumed: u64, repeatable: bool) -> bool {
        if repeatable && self.losses_at != consumed {
            self.losses = 0;
        }
        self.losses_at = consumed;
        self.losses += 1;
        self.losses >= policy.stage_attempts_max.max(1)
    }
}
