//! What nodes and their controller tell each other of gangs: whole states, of which the latest counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::ids::Gpu;

/// What the members of a gang call it. It is one gang all over the job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GangName(pub Arc<str>);

impl From<&str> for GangName {
    fn from(name: &str) -> GangName {
        GangName(name.into())
    }
}

impl fmt::Display for GangName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gang {}", self.0)
    }
}

/// The gang that a client belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GangSpec {
    /// Its name.
    pub name: GangName,
    /// How many clients it has, over all nodes.
    pub size: u32,
}

/// A node of the job, numbered by the caller; the order of the numbers means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// A connection between a node and its controller. A later one of the same node has a higher
/// number, also after a restart of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(pub u64);

/// One attempt of a gang to hold its leases; grows with every attempt of that gang.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Round(pub u64);

/// How far a gang is on one node; the module's documentation has the diagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// In no round: nothing is kept or held.
    Out,
    /// GPUs are kept as they come free.
    Keeping,
    /// All are kept, or lent and can be recalled at once.
    Reachable,
    /// All are free and kept.
    Kept,
    /// Members hold leases, or have GPUs kept for them.
    Holding {
        /// Some member holds or wants its lease.
        busy: bool,
        /// Somebody else waits for a GPU of the gang.
        wanted: bool,
        /// All members here that asked have had their turn: their memory was there, and their quantum is over.
        served: bool,
        /// Somebody else may have a GPU of the gang as soon as all of its members have had their turn.
        due: bool,
    },
    /// What is held is on its way back.
    Ending,
}

/// How a gang stands on one node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Standing {
    /// How many clients it has, over all nodes.
    pub size: u32,
    /// Its clients on this node.
    pub members: u32,
    /// Clients that were members here and have gone. They are not waited for.
    pub left: u32,
    /// Clients that were members here before the node's part began anew, and may come back.
    pub away: u32,
    /// Those of them that wait for a lease.
    pub waiting: u32,
    /// One of them has waited so long that the gang should start without the others' asking.
    pub urgent: bool,
    /// The highest level of its members, as one number: the priority of the queue, then its own.
    pub priority: i32,
    /// GPUs that its members need together.
    pub width: u32,
    /// GPUs that they can be on. Gangs that share one are in each other's way.
    pub gpus: BTreeSet<Gpu>,
    /// The latest round that the node knows of.
    pub round: Round,
    /// How far that round is.
    pub stage: Stage,
    /// Why the gang can never hold its leases, as this node knows.
    pub refusal: Option<GangRefusal>,
}

/// The gangs of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Site {
    /// GPUs that have one holder at a time; `None` where a GPU has several.
    pub gpus: Option<u32>,
    /// Gangs with members on it.
    pub gangs: BTreeMap<GangName, Standing>,
}

/// What a node has to do with a gang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Keep GPUs for it.
    Keep,
    /// Have them free.
    Firm,
    /// Grant.
    Go {
        /// Somebody waits for a GPU of the gang, on whatever node.
        wanted: bool,
    },
    /// Let go, recall.
    End,
}

/// What a node is told of a gang.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GangOrder {
    /// What to do in which round; `None`: wait.
    pub step: Option<(Round, Step)>,
    /// The highest level of its members on all nodes: each of them has it.
    pub priority: i32,
    /// No more members than this may stay on the node, and why.
    pub most: Option<(u32, GangRefusal)>,
    /// All of its members have gone, on all nodes: it can be forgotten.
    pub over: bool,
}

/// What a node is told.
pub type Orders = BTreeMap<GangName, GangOrder>;

/// A state on its way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message<T> {
    /// The connection that it belongs to.
    pub session: Session,
    /// Number of the state within the session, from 1.
    pub seq: u64,
    /// The latest state of the other side's that has been received; 0: none.
    pub heard: u64,
    /// The sender does not know yet that this state has been received.
    pub ask: bool,
    /// The state.
    pub state: T,
}

/// From a node to the controller.
pub type Report = Message<Site>;
/// From the controller to a node.
pub type Order = Message<Orders>;

/// Why a client cannot be in a gang.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum GangRefusal {
    /// Members say different sizes.
    #[error(
        "the gang has {others} members according to the others, and {size} according to this one; say the same size"
    )]
    SizesDiffer {
        /// What it says.
        size: u32,
        /// What those before it said.
        others: u32,
    },
    /// The gang is full.
    #[error(
        "the gang has its {size} members already; give another gang another name, or a larger size"
    )]
    Full {
        /// Its size.
        size: u32,
    },
    /// The members on one node need more GPUs than it has.
    #[error(
        "its members on one node need {wanted} GPUs at the same time, but only {gpus} can be used there; spread them over more nodes or use fewer"
    )]
    LargerThanNode {
        /// GPUs that they need together.
        wanted: u32,
        /// GPUs that there are for them.
        gpus: u32,
    },
    /// The gang needs more GPUs than there are.
    #[error(
        "the gang needs at least {wanted} GPUs at the same time, but the job has {gpus}; make it smaller"
    )]
    LargerThanJob {
        /// GPUs that it needs at least.
        wanted: u32,
        /// GPUs of all nodes.
        gpus: u32,
    },
    /// The members on one node need more GPUs than a limit lets them have.
    #[error("its members on one node need {wanted} GPUs at the same time, but {limit}")]
    BeyondLimit {
        /// GPUs that they need together.
        wanted: u32,
        /// The limit.
        limit: Limit,
    },
    /// One of its members was refused, and without it the others would wait for ever.
    #[error("one of its members was refused: {0}")]
    Member(Arc<str>),
}

/// How many GPUs of a node clients may hold at once that have something in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Limit {
    /// Whose limit it is.
    pub of: LimitOf,
    /// Its name.
    pub name: Arc<str>,
    /// GPUs that it allows.
    pub most: u32,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LimitOf {
    /// A tenant's.
    Tenant,
    /// A queue's.
    Queue,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self.of {
            LimitOf::Tenant => "tenant",
            LimitOf::Queue => "queue",
        };
        write!(f, "{of} \"{}\" holds {} at most", self.name, self.most)
    }
}
