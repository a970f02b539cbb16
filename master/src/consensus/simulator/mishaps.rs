//! What goes wrong, and what operators do meanwhile.

use super::super::log_store::Bootstrap;
use super::super::membership::MembershipStep;
use super::super::node::Input;
use super::member::{Member, Pending, Purpose};
use super::{CLUSTER, Event, World};
use tokio::sync::oneshot;

const MAX_MEMBERS: usize = 7;

impl World {
    pub fn mishap(&mut self) -> Result<(), String> {
        if self.calm {
            return Ok(());
        }
        let pace = self.pace_ms;
        self.later_between(pace / 4, pace * 2, Event::Mishap);
        let ids: Vec<u64> = self.members.values().filter(|m| !m.gone).map(|m| m.id).collect();
        let Some(victim) = self.random.pick(&ids) else { return Ok(()) };
        let leader = self.leader();
        match self.random.below(100) {
            0..14 => {
                // Whoever leads has most to lose.
                let victim = leader.filter(|_| self.random.chance(50)).unwrap_or(victim);
                self.crash(victim, "is killed")?;
            }
            14..22 => {
                let writes = self.random.below(12) as u32;
                self.say(|| format!("the disk of {victim} fails after {writes} more writes"));
                if let Some(member) = self.members.get(&victim) {
                    member.disk.fail_after(writes);
                }
            }
            22..25 => {
                self.say(|| "power failure everywhere".to_owned());
                for id in ids {
                    self.crash(id, "loses power")?;
                }
            }
            25..28 => self.stop(victim)?,
            28..37 => {
                let side: Vec<u64> = ids.iter().copied().filter(|_| self.random.chance(50)).collect();
                self.say(|| format!("partition: {side:?} from the rest"));
                self.network.part(&side, &ids);
                self.heal_later();
            }
            37..44 => {
                if let Some(leader) = leader {
                    self.say(|| format!("the leader {leader} is cut off"));
                    self.network.part(&[leader], &ids);
                    self.heal_later();
                }
            }
            44..51 => {
                let other = self.random.pick(&ids).unwrap_or(victim);
                self.say(|| format!("nothing arrives from {victim} at {other}"));
                self.network.cut(victim, other);
                self.heal_later();
            }
            51..56 => {
                self.say(|| "the network is whole".to_owned());
                self.network.heal();
            }
            56..63 => {
                let stall = self.random.between(300, 4_000);
                self.say(|| format!("{victim} stalls for {stall} ms"));
                if let Some(member) = self.members.get_mut(&victim) {
                    member.busy_until_ms = self.now_ms + stall;
                }
            }
            63..68 => {
                let clock = self.random.below(20_000);
                self.say(|| format!("the clock of {victim} jumps to +{clock} ms"));
                if let Some(member) = self.members.get_mut(&victim) {
                    member.clock_ms = clock;
                }
            }
            68..72 => {
                let other = self.random.pick(&ids).unwrap_or(victim);
                self.say(|| format!("{victim} believes that its connection from {other} is lost"));
                self.give(victim, Input::ConnectionLost(other));
            }
            72..77 => {
                if let Some(leader) = leader {
                    self.transfer(leader, victim);
                }
            }
            77..81 => self.snapshot(victim),
            81..87 => {
                let worker = self.random.below(self.workers.len() as u64) as usize;
                if self.workers[worker].up {
                    self.say(|| format!("worker {worker} crashes"));
                    self.workers[worker].crash();
                    self.later_between(100, 6_000, Event::WorkerUp(worker));
                }
            }
            _ => {
                if let Some(leader) = leader.filter(|_| !self.changing) {
                    self.change_members(leader);
                }
            }
        }
        Ok(())
    }

    fn heal_later(&mut self) {
        self.later_between(200, 5_000, Event::Heal);
    }

    /// One that says that it leads; there may be another.
    pub fn leader(&self) -> Option<u64> {
        self.members
            .values()
            .find(|m| m.running.as_ref().is_some_and(|r| r.views.published.borrow().leader))
            .map(|m| m.id)
    }

