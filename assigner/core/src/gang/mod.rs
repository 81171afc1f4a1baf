//! Gangs: clients that hold their leases at the same time, on one node or on several, or none does.
//!
//! Owns: who of a gang is where, the order of the gangs, and the rounds in which a gang gets its
//! leases. Does not own: which GPUs a member gets, and when they are free (the scheduler, through
//! [`NodeAction`] and [`NodeEvent`]); connections.
//!
//! | file | is |
//! | --- | --- |
//! | `node.rs` | a node's part: its members, and what they hold of a round |
//! | `arbiter.rs` | the decisions: which gang is called, when it holds, when its round ends |
//! | `controller.rs` | the controller: an arbiter that hears of several nodes |
//! | `seats.rs` | a round on the GPUs of the scheduler |
//! | `link.rs` | how the two keep each other's latest state, over a network that loses and reorders |
//! | `message.rs` | what they tell each other |
//!
//! A gang is whole once as many members have come as its size. Who has gone is not waited for: the others hold
//! their leases together without it, as ranks do not end at the same moment. What makes a gang impossible
//! is told to all of its members at once, wherever they are.
//!
//! A gang that is whole on one node is decided there, by an arbiter of the node's own; the controller
//! hears of it, but is not asked. For all others:
//!
//! ```text
//!   node                                                    controller
//!   Out        all members wait, or one has for long    ──► call the first of those in conflict
//!   Keeping    ◄── Keep: GPUs are kept as they come free
//!   Reachable  all are kept, or lent and can be recalled ──► once all nodes can reach theirs
//!   Kept       ◄── Firm: nothing is lent any more        ──► once all nodes have theirs
//!   Holding    ◄── Go: members that wait are granted; for those that do not, GPUs stay kept
//!   … due      others may have a GPU of it               ──► End once all nodes are served
//!   … served   all members here have had their turn
//!   Ending     ◄── End: nothing is kept any more, what is held is recalled; then Out
//! ```
//!
//! *All or none*: Go is said only when every node has every GPU free and kept, and no node lets go
//! of that by itself unless a member ends. *No deadlock*: of gangs that could be in each other's
//! way one at a time is called; its keeping ends by Go or by a time-out. *Faults*: every stage of
//! a node ends, by an order or, without a controller, by itself; a round that has ended anywhere is
//! ended everywhere. Messages carry states, not changes: the latest is enough, and old ones harm
//! nobody.

mod arbiter;
mod controller;
mod link;
mod message;
mod node;
mod seats;

pub use controller::{Controller, ControllerAction, ControllerEvent};
pub use message::{
    GangName, GangOrder, GangRefusal, GangSpec, Limit, LimitOf, Message, NodeId, Order, Orders,
    Report, Round, Session, Site, Stage, Standing, Step,
};
pub use node::{GangSnapshot, Newcomer, Node, NodeAction, NodeConfig, NodeEvent};

pub(crate) use seats::{Gangs, Member, Seat};

use std::time::Duration;

/// The spans that gangs are run by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// How long members may be apart. After that a gang starts although some of its members do not
    /// wait (their GPUs are kept idle for them), and a round that others wait for ends although some
    /// of its members are still at work, once all have had their turn.
    pub slack: Duration,
    /// How long GPUs are kept for a gang that cannot start.
    pub patience: Duration,
    /// The first pause after that; it doubles with every further time, up to `patience`.
    pub pause: Duration,
    /// How long a lost connection may take to come back before what depends on it ends.
    pub lost: Duration,
    /// When a message that nobody has confirmed is said again.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            slack: Duration::from_secs(1),
            patience: Duration::from_secs(60),
            pause: Duration::from_secs(1),
            lost: Duration::from_secs(10),
            retry: Duration::from_millis(500),
        }
    }
}
