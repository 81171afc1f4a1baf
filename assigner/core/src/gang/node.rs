//! A node's part: the members of gangs here, and what they hold of a round.
//!
//! Owns: members and their stages, the gangs that are whole here. Does not own GPUs: the scheduler
//! keeps, grants and recalls when a [`NodeAction`] says so, and says when it is done.
//!
//! Without a controller only gangs that are whole here begin a round. What is held in others goes on
//! until the connection has been lost for [`Timing::lost`].

mod events;
mod local;
mod rounds;

pub use events::{GangSnapshot, Newcomer, NodeAction, NodeConfig, NodeEvent};

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Timing;
use super::arbiter::{Arbiter, Scope};
use super::link::Link;
use super::message::{
    GangName, GangOrder, GangRefusal, GangSpec, Limit, NodeId, Orders, Round, Site, Stage,
    Standing, Step,
};
use crate::ids::{ClientId, Gpu, Time};

/// The node's own number for its own arbiter.
const HERE: NodeId = NodeId(0);

/// A node's part. See the module's documentation for the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    config: NodeConfig,
    gangs: BTreeMap<GangName, Local>,
    clients: BTreeMap<ClientId, GangName>,
    /// Who decides about gangs that are whole here.
    arbiter: Arbiter,
    /// Members joined so far.
    joined: u64,
    /// What the controller is told.
    site: Site,
    link: Option<Link<Site, Orders>>,
    lost_at: Option<Time>,
    /// Gangs that are to keep GPUs once those before them are done with keeping.
    line: Vec<GangName>,
    dirty: BTreeSet<GangName>,
    actions: VecDeque<NodeAction>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Local {
    size: u32,
    members: BTreeMap<ClientId, Member>,
    /// Members that have gone, or were refused with their gang.
    left: u32,
    /// Members of the node's earlier life that may come back. Until then nobody forgets the gang.
    away: u32,
    /// Why the gang can never hold its leases. Who comes until then hears the same.
    refusal: Option<(GangRefusal, Time)>,
    round: Round,
    stage: InRound,
    /// Whose decision the present round is.
    route: Route,
    /// Since when somebody else waits for it.
    wanted: Option<Time>,
    /// When the members that hold will have had their turn, as far as is known.
    turn: Option<Time>,
    /// They have had it.
    served: bool,
    /// Somebody may have what the gang holds as soon as all of its members have had their turn.
    due: bool,
    /// It should start though not all of its members ask.
    urgent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Member {
    joined: u64,
    width: u32,
    gpus: BTreeSet<Gpu>,
    priority: i32,
    limits: Vec<Limit>,
    state: Claim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Claim {
    Idle(Time),
    Waits(Time),
    Holds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum InRound {
    Out,
    Keeping { firm: bool },
    Reachable { firm: bool },
    Kept,
    Holding,
    Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Route {
    Here,
    Controller,
}

impl Node {
    /// A node without members and without a controller.
    #[must_use]
    pub fn new(config: NodeConfig) -> Node {
        Node {
            config,
            gangs: BTreeMap::new(),
            clients: BTreeMap::new(),
            arbiter: Arbiter::new(Scope::Node, config.timing, Time(0)),
            joined: 0,
            site: Site { gpus: config.exclusive.then_some(config.gpus), gangs: BTreeMap::new() },
            link: None,
            lost_at: None,
            line: Vec::new(),
            dirty: BTreeSet::new(),
            actions: VecDeque::new(),
        }
    }

    /// Applies an event. What is said of clients and gangs that are not known is ignored.
    pub fn handle(&mut self, event: NodeEvent, now: Time) {
        match event {
            NodeEvent::Join(newcomer) => self.join(newcomer, now),
            NodeEvent::Leave(client) => self.leave(client),
            NodeEvent::Gone(spec) => {
                self.restore(&spec, 1);
                self.dirty.insert(spec.name);
            }
            NodeEvent::Awaited(spec) => {
                let gang = self.gang(&spec);
                gang.away = gang.away.saturating_sub(1);
                self.dirty.insert(spec.name);
            }
            NodeEvent::Refused(spec, reason) => {
                self.gang(&spec);
                self.refuse_all(&spec.name, reason, now);
            }
            NodeEvent::Bound(client, gpus) => self.bound(client, gpus, now),
            NodeEvent::Waits(client) => self.claim(client, Claim::Waits(now)),
            NodeEvent::Granted(client) => self.claim(client, Claim::Holds),
            NodeEvent::Idle(client) => self.claim(client, Claim::Idle(now)),
            NodeEvent::Reachable(name) => self.in_round(name, |gang| {
                if let InRound::Keeping { firm } = gang.stage {
                    gang.stage = InRound::Reachable { firm };
                }
            }),
            NodeEvent::Kept(name) => self.in_round(name, |gang| {
                if let InRound::Keeping { firm: true } | InRound::Reachable { firm: true } =
                    gang.stage
                {
                    gang.stage = InRound::Kept;
                }
            }),
            NodeEvent::Wanted(name) => self.want(&name, now),
            NodeEvent::Turn(name, until) => self.in_round(name, |gang| gang.turn = Some(until)),
            NodeEvent::Due(name) => self.in_round(name, |gang| {
                gang.due |= gang.stage == InRound::Holding;
            }),
            NodeEvent::Recalled(name) => self.end(&name),
            NodeEvent::Freed(name) => self.in_round(name, |gang| {
                if gang.stage == InRound::Ending {
                    gang.stage = InRound::Out;
                    (gang.wanted, gang.turn, gang.due) = (None, None, false);
                }
            }),
            NodeEvent::Connected(session) => {
                self.link = Some(Link::new(session, self.site.clone(), now));
                self.lost_at = None;
            }
            NodeEvent::Disconnected => {
                if self.link.take().is_some() {
                    self.lost_at = Some(now.after(self.config.timing.lost));
                }
            }
            NodeEvent::Order(order) => {
                if self.link.as_mut().is_some_and(|link| link.receive(order)) {
                    self.dirty.extend(self.gangs.keys().cloned());
                }
            }
            NodeEvent::Timer => self.mark_due(now),
        }
        self.follow(now);
    }

    /// The next thing to do; `None` when all is done.
    pub fn poll_action(&mut self) -> Option<NodeAction> {
        self.actions.pop_front()
    }

    /// When to send [`NodeEvent::Timer`], if nothing else happens before.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Time> {
        let gangs = self.gangs.values().filter_map(|gang| gang.deadline(&self.config.timing));
        let link = self.link.as_ref().and_then(Link::deadline);
        let arbiter = self.arbiter.deadline();
        gangs.chain(link).chain(arbiter).chain(self.lost_at).min()
    }

    /// So many members of a gang have gone before this node's part began.
    pub fn restore(&mut self, spec: &GangSpec, left: u32) {
        let gang = self.gang(spec);
        gang.left = (gang.left + left).min(gang.size);
    }

    /// A member of the node's earlier life may come back; [`NodeEvent::Awaited`] says when that is over.
    pub fn expect(&mut self, spec: &GangSpec) {
        self.gang(spec).away += 1;
        self.dirty.insert(spec.name.clone());
    }

    /// What is to be told to [`Node::restore`] after a restart.
    #[must_use]
    pub fn departed(&self) -> Vec<(GangSpec, u32)> {
        let gone = self.gangs.iter().filter(|(_, gang)| gang.left > 0);
        gone.map(|(name, gang)| (GangSpec { name: name.clone(), size: gang.size }, gang.left))
            .collect()
    }

    /// What members have said of a gang.
    #[must_use]
    pub fn spec(&self, name: &GangName) -> Option<GangSpec> {
        let gang = self.gangs.get(name)?;
        Some(GangSpec { name: name.clone(), size: gang.size })
    }

    /// The gang of a client.
    #[must_use]
    pub fn gang_of(&self, client: ClientId) -> Option<&GangName> {
        self.clients.get(&client)
    }

    /// Gangs whose members will have had their turn by now, if what was said last still holds.
    pub fn turns_over(&self, now: Time) -> impl Iterator<Item = &GangName> {
        let is_over = move |gang: &Local| {
            gang.stage == InRound::Holding
                && !gang.served
                && gang.turn.is_some_and(|until| until <= now)
        };
        self.gangs.iter().filter(move |(_, gang)| is_over(gang)).map(|(name, _)| name)
    }

    /// True if a gang's round ends as soon as all of its members have had their turn.
    #[must_use]
    pub fn is_due(&self, gang: &GangName) -> bool {
        self.gangs.get(gang).is_some_and(|gang| gang.due)
    }

    /// The members of a gang here.
    pub fn members(&self, gang: &GangName) -> impl Iterator<Item = ClientId> {
        self.gangs.get(gang).into_iter().flat_map(|gang| gang.members.keys().copied())
    }

    /// The gangs with members here.
    #[must_use]
    pub fn snapshot(&self) -> Vec<GangSnapshot> {
        let gangs = self.gangs.iter().filter(|(_, gang)| !gang.members.is_empty());
        let shown = gangs.map(|(name, gang)| GangSnapshot {
            name: name.clone(),
            size: gang.size,
            members: gang.members.keys().copied().collect(),
            round: gang.round,
            stage: gang.stage(),
            is_local: gang.route == Route::Here,
        });
        shown.collect()
    }

    fn join(&mut self, newcomer: Newcomer, now: Time) {
        let Newcomer { client, gang: spec, width, gpus, priority, limits, returns, holds } =
            newcomer;
        if self.clients.contains_key(&client) {
            return;
        }
        self.joined += 1;
        let joined = self.joined;
        let gang = self.gang(&spec);
        let state = if holds { Claim::Holds } else { Claim::Idle(now) };
        let others = count(gang.members.len());
        let member = Member { joined, width: width.max(1), gpus, priority, limits, state };
        gang.members.insert(client, member);
        let (size, was_in_round) = (gang.size, gang.stage != InRound::Out);
        self.dirty.insert(spec.name.clone());
        self.clients.insert(client, spec.name.clone());
        if size != spec.size {
            return self.refuse(client, GangRefusal::SizesDiffer { size: spec.size, others: size });
        }
        if others >= spec.size {
            return self.refuse(client, GangRefusal::Full { size: spec.size });
        }
        let gang = self.gangs.get_mut(&spec.name).expect("it was just joined");
        let known = gang.refusal.as_ref().map(|(reason, _)| reason.clone());
        if known.is_none() && !returns {
            gang.left = gang.left.saturating_sub(1); // it comes in another's place
        }
        if let Some(reason) = known.or_else(|| gang.impossible(&self.config)) {
            self.refuse_all(&spec.name, reason, now);
        } else if was_in_round && !holds {
            self.end(&spec.name); // that round is without it
        } else if holds {
            // It cannot be known what its round was, nor who else is in it.
            let gang = self.gangs.get_mut(&spec.name).expect("it was just joined");
            match gang.stage {
                InRound::Out => gang.stage = InRound::Holding,
                // What it holds is to end with the others'.
                InRound::Ending => self.actions.push_back(NodeAction::End(spec.name.clone())),
                _ => {}
            }
            self.end(&spec.name);
        }
    }

    /// The gang of a name, a new one if nobody is in it.
    fn gang(&mut self, spec: &GangSpec) -> &mut Local {
        let gang = self.gangs.entry(spec.name.clone()).or_insert_with(|| Local::new(spec.size));
        if gang.members.is_empty() && gang.size != spec.size {
            (gang.size, gang.left, gang.refusal) = (spec.size, 0, None);
        }
        gang
    }

    fn leave(&mut self, client: ClientId) {
        let Some(name) = self.clients.remove(&client) else { return };
        if let Some(gang) = self.gangs.get_mut(&name) {
            gang.members.remove(&client);
            gang.left = (gang.left + 1).min(gang.size);
        }
        // A gang holds together: with one gone, the others do not go on.
        self.end(&name);
        self.dirty.insert(name);
    }

    fn bound(&mut self, client: ClientId, gpus: BTreeSet<Gpu>, now: Time) {
        let Some(name) = self.clients.get(&client).cloned() else { return };
        let Some(gang) = self.gangs.get_mut(&name) else { return };
        if let Some(member) = gang.members.get_mut(&client) {
            member.gpus = gpus;
        }
        let refusal = gang.impossible(&self.config);
        self.dirty.insert(name.clone());
        if let Some(reason) = refusal {
            self.refuse_all(&name, reason, now);
        }
    }

    /// The gang can never hold its leases: all of its members hear so, those that are still to come, too.
    fn refuse_all(&mut self, name: &GangName, reason: GangRefusal, now: Time) {
        self.end(name);
        let Some(gang) = self.gangs.get_mut(name) else { return };
        let members: Vec<ClientId> = gang.members.keys().copied().collect();
        gang.left = (gang.left + count(members.len()).max(1)).min(gang.size);
        let until = now.after(self.config.timing.patience);
        gang.refusal.get_or_insert((reason.clone(), until));
        for client in members {
            self.refuse(client, reason.clone());
        }
        self.dirty.insert(name.clone());
    }

    fn refuse(&mut self, client: ClientId, reason: GangRefusal) {
        self.actions.push_back(NodeAction::Refuse { client, reason });
        if let Some(name) = self.clients.remove(&client) {
            if let Some(gang) = self.gangs.get_mut(&name) {
                gang.members.remove(&client);
            }
            self.dirty.insert(name);
        }
    }

    fn claim(&mut self, client: ClientId, state: Claim) {
        let Some(name) = self.clients.get(&client) else { return };
        let member = self.gangs.get_mut(name).and_then(|gang| gang.members.get_mut(&client));
        let Some(member) = member else { return };
        let is_same = std::mem::discriminant(&member.state) == std::mem::discriminant(&state);
        if !is_same {
            member.state = state;
            self.dirty.insert(name.clone());
        }
    }

    fn in_round(&mut self, name: GangName, change: impl FnOnce(&mut Local)) {
        if let Some(gang) = self.gangs.get_mut(&name) {
            change(gang);
            self.dirty.insert(name);
        }
    }

    fn want(&mut self, name: &GangName, now: Time) {
        let Some(gang) = self.gangs.get_mut(name) else { return };
        if gang.stage == InRound::Holding && gang.wanted.is_none() {
            gang.wanted = Some(now);
            self.actions.push_back(NodeAction::Want(name.clone()));
            self.dirty.insert(name.clone());
        }
    }

    /// Ends a round here; the arbiter will hear of it and end it everywhere.
    fn end(&mut self, name: &GangName) {
        let Some(gang) = self.gangs.get_mut(name) else { return };
        if !matches!(gang.stage, InRound::Out | InRound::Ending) {
            gang.stage = InRound::Ending;
            self.actions.push_back(NodeAction::End(name.clone()));
            self.dirty.insert(name.clone());
        }
    }

    fn mark_due(&mut self, now: Time) {
        let timing = &self.config.timing;
        let due =
            self.gangs.iter().filter(|(_, gang)| gang.deadline(timing).is_some_and(|at| at <= now));
        self.dirty.extend(due.map(|(name, _)| name.clone()));
    }
}

impl Standing {
    /// What the controller is told of a gang that it has nothing to do with.
    fn without_news(&self) -> Standing {
        Standing { waiting: 0, urgent: false, stage: Stage::Out, ..self.clone() }
    }
}

/// How many wishes for a GPU can come true at the same time.
pub(crate) fn placed(wishes: &[&BTreeSet<Gpu>]) -> usize {
    let mut taken: BTreeMap<Gpu, usize> = BTreeMap::new();
    let wish = |wish: &usize| place(*wish, wishes, &mut taken, &mut BTreeSet::new());
    (0..wishes.len()).filter(wish).count()
}

/// Finds a GPU for a wish, moving earlier ones where it must (augmenting paths).
fn place(
    wish: usize,
    wishes: &[&BTreeSet<Gpu>],
    taken: &mut BTreeMap<Gpu, usize>,
    tried: &mut BTreeSet<Gpu>,
) -> bool {
    for gpu in wishes[wish] {
        if tried.insert(*gpu) {
            let before = taken.get(gpu).copied();
            if before.is_none_or(|before| place(before, wishes, taken, tried)) {
                taken.insert(*gpu, wish);
                return true;
            }
        }
    }
    false
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