    /// Ends a member without warning, by its process or by its power supply.
    pub fn crash(&mut self, id: u64, how: &str) -> Result<(), String> {
        let power = self.random.chance(60);
        let Some(member) = self.members.get_mut(&id).filter(|m| m.running.is_some()) else { return Ok(()) };
        let unsynced = member.disk.unsynced();
        let kept = self.random.below(unsynced as u64 + 1) as usize;
        self.say(|| match power {
            true => format!("{id} {how}: {kept} of {unsynced} unsynced batches are kept"),
            false => format!("{id} {how}: the machine lives on"),
        });
        self.end(id)?;
        if let Some(member) = self.members.get_mut(&id) {
            match power {
                true => member.disk.crash(kept),
                false => member.disk.repair(),
            }
        }
        self.summary.crashes += 1;
        self.notice_end(id);
        self.later_between(50, 4_000, Event::Restart(id));
        Ok(())
    }

    /// Ends a member in order.
    fn stop(&mut self, id: u64) -> Result<(), String> {
        self.say(|| format!("{id} is stopped"));
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        if let Some(running) = member.running.take() {
            let stopped = running.node.finish();
            member.disk.repair();
            if let Err(error) = stopped {
                self.say(|| format!("{id} did not end in order: {error}"));
            }
            self.end(id)?;
            self.notice_end(id);
            self.later_between(50, 1_000, Event::Restart(id));
        }
        Ok(())
    }

    /// Connections break with the process; a machine without power tells nobody.
    fn notice_end(&mut self, id: u64) {
        let others: Vec<u64> = self.members.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            if self.random.chance(70) {
                let delay = self.random.between(1, 20);
                self.feed_back(delay, other, Input::ConnectionLost(id));
                self.feed_back(delay, other, Input::Unreachable(id));
            }
        }
    }

    fn transfer(&mut self, leader: u64, target: u64) {
        let to = Some(target).filter(|target| *target != leader && self.random.chance(60));
        let Some(running) = self.members.get(&leader).and_then(|m| m.running.as_ref()) else { return };
        let term = running.published().epoch.0;
        self.say(|| format!("{leader} hands over to {to:?}"));
        let (answer, receiver) = oneshot::channel();
        self.ask(leader, Input::Transfer { to, answer }, Purpose::Transfer { term }, Pending::Done(receiver));
    }

    fn snapshot(&mut self, id: u64) {
        let Some(running) = self.members.get(&id).and_then(|m| m.running.as_ref()) else { return };
        let applied = running.published().applied;
        self.say(|| format!("{id} shall write a snapshot"));
        let (answer, receiver) = oneshot::channel();
        self.ask(id, Input::SnapshotNow(answer), Purpose::Snapshot { applied }, Pending::Position(receiver));
    }

    fn change_members(&mut self, leader: u64) {
        let Some(running) = self.members.get(&leader).and_then(|m| m.running.as_ref()) else { return };
        let view = running.members();
        let voters: Vec<u64> = view.voters.iter().copied().collect();
        let up = |id: &u64| self.members.get(id).is_some_and(|m| m.running.is_some());
        // As operators are told to: what is left must have a majority that lives.
        let may_go = |id: u64| {
            let rest: Vec<u64> = voters.iter().copied().filter(|voter| *voter != id).collect();
            rest.len() >= 2 && rest.iter().filter(|id| up(id)).count() > rest.len() / 2
        };
        let ready = view
            .learners
            .iter()
            .copied()
            .find(|id| view.peers.get(id).is_some_and(|peer| peer.matched + 5 >= view.last_index));
        let leaving: Vec<u64> = voters.iter().copied().filter(|id| may_go(*id)).collect();
        let going = self.random.pick(&leaving);
        let steps = match (self.random.below(4), ready, going) {
            (0, Some(learner), Some(voter)) => {
                vec![MembershipStep::AddVoter(learner), MembershipStep::Remove(voter)]
            }
            (0..=2, Some(learner), _) => vec![MembershipStep::AddVoter(learner)],
            (1, None, Some(voter)) => vec![MembershipStep::Remove(voter)],
            _ if self.members.values().filter(|m| !m.gone).count() < MAX_MEMBERS => {
                let id = self.members.keys().next_back().map_or(1, |last| last + 1);
                let member = Member::new(Bootstrap::joining(CLUSTER.to_owned(), id));
                self.members.insert(id, member);
                self.later(1, Event::Restart(id));
                vec![MembershipStep::AddLearner(id)]
            }
            _ => return,
        };
        self.say(|| format!("members change: {steps:?}"));
        let (answer, receiver) = oneshot::channel();
        let input = Input::ChangeMembership { steps, answer };
        self.changing = self.ask(leader, input, Purpose::Change, Pending::Done(receiver));
    }
}
