//! What must be true of gangs, over all nodes.
//!
//! Owns:
//! - *all or none*: a member is granted a lease only in a round in which every member that is there has had its GPUs;
//!   and what a node holds in a round that is over elsewhere ends within [`Timing::lost`](acb_core::gang::Timing);
//! - *time-out*: no node keeps GPUs for a gang that does not start for longer than `patience`;
//! - *order*: of gangs that need the same GPU one at a time keeps on a node.
//!
//! That every gang gets its turn follows from the end of the run ([`Scenario::due`](crate::Scenario)).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use acb_core::gang::{GangName, GangSnapshot, Round, Stage};
use acb_core::{ClientId, Eligible, Gpu, Time};

use super::World;
use super::client::Life;
use super::node::index;

/// What was seen of gangs.
#[derive(Clone, Debug, Default)]
pub(super) struct Watched {
    /// Members that had their GPUs in a round, and when that was seen last.
    kept: BTreeMap<GangName, BTreeMap<Round, BTreeMap<usize, Time>>>,
    /// When a node's assigner was last gone, and with it what it knew of rounds.
    gone: BTreeMap<usize, Time>,
    /// The round in which a node has, or had last, all that a gang needs there.
    had: BTreeMap<(usize, GangName), Round>,
    /// Since when a node keeps GPUs for a round that has not begun.
    keeping: BTreeMap<(usize, GangName), (Round, Time)>,
    /// Since when a node holds GPUs in a round that is over elsewhere.
    apart: BTreeMap<(usize, GangName), (Round, Time)>,
    /// Until then a connection can be lost without being noticed, or a controller begin anew.
    pub(super) excused: Time,
}

fn keeps(stage: Stage) -> bool {
    matches!(stage, Stage::Keeping | Stage::Reachable | Stage::Kept)
}

fn has_kept(stage: Stage) -> bool {
    matches!(stage, Stage::Kept | Stage::Holding { .. })
}

impl World<'_, '_> {
    /// Notes how far gangs are on a node.
    pub(super) fn watch_gangs(&mut self, node: usize) {
        if self.gangs.members.is_empty() || !self.watch.check {
            return;
        }
        let Some(scheduler) = &self.nodes[node].scheduler else { return };
        let gangs = scheduler.gangs();
        let now = self.now;
        let watched = &mut self.gangs.watched;
        for gang in &gangs {
            if has_kept(gang.stage) {
                let rounds = watched.kept.entry(gang.name.clone()).or_default();
                let mut members = gang.members.iter().map(|client| index(*client));
                let before = watched.had.insert((node, gang.name.clone()), gang.round);
                let is_known =
                    |kept: &BTreeMap<usize, Time>| members.clone().any(|it| kept.contains_key(&it));
                let is_past = rounds
                    .range(gang.round..)
                    .any(|(round, kept)| *round > gang.round || is_known(kept));
                if before != Some(gang.round) && is_past {
                    // All who knew have begun anew, this one the last or before, and rounds are counted from the beginning.
                    // Other nodes may be in the new ones already.
                    let gone = watched.gone.get(&node).copied().unwrap_or_default();
                    rounds.retain(|_, kept| {
                        kept.retain(|_, at| *at >= gone);
                        !kept.is_empty()
                    });
                }
                let kept = rounds.entry(gang.round).or_default();
                kept.extend((&mut members).map(|it| (it, now)));
                while rounds.len() > 8 {
                    rounds.pop_first();
                }
            }
            let at = (node, gang.name.clone());
            if keeps(gang.stage) {
                let since = watched.keeping.entry(at).or_insert((gang.round, now));
                if since.0 != gang.round {
                    *since = (gang.round, now);
                }
            } else {
                watched.keeping.remove(&at);
            }
        }
        let here: BTreeSet<&GangName> = gangs.iter().map(|gang| &gang.name).collect();
        watched.keeping.retain(|(at, name), _| *at != node || here.contains(name));
        self.check_order(node, &gangs);
    }

    /// Of gangs that need the same GPU one at a time keeps.
    fn check_order(&mut self, node: usize, gangs: &[GangSnapshot]) {
        let keepers: Vec<&GangSnapshot> = gangs.iter().filter(|it| keeps(it.stage)).collect();
        let Some(scheduler) = self.nodes[node].scheduler.as_ref().filter(|_| keepers.len() > 1)
        else {
            return;
        };
        // Where a client is bound its scheduler knows before the client does.
        let snapshot = scheduler.snapshot();
        let bound = snapshot.clients.iter().filter(|client| client.bound);
        let bound: BTreeMap<ClientId, &Vec<Gpu>> =
            bound.map(|client| (client.client, &client.gpus)).collect();
        let gpus_of = |client: &ClientId| match bound.get(client) {
            Some(gpus) => (*gpus).clone(),
            None => self.eligible(node, index(*client)),
        };
        let gpus = |gang: &GangSnapshot| -> BTreeSet<Gpu> {
            gang.members.iter().flat_map(gpus_of).collect()
        };
        for (at, one) in keepers.iter().enumerate() {
            for other in &keepers[..at] {
                if let Some(gpu) = gpus(one).intersection(&gpus(other)).next() {
                    let (one, other) = (&one.name, &other.name);
                    return self.violated(format!("{gpu} is kept for {one} and for {other}"));
                }
            }
        }
    }

