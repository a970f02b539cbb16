//! For how long this worker may take for granted that nobody has been started in the place of what it runs. No I/O, no clock.
//!
//! The leader that has heard a report lends the worker `lease` from the *sending* of that report: the leader, who counts
//! from its arrival, is always the later one to see it end. Times are of the boottime clock ([`crate::boottime`]), because a
//! machine that slept has to see its lease as over.
//!
//! A lease outlives its connection and its leader: a new leader waits for it to run out before it replaces anything.

use std::collections::VecDeque;
use std::time::Duration;

/// Far more than are under way on any connection; of a leader that is further behind, nothing is taken for granted.
const UNHEARD_MAX: usize = 1024;

/// What happens to executors and unsupervised drivers when the lease has run out. A supervised driver always stops: it is
/// what runs its application, and must not run twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum OnLeaseEnd {
    /// What the masters may start elsewhere is killed: without them, nothing of it runs on
    #[default]
    Stop,
    /// Executors and unsupervised drivers go on, also while the masters start others in their place; a supervised driver is
    /// killed all the same, because it must not run twice
    Keep,
}

/// One connection to a leader. Reports are counted anew on each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attachment(u64);

/// The state machine.
#[derive(Debug, Default)]
pub struct Lease {
    attachment: Attachment,
    /// Number and time of the reports of this attachment, from the one that was heard last; oldest first.
    sent: VecDeque<(u64, Duration)>,
    newest: Option<Granted>,
}

/// The lease as it was last extended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Granted {
    /// When the report was sent from which it counts.
    from: Duration,
    length: Duration,
}

impl Granted {
    fn ends_at(&self) -> Duration {
        self.from.saturating_add(self.length)
    }
}

impl Lease {
    /// What is still said about earlier attachments changes nothing from here on.
    pub fn new_attachment(&mut self) -> Attachment {
        self.attachment.0 += 1;
        self.sent.clear();
        self.attachment
    }

    /// Before the report `sequence` goes out.
    pub fn sent(&mut self, attachment: Attachment, sequence: u64, now: Duration) {
        if attachment != self.attachment {
            return;
        }
        if self.sent.len() == UNHEARD_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((sequence, now));
    }

    /// The leader has taken the report `sequence` (0: none yet) and lends `length` (zero: nothing). `true` if the lease
    /// before had run out by the sending of that report: there was a time without, whether or not somebody noticed.
    pub fn heard(&mut self, attachment: Attachment, sequence: u64, length: Duration) -> bool {
        if attachment != self.attachment || length.is_zero() {
            return false;
        }
        let Some(at) = self.sent.iter().position(|(sent, _)| *sent == sequence) else { return false };
        self.sent.drain(..at);
        let Some(&(_, from)) = self.sent.front() else { return false };
        let lapsed = self.ends_at().is_some_and(|end| end <= from);
        let granted = Granted { from, length };
        // A leader that lends for another time may also act sooner: then the newest word counts, not the longest.
        let kept = self.newest.filter(|old| old.length == length && old.ends_at() > granted.ends_at());
        self.newest = Some(kept.unwrap_or(granted));
        lapsed
    }

    /// Time since boot; `None` before the first lease.
    pub fn ends_at(&self) -> Option<Duration> {
        self.newest.map(|granted| granted.ends_at())
    }

    pub fn is_live(&self, now: Duration) -> bool {
        self.ends_at().is_some_and(|end| now < end)
    }

    /// How long ago the last report was sent that a leader is known to have heard.
    pub fn unheard_for(&self, now: Duration) -> Option<Duration> {
        self.newest.map(|granted| now.saturating_sub(granted.from))
    }

    /// For the worker's page.
    pub fn in_words(&self, now: Duration) -> String {
        match self.ends_at() {
            None => "no lease".to_owned(),
            Some(end) if now < end => format!("{} left", seconds(end - now)),
            Some(end) => format!("ran out {} ago", seconds(now - end)),
        }
    }

    /// Why what ended with this lease was ended.
    pub fn end_reason(&self, now: Duration) -> String {
        let time = seconds(self.unheard_for(now).unwrap_or_default());
        format!("the worker's lease ran out: no master could be reached for {time}")
    }
}

