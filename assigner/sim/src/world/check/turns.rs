//! Turns end: nobody keeps a GPU for longer than its turn from somebody who waits for it on the same level.
//!
//! ```text
//!  granted ──► ready ──(quantum, or what the switch is worth)──► (max_bypass_s, with fair share) ──► recalled by then
//! ```
//! Of each request all GPUs that it could have are looked at. One of them is kept for it or for somebody before it, and who holds
//! that one is recalled when its turn is over; so once the turns of all are over, somebody has been. The times are those at which
//! the assigner hears and says things, so messages add nothing.
//!
//! Not looked at: who waits for several GPUs (others may take turns on each), or has a limit of its tenant or queue; holders of
//! a higher level, and those of another tenant that has a guarantee; leases whose memory is not there; requests for GPUs that a
//! member of a gang has or could have: rounds end in another way.

use std::collections::BTreeSet;
use std::time::Duration;

use acb_core::{Epoch, Gpu, Time};

use crate::world::World;
use crate::world::client::Life;
use crate::world::node::index;

/// More than a scheduler loses of a span by how it keeps it.
const ROUNDING: Duration = Duration::from_millis(1);

/// A lease, as its assigner has granted it.
#[derive(Clone, Debug)]
pub(in crate::world) struct Turn {
    epoch: Epoch,
    gpus: Vec<Gpu>,
    granted: Time,
    /// When it is over for who waits on the same level; `None`: its memory is not there.
    over: Option<Time>,
}

/// Somebody has waited in vain from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::world) struct Starves {
    at: Time,
    client: usize,
}

impl World<'_, '_> {
    /// A client holds a lease from now on: granted, or brought along from before a restart.
    pub(in crate::world) fn begin_turn(
        &mut self,
        client: usize,
        epoch: Epoch,
        gpus: Vec<Gpu>,
        is_ready: bool,
    ) {
        let over = is_ready.then(|| self.turn_over(client, Duration::ZERO));
        self.clients[client].turn = Some(Turn { epoch, gpus, granted: self.now, over });
    }

    /// All of a lease's memory is there.
    pub(super) fn make_turn_ready(&mut self, client: usize, epoch: Epoch) {
        let turn = self.clients[client].turn.as_ref();
        let Some(turn) = turn.filter(|it| it.epoch == epoch && it.over.is_none()) else { return };
        let over = self.turn_over(client, self.now.since(turn.granted));
        if let Some(turn) = &mut self.clients[client].turn {
            turn.over = Some(over);
        }
    }

    /// When a turn is over that begins now, after such a switch.
    fn turn_over(&self, client: usize, switch: Duration) -> Time {
        let config = &self.scenario.nodes[self.scenario.clients[client].node].config;
        let worth = switch.mul_f64((1.0 - config.switch_share) / config.switch_share);
        let longer = config.fair_share.map_or(Duration::ZERO, |_| config.max_bypass_time);
        self.now.after(config.quantum.max(worth) + longer + ROUNDING)
    }

    /// When somebody has waited in vain on a node, unless something happens there.
    pub(in crate::world) fn note_turns(&mut self, node: usize) {
        if self.watch.check {
            let of_gangs = self.gpus_of_gangs(node);
            let clients = 0..self.clients.len();
            let starves = clients.filter_map(|client| {
                let at = self.starves_at(node, client, &of_gangs)?;
                Some(Starves { at, client })
            });
            self.nodes[node].starves = starves.min();
        }
    }

    /// The GPUs of a node that members of gangs have or could have, until it has heard that they are gone.
    fn gpus_of_gangs(&self, node: usize) -> BTreeSet<usize> {
        let gpus = 0..self.nodes[node].gpus.len();
        let scheduler = self.nodes[node].scheduler.as_ref();
        let Some(scheduler) = scheduler.filter(|_| !self.gangs.members.is_empty()) else {
            return BTreeSet::new();
        };
        let known = scheduler.snapshot().clients.into_iter().map(|it| index(it.client));
        let known: BTreeSet<usize> = known.collect();
        let is_there = |member: &&usize| {
            let life = self.clients[**member].life;
            matches!(life, Life::Here | Life::Dying) || known.contains(*member)
        };
        let members = self.gangs.members.values().flatten().filter(is_there);
        let members = members.filter(|member| self.scenario.clients[**member].node == node);
        let members: Vec<usize> = members.copied().collect();
        // Before a member knows where it is bound, its scheduler may.
        let could = |member: &usize, gpu: usize| match self.bound_to(*member) {
            [] => self.eligible(node, *member).contains(&Gpu(gpu as u32)),
            bound => bound.contains(&Gpu(gpu as u32)),
        };
        gpus.filter(|gpu| members.iter().any(|member| could(member, *gpu))).collect()
    }

    /// Nothing has happened until now: whether somebody has waited in vain.
    pub(in crate::world) fn check_turns(&mut self, now: Time) {
        let up = self.nodes.iter().filter(|node| node.scheduler.is_some());
        let late = up.filter_map(|node| node.starves.filter(|it| it.at.max(node.excused) < now));
        if let Some(Starves { client, .. }) = late.min() {
            let name = self.name(client).to_owned();
            self.violated(format!("{name} waits for GPUs whose holders are not recalled in time"));
        }
    }

    /// When the time of all is over that hold the GPUs that a client waits for.
    fn starves_at(&self, node: usize, waiting: usize, of_gangs: &BTreeSet<usize>) -> Option<Time> {
        let (client, spec) = (&self.clients[waiting], &self.scenario.clients[waiting]);
        let (since, _) = client.waits.filter(|_| spec.node == node && spec.gpus == 1)?;
        if client.life != Life::Here || !client.connected || self.is_limited(waiting) {
            return None;
        }
        let mut at = since;
        let mut gpus = 0;
        for gpu in 0..self.nodes[node].gpus.len() {
            if self.could_use(waiting, &[gpu]) {
                if of_gangs.contains(&gpu) {
                    return None;
                }
                at = at.max(self.held_until(waiting, node, Gpu(gpu as u32))?);
                gpus += 1;
            }
        }
        (gpus > 0).then_some(at)
    }

    /// When the time of all holders of a GPU is over, if each of them has to make way then.
    fn held_until(&self, waiting: usize, node: usize, gpu: Gpu) -> Option<Time> {
        let specs = &self.scenario.clients;
        let clients = self.clients.iter().enumerate().filter(|(at, client)| {
            let is_there = |turn: &Turn| turn.gpus.contains(&gpu);
            specs[*at].node == node && client.holds && client.turn.as_ref().is_some_and(is_there)
        });
        let ends = clients.map(|(holder, client)| {
            let makes_way = self.level(holder) <= self.level(waiting)
                && (specs[holder].tenant == specs[waiting].tenant || !self.has_guarantee(holder));
            client.turn.as_ref().filter(|_| makes_way && !client.leaves)?.over
        });
        let ends: Option<Vec<Time>> = ends.collect();
        ends?.into_iter().max()
    }
}
