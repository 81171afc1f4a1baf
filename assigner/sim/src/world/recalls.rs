//! Why leases are asked back: quota, priority, and that nobody takes GPUs back and forth.
//!
//! Owns, of recalls at once (for a guarantee, for a level):
//! - *quota*: none takes from a tenant that holds no more than its guarantee, but for a higher one of its own;
//! - *priority*: one for a level is for somebody of a higher one that waits. That nothing lower starts on what comes free for
//!   it is a matter of the scheduler's state (`Scheduler::sanity_check`: `Outranked`);
//! - *no livelock*: while no time passes, of n requests each makes way at once for each other one at most once.
//!
//! Beside gangs the same holds, of what can be seen from outside at the moment of a recall: what a gang has taken without
//! telling its members counts as held by their tenants, before and after the event, and for as long as the event lasts that
//! has it begin: then its idle members hold like the others, and a recall that follows can end the round again, so that
//! nothing is seen of them afterwards. Members are of their gang's highest
//! level while they wait, and of their own at least while they hold. That a round ends for all of its members when one of
//! them is recalled is no recall at once: it takes from tenants within their guarantees, too (`Cause::Gang`).

use std::collections::BTreeSet;

use acb_core::{Cause, Event, Priority, Time};

use super::World;
use super::client::Life;
use super::node::{index, number};

/// What was seen of a node's recalls at this moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Moment {
    at: Time,
    /// Requests that there were, and that have come since.
    requests: u64,
    /// Leases recalled at once.
    recalls: u64,
    /// Members of gangs that held GPUs after the latest event, told or not.
    seats: BTreeSet<usize>,
    /// Members of gangs of which one was granted by this event: all of them have seats then, idle ones included.
    taken: BTreeSet<usize>,
}

impl World<'_, '_> {
    /// A scheduler is going to be told something.
    pub(super) fn note_moment(&mut self, node: usize, event: &Event) {
        let here = self.clients.iter().zip(&self.scenario.clients);
        let wants = here.filter(|(client, spec)| {
            spec.node == node && (client.holds || client.waits.is_some() || spec.gang.is_some())
        });
        let wants = wants.count() as u64;
        let moment = &mut self.nodes[node].moment;
        if moment.at != self.now {
            (moment.at, moment.requests, moment.recalls) = (self.now, wants, 0);
        } else if matches!(event, Event::Acquire { .. }) {
            moment.requests += 1;
        }
    }

    /// A scheduler has done what it was told.
    pub(super) fn note_seats(&mut self, node: usize) {
        if !self.gangs.members.is_empty() && self.watch.check {
            self.nodes[node].moment.seats = self.seats(node);
            self.nodes[node].moment.taken.clear();
        }
    }

    /// A member of a gang was granted: its gang has begun, or goes on.
    pub(super) fn note_begun(&mut self, node: usize, client: usize) {
        let Some(gang) = &self.scenario.clients[client].gang else { return };
        let members = self.gangs.members.get(&gang.name).into_iter().flatten().copied();
        let here = |at: &usize| {
            self.scenario.clients[*at].node == node && self.clients[*at].life == Life::Here
        };
        let here: BTreeSet<usize> = members.filter(here).collect();
        self.nodes[node].moment.taken.extend(here);
    }

    /// Members of gangs that hold GPUs of a node, whether they have been told or not.
    fn seats(&self, node: usize) -> BTreeSet<usize> {
        let Some(scheduler) = &self.nodes[node].scheduler else { return BTreeSet::new() };
        let holders = scheduler.snapshot().gpus.into_iter().flat_map(|gpu| gpu.holders);
        holders.map(index).filter(|it| self.scenario.clients[*it].gang.is_some()).collect()
    }

    /// A lease is asked back.
    pub(super) fn check_recall(&mut self, node: usize, victim: usize) {
        if self.watch.check
            && let Some(wrong) = self.judge_recall(node, victim)
        {
            self.violated(wrong);
        }
        self.clients[victim].leaves = true;
    }