/// Tenths where they matter.
fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(5) {
        format!("{} s", (duration.as_millis() / 100) as f64 / 10.0)
    } else {
        format!("{} s", duration.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: Duration = Duration::from_secs(10);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }
    fn at(lease: &Lease) -> Option<u64> {
        lease.ends_at().map(|end| end.as_secs())
    }

    #[test]
    fn a_lease_counts_from_the_sending_of_the_report_that_was_heard() {
        let mut lease = Lease::default();
        let a = lease.new_attachment();
        assert_eq!(lease.ends_at(), None, "a registration gives none");
        lease.sent(a, 1, s(100));
        lease.sent(a, 2, s(101));
        lease.heard(a, 0, TEN);
        assert_eq!(lease.ends_at(), None, "nothing has been heard yet");
        lease.heard(a, 1, TEN);
        assert_eq!(at(&lease), Some(110));
        lease.heard(a, 1, TEN);
        assert_eq!(at(&lease), Some(110), "said again, it is the same");
        lease.heard(a, 2, TEN);
        assert_eq!(at(&lease), Some(111));
        assert!(lease.is_live(s(110)) && !lease.is_live(s(111)));
    }

    #[test]
    fn what_was_never_sent_extends_nothing() {
        let mut lease = Lease::default();
        let a = lease.new_attachment();
        lease.sent(a, 1, s(100));
        lease.heard(a, 7, TEN);
        assert_eq!(lease.ends_at(), None);
        lease.heard(a, 1, TEN);
        lease.sent(a, 2, s(105));
        lease.heard(a, 3, TEN);
        assert_eq!(at(&lease), Some(110));
    }

    #[test]
    fn no_lease_given_keeps_the_former_end() {
        let mut lease = Lease::default();
        let a = lease.new_attachment();
        lease.sent(a, 1, s(100));
        lease.heard(a, 1, TEN);
        lease.sent(a, 2, s(105));
        lease.heard(a, 2, Duration::ZERO);
        assert_eq!(at(&lease), Some(110));
    }

    #[test]
    fn a_lease_survives_the_change_of_the_leader_and_never_gets_shorter() {
        let mut lease = Lease::default();
        let old = lease.new_attachment();
        for n in 1..=5 {
            lease.sent(old, n, s(100 + n));
        }
        lease.heard(old, 5, TEN);
        let new = lease.new_attachment();
        assert_eq!(at(&lease), Some(115));
        lease.heard(new, 5, TEN);
        assert_eq!(at(&lease), Some(115), "no fifth report on this connection");
        lease.sent(new, 1, s(107));
        lease.heard(new, 1, TEN);
        assert_eq!(at(&lease), Some(117));
        lease.heard(new, 1, s(4));
        assert_eq!(at(&lease), Some(111), "a leader that lends for less may replace sooner");
    }

    #[test]
    fn an_old_attachment_has_no_say() {
        let mut lease = Lease::default();
        let old = lease.new_attachment();
        lease.sent(old, 1, s(100));
        let new = lease.new_attachment();
        lease.sent(old, 1, s(200));
        lease.sent(new, 1, s(110));
        lease.heard(old, 1, TEN);
        assert_eq!(lease.ends_at(), None);
        lease.heard(new, 1, TEN);
        assert_eq!(
            at(&lease),
            Some(120),
            "the report of the new connection counts, not the late one of the old"
        );
    }

    #[test]
    fn a_late_answer_does_not_take_back_an_earlier_one() {
        let mut lease = Lease::default();
        let a = lease.new_attachment();
        lease.sent(a, 1, s(100));
        lease.sent(a, 2, s(105));
        lease.heard(a, 2, TEN);
        lease.heard(a, 1, TEN);
        assert_eq!(at(&lease), Some(115));
    }

    #[test]
    fn a_time_without_a_lease_is_noticed_and_a_late_answer_is_none() {
        let mut lease = Lease::default();
        let a = lease.new_attachment();
        for n in 1..=3 {
            lease.sent(a, n, s(95 + n * 5));
        }
        assert!(!lease.heard(a, 1, TEN), "the first");
        assert!(!lease.heard(a, 2, TEN), "however late this was learnt, the leader has had it in time");
        lease.sent(a, 4, s(115));
        assert!(lease.heard(a, 4, TEN), "it ended at 115, and nobody knew of the worker until then");
        assert!(!lease.heard(a, 4, TEN));
    }

    #[test]
    fn memory_of_what_was_sent_is_bounded() {
        let mut lease = Lease::default();
        let a = lease.new_attachment();
        for n in 1..=UNHEARD_MAX as u64 + 1 {
            lease.sent(a, n, s(n));
        }
        lease.heard(a, 1, TEN);
        assert_eq!(lease.ends_at(), None, "forgotten");
        lease.heard(a, 2, TEN);
        assert_eq!(at(&lease), Some(12));
    }

    #[test]
    fn a_lease_in_words() {
        let mut lease = Lease::default();
        let a = lease.new_attachment();
        assert_eq!(lease.in_words(s(1)), "no lease");
        lease.sent(a, 1, s(100));
        lease.heard(a, 1, TEN);
        assert_eq!(lease.in_words(s(102)), "8 s left");
        assert_eq!(lease.in_words(s(110) - Duration::from_millis(250)), "0.2 s left");
        assert_eq!(lease.in_words(s(117)), "ran out 7 s ago");
        let reason = "the worker's lease ran out: no master could be reached for 10 s";
        assert_eq!(lease.end_reason(s(110)), reason);
    }
}
