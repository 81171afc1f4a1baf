//! The decisions: which gang is called next, when it holds, and when its round ends.
//!
//! Owns: the order of the gangs, their rounds and time-outs. Does not own: how it hears of the nodes
//! and how they hear of it.
//!
//! ```text
//!           ready, first of those in conflict     all nodes Kept
//!   Out ────────────────────────────────► Called ───────────────► Granted
//!    ▲                                      │ patience over          │ nobody busy, or
//!    │            all nodes Out             ▼ it ended on a node     ▼ it ended on a node
//!    └─────────────────────────────────── Ending ◄───────────────────┘
//! ```
//!
//! Everything but the order and the time-outs follows from what the nodes say. So an arbiter that
//! begins anew goes on with the rounds that it finds.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::Timing;
use super::message::{
    GangName, GangOrder, GangRefusal, NodeId, Orders, Round, Site, Stage, Standing, Step,
};
use crate::ids::{Gpu, Time};

/// Which gangs an arbiter decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    /// Those that are whole on its one node.
    Node,
    /// Those that are not, in a job of so many nodes.
    Job {
        /// Its nodes.
        nodes: u32,
    },
}

/// Place among the gangs: priority, then who was ready first.
type Place = (Reverse<i32>, u64, GangName);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Arbiter {
    scope: Scope,
    timing: Timing,
    /// Until then a gang of which members are missing may go on: their nodes have not reported yet.
    settles: Time,
    capacity: BTreeMap<NodeId, Option<u32>>,
    gangs: BTreeMap<GangName, Gang>,
    dirty: BTreeSet<GangName>,
    ready: BTreeSet<Place>,
    next_arrival: u64,
    orders: BTreeMap<NodeId, Orders>,
    changed: BTreeSet<NodeId>,
    deadline: Option<Time>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Gang {
    /// As the first who came said.
    size: u32,
    standings: BTreeMap<NodeId, Standing>,
    refused: BTreeMap<NodeId, (u32, GangRefusal)>,
    round: Round,
    phase: Phase,
    /// Its place while it is ready.
    place: Option<Place>,
    /// Rounds in a row that ended before it held.
    failures: u32,
    not_before: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Out,
    Called { until: Time, firm: bool },
    Granted,
    Ending,
}

impl Arbiter {
    pub(super) fn new(scope: Scope, timing: Timing, settles: Time) -> Arbiter {
        Arbiter {
            scope,
            timing,
            settles,
            capacity: BTreeMap::new(),
            gangs: BTreeMap::new(),
            dirty: BTreeSet::new(),
            ready: BTreeSet::new(),
            next_arrival: 0,
            orders: BTreeMap::new(),
            changed: BTreeSet::new(),
            deadline: None,
        }
    }

    /// A node's gangs are these now.
    pub(super) fn hear(&mut self, node: NodeId, site: &Site) {
        if self.capacity.insert(node, site.gpus) != Some(site.gpus) {
            self.dirty.extend(self.gangs.keys().cloned());
        }
        let known = self.gangs.iter().filter(|(_, gang)| gang.standings.contains_key(&node));
        let gone: Vec<GangName> =
            known.map(|(name, _)| name.clone()).filter(|n| !site.gangs.contains_key(n)).collect();
        for name in gone {
            self.hear_one(node, name, None);
        }
        for (name, standing) in &site.gangs {
            let known = self.gangs.get(name).and_then(|gang| gang.standings.get(&node));
            if known != Some(standing) {
                self.hear_one(node, name.clone(), Some(standing.clone()));
            }
        }
    }

    /// A gang stands so on a node now; `None`: not at all.
    pub(super) fn hear_one(&mut self, node: NodeId, name: GangName, now: Option<Standing>) {
        let Some(standing) = now else {
            if let Some(gang) = self.gangs.get_mut(&name) {
                gang.standings.remove(&node);
                gang.refused.remove(&node);
                if self.orders.get_mut(&node).is_some_and(|it| it.remove(&name).is_some()) {
                    self.changed.insert(node);
                }
                self.dirty.insert(name);
            }
            return;
        };
        let gang = self.gangs.entry(name.clone()).or_insert_with(|| Gang::new(standing.size));
        gang.judge(node, &standing);
        gang.standings.insert(node, standing);
        self.dirty.insert(name);
    }

    /// A node will not be heard of any more.
    pub(super) fn forget(&mut self, node: NodeId) {
        let known = self.gangs.iter().filter_map(|(name, gang)| {
            // Nobody was there any more: nothing can be held there either.
            let is_there = gang.standings.get(&node).is_some_and(|it| it.members + it.away > 0);
            is_there.then(|| name.clone())
        });
        for name in known.collect::<Vec<GangName>>() {
            self.hear_one(node, name, None);
        }
        self.capacity.remove(&node);
        self.dirty.extend(self.gangs.keys().cloned());
        self.orders.remove(&node);
        self.changed.remove(&node);
    }

    /// Decides about everything that has changed.
    pub(super) fn decide(&mut self, now: Time) {
        if self.deadline.is_some_and(|at| at <= now) {
            self.dirty.extend(self.gangs.keys().cloned());
        }
        for name in std::mem::take(&mut self.dirty) {
            self.advance(&name, now);
        }
        self.call(now);
        self.deadline = self.next_deadline(now);
    }

    /// A node has not been told anything.
    pub(super) fn say_again(&mut self, node: NodeId) {
        self.changed.insert(node);
    }

    /// A node that must be told something new, and what.
    pub(super) fn poll_orders(&mut self) -> Option<(NodeId, &Orders)> {
        let node = self.changed.pop_first()?;
        Some((node, self.orders.entry(node).or_default()))
    }

    /// What a node has been told of a gang.
    pub(super) fn order(&self, node: NodeId, name: &GangName) -> Option<&GangOrder> {
        self.orders.get(&node)?.get(name)
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    /// The gangs that are known, with their nodes.
    pub(super) fn gangs(&self) -> impl Iterator<Item = (&GangName, &BTreeMap<NodeId, Standing>)> {
        self.gangs.iter().map(|(name, gang)| (name, &gang.standings))
    }

    fn advance(&mut self, name: &GangName, now: Time) {
        let told = |gang: &Gang| gang.standings.values().find_map(|it| it.refusal.clone());
        let too_large = self.too_large(name).or_else(|| self.gangs.get(name).and_then(told));
        let Some(gang) = self.gangs.get_mut(name) else { return };
        if let Some(refusal) = too_large {
            for node in gang.standings.keys() {
                gang.refused.insert(*node, (0, refusal.clone()));
            }
        }
        let is_whole = gang.is_whole(self.scope);
        let missed = !is_whole && self.settles <= now;
        while gang.step(is_whole, missed, now, &self.timing) {}
        if let Some(place) = gang.place.take() {
            self.ready.remove(&place);
            if gang.is_ready(is_whole) {
                let (_, arrived, name) = place;
                gang.place = Some((Reverse(gang.priority()), arrived, name));
            }
        } else if gang.is_ready(is_whole) {
            gang.place = Some((Reverse(gang.priority()), self.next_arrival, name.clone()));
            self.next_arrival += 1;
        }
        self.ready.extend(gang.place.clone());
        self.tell(name);
    }

    /// Why a gang can never hold, however long it waits.
    fn too_large(&self, name: &GangName) -> Option<GangRefusal> {
        let Scope::Job { nodes } = self.scope else { return None };
        let gang = self.gangs.get(name)?;
        if self.capacity.len() < nodes as usize {
            return None;
        }
        let gpus: u32 = self.capacity.values().copied().sum::<Option<u32>>()?;
        let known = || gang.standings.values().filter(|standing| standing.size == gang.size);
        let here: u32 = known().map(|standing| standing.members + standing.left).sum();
        let width: u32 = known().map(|standing| standing.width).sum();
        let wanted = width.saturating_add(gang.size.saturating_sub(here));
        (wanted > gpus).then_some(GangRefusal::LargerThanJob { wanted, gpus })
    }

    /// Calls every ready gang that is in the way of none before it.
    fn call(&mut self, now: Time) {
        if self.ready.is_empty() {
            return;
        }
        let mut taken: BTreeSet<(NodeId, Gpu)> = BTreeSet::new();
        for gang in self.gangs.values() {
            if matches!(gang.phase, Phase::Called { .. }) {
                taken.extend(gang.needs());
            }
        }
        let mut called = Vec::new();
        for place in &self.ready {
            let gang = &self.gangs[&place.2];
            if gang.not_before > now {
                continue;
            }
            if gang.needs().all(|need| !taken.contains(&need)) {
                called.push(place.clone());
            }
            taken.extend(gang.needs());
        }
        for place in called {
            self.ready.remove(&place);
            let name = place.2;
            let gang = self.gangs.get_mut(&name).expect("it was just looked at");
            gang.place = None;
            gang.round = Round(gang.round.0 + 1);
            gang.phase = Phase::Called { until: now.after(self.timing.patience), firm: false };
            self.tell(&name);
        }
    }

    /// Notes what the nodes of a gang have to know.
    fn tell(&mut self, name: &GangName) {
        let gang = &self.gangs[name];
        let is_heard_of = |node: &NodeId| self.capacity.contains_key(node);
        if gang.is_over() && !gang.standings.keys().any(is_heard_of) && self.scope != Scope::Node {
            self.gangs.remove(name);
            return;
        }
        // Nodes that have not been heard of may have members.
        let heard_all = match self.scope {
            Scope::Node => true,
            Scope::Job { nodes } => self.capacity.len() >= nodes as usize,
        };
        for (node, standing) in &gang.standings {
            let mut order = gang.order(*node, standing);
            order.over &= heard_all;
            let orders = self.orders.entry(*node).or_default();
            if orders.get(name) != Some(&order) {
                orders.insert(name.clone(), order);
                self.changed.insert(*node);
            }
        }
        if gang.standings.is_empty() {
            self.gangs.remove(name);
        }
    }

    fn next_deadline(&self, now: Time) -> Option<Time> {
        let gangs = self.gangs.values().filter_map(|gang| match gang.phase {
            Phase::Called { until, .. } => Some(until),
            Phase::Out if gang.place.is_some() && gang.not_before > now => Some(gang.not_before),
            _ => None,
        });
        let unsettled = self.settles > now && self.gangs.values().any(|g| g.phase != Phase::Out);
        gangs.chain(unsettled.then_some(self.settles)).min()
    }
}

impl Gang {
    fn new(size: u32) -> Gang {
        Gang {
            size,
            standings: BTreeMap::new(),
            refused: BTreeMap::new(),
            round: Round(0),
            phase: Phase::Out,
            place: None,
            failures: 0,
            not_before: Time(0),
        }
    }

    /// Refuses what a node brings too many.
    fn judge(&mut self, node: NodeId, standing: &Standing) {
        self.refused.retain(|at, (most, _)| *at != node || *most < standing.members);
        // What another node brings too many is on its way out: nobody here makes place for it.
        let others = self.standings.iter().filter(|(at, _)| **at != node);
        let others: u32 = others.map(|(at, other)| self.staying(at, other)).sum();
        let most = self.size.saturating_sub(others);
        if standing.size != self.size {
            let refusal = GangRefusal::SizesDiffer { size: standing.size, others: self.size };
            self.refused.insert(node, (0, refusal));
        } else if standing.members > most {
            self.refused.insert(node, (most, GangRefusal::Full { size: self.size }));
        }
    }

    /// The members of a node, those who are being refused left out.
    fn staying(&self, node: &NodeId, standing: &Standing) -> u32 {
        let most = self.refused.get(node).map_or(u32::MAX, |(most, _)| *most);
        standing.members.min(most)
    }

    /// All members have come, those who are being refused left out, and some are there still.
    fn is_whole(&self, scope: Scope) -> bool {
        let counted = self
            .standings
            .iter()
            .map(|(node, standing)| (self.staying(node, standing), standing.left));
        let counted: Vec<(u32, u32)> = counted.filter(|(here, left)| here + left > 0).collect();
        let here: u32 = counted.iter().map(|(here, _)| here).sum();
        let left: u32 = counted.iter().map(|(_, left)| left).sum();
        here > 0 && here + left >= self.size && (counted.len() > 1) == (scope != Scope::Node)
    }

    /// Those of its members that have come have gone, and none can come back.
    fn is_over(&self) -> bool {
        self.standings.values().all(|standing| standing.members + standing.away == 0)
    }

    fn priority(&self) -> i32 {
        let with_members = self.standings.values().filter(|standing| standing.members > 0);
        with_members.map(|standing| standing.priority).max().unwrap_or(0)
    }

    fn needs(&self) -> impl Iterator<Item = (NodeId, Gpu)> {
        let standings = self.standings.iter();
        standings.flat_map(|(node, standing)| standing.gpus.iter().map(|gpu| (*node, *gpu)))
    }

    /// True if it could be called.
    fn is_ready(&self, is_whole: bool) -> bool {
        let waiting: u32 = self.standings.values().map(|standing| standing.waiting).sum();
        let members: u32 = self.standings.values().map(|standing| standing.members).sum();
        self.phase == Phase::Out
            && is_whole
            && (waiting == members || self.standings.values().any(|standing| standing.urgent))
    }

    /// One transition; false if there is none.
    fn step(&mut self, is_whole: bool, missed: bool, now: Time, timing: &Timing) -> bool {
        let latest = self.standings.values().map(|standing| standing.round).max();
        if let Some(latest) = latest.filter(|latest| *latest > self.round) {
            self.adopt(latest, now, timing);
            return true;
        }
        let round = self.round;
        let all = |stage: fn(Stage) -> bool| {
            let mut there = self.standings.values().filter(|it| it.members > 0);
            there.all(|it| it.round == round && stage(it.stage))
        };
        // Who has not heard of the round yet is in an earlier one, and Out.
        let ended = |it: &Standing| {
            let is_over = matches!(it.stage, Stage::Out | Stage::Ending);
            if it.round == round { is_over } else { it.stage != Stage::Out }
        };
        let holds = |it: &Standing| it.round == round && is_holding(it.stage);
        let has_ended = missed || self.standings.values().any(ended);
        let next = match self.phase {
            Phase::Out if self.standings.values().any(|it| it.stage != Stage::Out) => Phase::Ending,
            Phase::Out => return false,
            Phase::Called { until, .. } if has_ended || until <= now => {
                self.failures = self.failures.saturating_add(1);
                let doubled = timing.pause * 2_u32.saturating_pow(self.failures.min(16) - 1);
                self.not_before = now.after(doubled.min(timing.patience));
                Phase::Ending
            }
            // An earlier arbiter has said Go, and this one heard first of a node that Go had not reached.
            Phase::Called { .. } if self.standings.values().any(holds) => Phase::Granted,
            Phase::Called { .. } if is_whole && all(has_kept) => Phase::Granted,
            Phase::Called { until, firm: false } if is_whole && all(can_keep) => {
                Phase::Called { until, firm: true }
            }
            Phase::Called { .. } => return false,
            Phase::Granted if has_ended || !all(has_kept) => Phase::Ending,
            Phase::Granted if all(is_idle) => Phase::Ending,
            // Whoever's memory is on its way elsewhere would have waited for nothing.
            Phase::Granted if self.is_due() && all(is_served) => Phase::Ending,
            Phase::Granted => {
                if all(is_holding) {
                    self.failures = 0;
                }
                return false;
            }
            Phase::Ending if self.standings.values().all(|it| self.is_over_for(it)) => Phase::Out,
            Phase::Ending => return false,
        };
        self.phase = next;
        true
    }

    /// Goes on with a round that nodes know and this arbiter does not.
    fn adopt(&mut self, round: Round, now: Time, timing: &Timing) {
        let knew_better = self.phase != Phase::Out;
        self.round = round;
        let in_it = || self.standings.values().filter(|it| it.round == round).map(|it| it.stage);
        self.phase = if knew_better {
            Phase::Ending
        } else if in_it().any(is_holding) {
            Phase::Granted
        } else if in_it().all(|stage| matches!(stage, Stage::Out | Stage::Ending)) {
            Phase::Ending
        } else {
            let firm = in_it().any(|stage| stage == Stage::Kept);
            Phase::Called { until: now.after(timing.patience), firm }
        };
    }

    fn is_due(&self) -> bool {
        let mut stages = self.standings.values().map(|it| it.stage);
        stages.any(|stage| matches!(stage, Stage::Holding { due: true, .. }))
    }

    fn is_over_for(&self, standing: &Standing) -> bool {
        standing.stage == Stage::Out && (standing.round >= self.round || standing.members == 0)
    }

    fn order(&self, node: NodeId, standing: &Standing) -> GangOrder {
        let wanted = || {
            let stages = self.standings.values().map(|it| it.stage);
            stages.into_iter().any(|stage| matches!(stage, Stage::Holding { wanted: true, .. }))
        };
        let step = match self.phase {
            Phase::Out => None,
            Phase::Called { firm: false, .. } => Some(Step::Keep),
            Phase::Called { firm: true, .. } => Some(Step::Firm),
            Phase::Granted => Some(Step::Go { wanted: wanted() }),
            Phase::Ending => (!self.is_over_for(standing)).then_some(Step::End),
        };
        GangOrder {
            step: step.map(|step| (self.round, step)),
            priority: self.priority(),
            most: self.refused.get(&node).cloned(),
            over: self.is_over(),
        }
    }
}

fn can_keep(stage: Stage) -> bool {
    matches!(stage, Stage::Reachable | Stage::Kept)
}

fn has_kept(stage: Stage) -> bool {
    stage == Stage::Kept || is_holding(stage)
}

fn is_holding(stage: Stage) -> bool {
    matches!(stage, Stage::Holding { .. })
}

fn is_served(stage: Stage) -> bool {
    matches!(stage, Stage::Holding { served: true, .. })
}

fn is_idle(stage: Stage) -> bool {
    matches!(stage, Stage::Holding { busy: false, .. })
}
