//! What a node's part is told, what it answers, and what it shows of a gang.
//!
//! Owns: the types. Does not own: what follows from them ([`Node`](super::Node)).

use std::collections::BTreeSet;

use super::super::Timing;
use super::super::message::{
    GangName, GangRefusal, GangSpec, Limit, Order, Report, Round, Session, Stage,
};
use crate::ids::{ClientId, Gpu, Time};

/// What a node's part is told once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeConfig {
    /// GPUs of the node.
    pub gpus: u32,
    /// A GPU has one holder at a time.
    pub exclusive: bool,
    /// The job has no other node: a gang is whole here or never.
    pub alone: bool,
    /// The spans.
    pub timing: Timing,
}

/// A member as it joins.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Newcomer {
    /// Its number.
    pub client: ClientId,
    /// Its gang.
    pub gang: GangSpec,
    /// GPUs of its lease.
    pub width: u32,
    /// GPUs that it can be on.
    pub gpus: BTreeSet<Gpu>,
    /// Its own priority.
    pub priority: i32,
    /// What it may hold together with others.
    pub limits: Vec<Limit>,
    /// It was a member in an earlier life of the assigner.
    pub returns: bool,
    /// It holds a lease from an earlier life of the assigner: of a round that nobody knows any more.
    pub holds: bool,
}

/// What happens to a node's part.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NodeEvent {
    /// A member appears. It may be answered by [`NodeAction::Refuse`].
    Join(Newcomer),
    /// A member is gone, with what it held.
    Leave(ClientId),
    /// A member of the node's earlier life will not come back.
    Gone(GangSpec),
    /// A member of the node's earlier life is not waited for any more: it is back, or will not come.
    Awaited(GangSpec),
    /// Who would have been a member was refused, for a reason that lasts.
    Refused(GangSpec, GangRefusal),
    /// A member is on these GPUs for good.
    Bound(ClientId, BTreeSet<Gpu>),
    /// A member waits for a lease.
    Waits(ClientId),
    /// A member has got its lease.
    Granted(ClientId),
    /// A member holds no lease and waits for none.
    Idle(ClientId),
    /// After [`NodeAction::Keep`]: every GPU of the gang here is free and kept, or lent and can be
    /// recalled at once.
    Reachable(GangName),
    /// After [`NodeAction::Firm`]: every GPU of the gang here is free and kept.
    Kept(GangName),
    /// Somebody else waits for a GPU of the gang.
    Wanted(GangName),
    /// After [`NodeEvent::Granted`]: by then all members here that hold will have had their turn.
    Turn(GangName, Time),
    /// Somebody may have what the gang holds here as soon as all of its members have had their turn.
    Due(GangName),
    /// A lease of the gang was recalled here.
    Recalled(GangName),
    /// After [`NodeAction::End`]: nothing is kept or held for the gang here.
    Freed(GangName),
    /// There is a connection to the controller. It replaces an earlier one.
    Connected(Session),
    /// The connection is lost.
    Disconnected,
    /// The controller says something.
    Order(Order),
    /// The deadline of [`Node::poll_deadline`](super::Node::poll_deadline) has come.
    Timer,
}

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NodeAction {
    /// Send to the controller.
    Send(Report),
    /// Keep GPUs for all members of a gang, as they come free. Until [`NodeAction::Firm`] they may be
    /// lent to leases that can be recalled. Answered by [`NodeEvent::Reachable`].
    Keep {
        /// The gang.
        gang: GangName,
        /// Its members' common priority.
        priority: i32,
    },
    /// Recall what is lent, lend no more. Answered by [`NodeEvent::Kept`].
    Firm(GangName),
    /// Grant to every member that waits, now and until [`NodeAction::End`]; for the others its GPUs
    /// stay kept. Answered by [`NodeEvent::Granted`] for each.
    Grant(GangName),
    /// Tell members that hold a lease that somebody waits for it.
    Want(GangName),
    /// Keep nothing any more, and recall what is held. Answered by [`NodeEvent::Freed`].
    End(GangName),
    /// Tell a client that it cannot be a member. It is none any more.
    Refuse {
        /// The client.
        client: ClientId,
        /// Why.
        reason: GangRefusal,
    },
}

/// A gang as people are shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GangSnapshot {
    /// Its name.
    pub name: GangName,
    /// Members that it has on all nodes when it is whole.
    pub size: u32,
    /// Those on this node.
    pub members: Vec<ClientId>,
    /// The latest round.
    pub round: Round,
    /// How far it is.
    pub stage: Stage,
    /// It is whole on this node, and needs no controller.
    pub is_local: bool,
}