    /// The GPUs that a client can be on before it is bound.
    pub(super) fn eligible(&self, node: usize, client: usize) -> Vec<Gpu> {
        match &self.scenario.clients[client].eligible {
            Eligible::Only(gpus) => gpus.clone(),
            Eligible::All => (0..).map(Gpu).take(self.nodes[node].gpus.len()).collect(),
        }
    }

    /// A member is granted a lease: all others have had their GPUs in this round, or are gone.
    pub(super) fn check_member_grant(&mut self, node: usize, client: usize) {
        let Some(gang) = &self.scenario.clients[client].gang else { return };
        let Some(scheduler) = self.nodes[node].scheduler.as_ref().filter(|_| self.watch.check)
        else {
            return;
        };
        let snapshots = scheduler.gangs();
        let Some(snapshot) = snapshots.iter().find(|it| it.name == gang.name) else { return };
        // A round on one node can begin and end within one event; there the scheduler takes all leases at one moment.
        if snapshot.is_local && !matches!(snapshot.stage, Stage::Holding { .. }) {
            return;
        }
        let rounds = self.gangs.watched.kept.get(&gang.name);
        let kept = rounds.and_then(|rounds| rounds.get(&snapshot.round));
        let lacks = |other: &&usize| {
            let is_gone = matches!(self.clients[**other].life, Life::Over | Life::Dying);
            !is_gone && kept.is_none_or(|kept| !kept.contains_key(other))
        };
        if let Some(other) = self.gangs.members[&gang.name].iter().find(lacks) {
            let (one, two) = (self.name(client), self.name(*other));
            let (round, stage) = (snapshot.round.0, snapshot.stage);
            self.violated(format!(
                "{one} is granted a lease in round {round} ({stage:?}) of {}, {two} has none",
                gang.name
            ));
        }
    }

    /// A node's assigner is gone.
    pub(super) fn forget_watched(&mut self, node: usize) {
        let watched = &mut self.gangs.watched;
        watched.gone.insert(node, self.now);
        watched.had.retain(|(at, _), _| *at != node);
        watched.keeping.retain(|(at, _), _| *at != node);
        watched.apart.retain(|(at, _), _| *at != node);
    }

    /// What a network between nodes and controller may take to find out about something and to end it.
    fn slowness(&self) -> Duration {
        let costs = &self.scenario.costs;
        let timing = self.scenario.nodes[0].config.gangs.timing;
        // With one of five messages lost, 40 in a row are not.
        let network = costs.network.mean.mul_f64(20.0 * (1.0 + costs.network.spread));
        timing.lost + costs.detect + 20 * timing.retry + 4 * network
    }

    /// Looks at all gangs on all nodes; after everything that happens.
    pub(super) fn check_gangs(&mut self) {
        if self.gangs.members.is_empty() || !self.watch.check {
            return;
        }
        let slowness = self.slowness();
        let patience = self.scenario.nodes[0].config.gangs.timing.patience;
        let watched = &self.gangs.watched;
        let since = |since: Time| self.now.since(since.max(watched.excused));
        let late = watched.keeping.iter().find(|(_, (_, at))| since(*at) > patience + slowness);
        if let Some(((node, gang), _)) = late {
            let node = &self.scenario.nodes[*node].name;
            return self.violated(format!("{node} keeps GPUs for {gang}, which does not start"));
        }
        if self.has_controller() {
            self.check_apart(slowness);
        }
    }

    fn check_apart(&mut self, slowness: Duration) {
        let mut states: BTreeMap<GangName, Vec<(usize, Round, Stage)>> = BTreeMap::new();
        for (node, truth) in self.nodes.iter().enumerate() {
            for gang in truth.scheduler.iter().flat_map(acb_core::Scheduler::gangs) {
                states.entry(gang.name).or_default().push((node, gang.round, gang.stage));
            }
        }
        let now = self.now;
        let mut apart = BTreeMap::new();
        for (gang, members) in &self.gangs.members {
            let states = states.remove(gang).unwrap_or_default();
            for (node, round, stage) in &states {
                if !matches!(stage, Stage::Holding { .. }) {
                    continue;
                }
                let lacks = |client: &usize| {
                    let at = self.scenario.clients[*client].node;
                    let is_there = self.clients[*client].life == Life::Here;
                    let in_it = |it: &&(usize, Round, Stage)| {
                        it.0 == at && it.1 == *round && has_kept(it.2)
                    };
                    is_there && states.iter().find(in_it).is_none()
                };
                if members.iter().any(lacks) {
                    let at = (*node, gang.clone());
                    let before = self.gangs.watched.apart.get(&at);
                    let since = before.filter(|it| it.0 == *round).map_or(now, |it| it.1);
                    apart.insert(at, (*round, since));
                }
            }
        }
        let late = apart.iter().find(|(_, (_, since))| now.since(*since) > slowness);
        let late = late.map(|((node, gang), _)| (*node, gang.clone()));
        self.gangs.watched.apart = apart;
        if let Some((node, gang)) = late {
            let node = &self.scenario.nodes[node].name;
            self.violated(format!(
                "{node} holds GPUs for {gang}, of which other members hold none"
            ));
        }
    }
}
