//! The clock of leases: time since boot, which goes on while the machine sleeps. Tokio's timers do not. And which boot that is.

use rustix::fd::{AsFd, OwnedFd};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use std::io;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub fn now() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // The kernel gives neither a negative time nor a second's worth of nanoseconds.
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// Names this boot of the machine; `None` when the system does not say.
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Rings once when a time has come, also when that was while the machine slept.
#[derive(Debug)]
pub struct Alarm {
    timer: AsyncFd<OwnedFd>,
    at: Option<Duration>,
}

impl Alarm {
    /// Must be called within a Tokio runtime.
    pub fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        // SAFETY: an `OwnedFd` is open, always gives the same descriptor, and is never taken out of the `AsyncFd`.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE)? };
        Ok(Self { timer, at: None })
    }

    /// Replaces what was set before; a time that is past rings at once. `None` switches it off.
    pub fn set(&mut self, at: Option<Duration>) -> io::Result<()> {
        if at == self.at {
            return Ok(());
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // All zeros switch a timer off, so the moment of the boot itself is the nanosecond after it.
        let value = at.map_or(zero, |at| Timespec {
            tv_sec: at.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: i64::from(at.subsec_nanos()).max(i64::from(at.is_zero())),
        });
        let value = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(self.timer.as_fd(), TimerfdTimerFlags::ABSTIME, &value)?;
        self.at = at;
        Ok(())
    }

    /// Safe to drop and call again. Never returns while the alarm is off.
    pub async fn rings(&mut self) {
        while let Ok(mut guard) = self.timer.readable().await {
            let mut expirations = [0u8; 8];
            match guard.try_io(|timer| Ok(rustix::io::read(timer.as_fd(), &mut expirations)?)) {
                Ok(Ok(_)) => {
                    self.at = None;
                    return;
                }
                Ok(Err(_)) => break,
                // Set anew after it had rung.
                Err(_would_block) => {}
            }
        }
        // The runtime is going down.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn rings(alarm: &mut Alarm) {
        tokio::time::timeout(Duration::from_secs(30), alarm.rings()).await.unwrap();
    }

    #[tokio::test]
    async fn an_alarm_rings_when_its_time_has_come_and_once() {
        let mut alarm = Alarm::new().unwrap();
        let at = now() + Duration::from_millis(20);
        alarm.set(Some(at)).unwrap();
        rings(&mut alarm).await;
        assert!(now() >= at);
        alarm.set(Some(Duration::ZERO)).unwrap();
        rings(&mut alarm).await;
        alarm.set(Some(now() + Duration::from_secs(3600))).unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), alarm.rings()).await;
        assert!(early.is_err(), "rang an hour early");
    }

    #[tokio::test]
    async fn a_time_that_was_put_off_does_not_ring() {
        let mut alarm = Alarm::new().unwrap();
        alarm.set(Some(Duration::from_nanos(1))).unwrap();
        alarm.set(None).unwrap();
        let rang = tokio::time::timeout(Duration::from_millis(50), alarm.rings()).await;
        assert!(rang.is_err(), "it was switched off");
    }
}