    /// What is wrong with a recall.
    fn judge_recall(&mut self, node: usize, victim: usize) -> Option<String> {
        let clients = self.nodes[node].scheduler.as_ref()?.snapshot().clients;
        let recalled = clients.iter().find(|it| it.client == number(victim))?;
        let cause = recalled.recalled_for?;
        self.clients[victim].gave_way = cause != Cause::Quantum;
        if !matches!(cause, Cause::Quota | Cause::Priority) {
            return None;
        }
        let moment = &mut self.nodes[node].moment;
        moment.recalls += 1;
        let most = moment.requests * moment.requests.saturating_sub(1);
        if moment.recalls > most {
            let (recalls, requests) = (moment.recalls, moment.requests);
            return Some(format!("{recalls} recalls at once among {requests} requests"));
        }
        // Whoever starts by the same event has waited until then, and so has a member that its gang has taken a seat for.
        let seats = self.seats(node);
        let before = &self.nodes[node].moment.seats;
        let starts = |it: usize| {
            self.clients[it].waits.is_some() || seats.contains(&it) && !before.contains(&it)
        };
        let waits = clients.iter().filter(|it| it.position.is_some() || starts(index(it.client)));
        let waiting: Vec<usize> = waits.map(|it| index(it.client)).collect();
        let name = self.name(victim);
        let borrows = self.borrowed(node, victim) > 0;
        let tenant = |client: usize| &self.scenario.clients[client].tenant;
        let is_above = |it: &usize| self.waits_at(*it) > self.level(victim);
        let may_take = |it: &usize| borrows || tenant(*it) == tenant(victim);
        match cause {
            Cause::Quota if !borrows => {
                Some(format!("{name} is recalled within its tenant's guarantee"))
            }
            Cause::Priority if !waiting.iter().any(is_above) => {
                Some(format!("{name} is recalled, but nobody of a higher level waits"))
            }
            Cause::Priority if !waiting.iter().filter(|it| is_above(it)).any(may_take) => {
                Some(format!("{name} is recalled for another tenant's, within its guarantee"))
            }
            _ => None,
        }
    }

    /// GPUs that a client's tenant holds beyond its guarantee, without those that it has been asked for.
    pub(super) fn borrowed(&self, node: usize, client: usize) -> i64 {
        let tenant = &self.scenario.clients[client].tenant;
        let Moment { seats, taken, .. } = &self.nodes[node].moment;
        let mut seats: BTreeSet<usize> = seats | taken;
        if !self.gangs.members.is_empty() {
            seats.extend(self.seats(node));
        }
        let clients = self.clients.iter().zip(&self.scenario.clients).enumerate();
        let held = clients.filter(|(at, (client, other))| {
            let holds = client.holds || seats.contains(at);
            holds && !client.leaves && other.node == node && other.tenant == *tenant
        });
        let held: i64 = held.map(|(_, (_, other))| i64::from(other.gpus)).sum();
        let tenants = &self.scenario.nodes[node].config.tenants;
        let known = tenants.iter().find(|known| known.name == *tenant);
        held - known.map_or(0, |known| i64::from(known.guarantee))
    }

    /// How urgent a client is: the priority of its queue, then its own.
    pub(super) fn level(&self, client: usize) -> (Priority, Priority) {
        let spec = &self.scenario.clients[client];
        let queues = &self.scenario.nodes[spec.node].config.queues;
        let queue = queues.iter().find(|queue| queue.name == spec.queue);
        (queue.map_or(Priority::default(), |queue| queue.priority), spec.priority)
    }

    /// How urgent it is at most while it waits: as urgent as the first of its gang, its queue included.
    fn waits_at(&self, client: usize) -> (Priority, Priority) {
        let gang = self.scenario.clients[client].gang.as_ref();
        let members = gang.and_then(|gang| self.gangs.members.get(&gang.name));
        let all = members.into_iter().flatten().map(|it| self.level(*it));
        all.fold(self.level(client), Ord::max)
    }
}
