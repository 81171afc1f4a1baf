//! What the scheduler keeps: clients, their leases, those that wait, GPUs.
//!
//! Owns: the records. Does not own: how they change (`scheduler`).

use std::collections::BTreeSet;
use std::time::Duration;

use crate::estimator::{Estimator, Peaks};
use crate::event::{Cause, Eligible};
use crate::gang::Member;
use crate::gpu_list::GpuList;
use crate::gpu_set::GpuSet;
use crate::ids::{ClientId, Epoch, Time};
use crate::order::{LaneKey, Level, Line, Place};
use crate::queue::QueueId;
use crate::sorted::Sorted;
use crate::table::Number;
use crate::tenant::{TenantId, Used};

/// The order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

impl Number for Ticket {
    fn number(self) -> u64 {
        self.0
    }
}

/// A client that waits for a lease.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    pub(crate) client: ClientId,
    /// How long it will hold the lease, where that is known.
    pub(crate) estimate: Option<Duration>,
    /// Later clients that started on GPUs kept for this one.
    pub(crate) bypassed: u32,
    pub(crate) reservation: Option<Reservation>,
    /// When all that hold a GPU that it could use are told, if it can use any.
    pub(crate) asks_at: Option<Time>,
    /// Where it stands among those of its lane.
    pub(crate) place: Place,
    /// What it has used already of its quantum: it gave way before that was over.
    pub(crate) spent: Duration,
    /// The requests whose leases have been recalled at once for this one: each makes way for it only once.
    pub(crate) made_way: Vec<Ticket>,
    /// Whether it was within its tenant's guarantee when GPUs were kept for it.
    pub(crate) entitled: bool,
}

/// A request whose lease was recalled at once, for a guarantee or a higher level. It goes on where it was.
#[derive(Clone, Debug)]
pub(crate) struct GaveWay {
    pub(crate) ticket: Ticket,
    pub(crate) at: Time,
    /// What it had of its quantum.
    pub(crate) spent: Duration,
    /// The requests that had made way for it.
    pub(crate) made_way: Vec<Ticket>,
}

/// What a waiting client has been promised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reservation {
    /// When GPUs were first kept for it.
    pub(crate) since: Time,
    /// When it will start if the estimates are right.
    pub(crate) expected: Time,
    /// When the last holder in its way is recalled, however wrong the estimates are. Only for the
    /// first in line on its GPUs; never moved back.
    pub(crate) promised: Option<Time>,
}

/// A granted lease.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) epoch: Epoch,
    pub(crate) gpus: GpuList,
    pub(crate) granted: Time,
    /// All of the holder's memory is on the GPUs.
    pub(crate) is_ready: bool,
    /// What of its memory was not there when it was granted.
    pub(crate) lacked: u64,
    /// When the holder last got room for its memory.
    pub(crate) progress: Time,
    /// When its quantum began.
    pub(crate) started: Time,
    /// Its quantum is at least so long: what the switch to it was worth.
    pub(crate) least: Duration,
    /// Its quantum is so much shorter: an earlier lease for the same request had that much.
    pub(crate) spent: Duration,
    /// The requests that made way for the one that it was granted for.
    pub(crate) made_way: Vec<Ticket>,
    /// The request that it was granted for.
    pub(crate) ticket: Option<Ticket>,
    /// When the holder expects to be done.
    pub(crate) ends: Option<Time>,
    /// A backfilled lease is recalled when the one it went before could start.
    pub(crate) yields: Option<Time>,
    /// The waiting clients that it was let go before.
    pub(crate) passed: Vec<Ticket>,
    /// What the client had been promised when it waited.
    pub(crate) promised: Option<Time>,
    /// The client knows of it. Others are seats of a gang (`gang::seats`).
    pub(crate) is_told: bool,
    pub(crate) wanted: bool,
    pub(crate) recalled: Option<Time>,
    /// Why.
    pub(crate) cause: Option<Cause>,
    /// It was recalled long ago, but the client does not stop.
    pub(crate) stuck: bool,
    /// Its entry in the timers: the recall, or the end of patience after it.
    pub(crate) timer: Option<Time>,
}

#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) id: ClientId,
    /// GPUs of a lease.
    pub(crate) width: u32,
    pub(crate) tenant: TenantId,
    pub(crate) queue: QueueId,
    pub(crate) level: Level,
    /// GPU time that it has used.
    pub(crate) used: Used,
    /// The request with which it had to give way.
    pub(crate) gave_way: Option<GaveWay>,
    pub(crate) eligible: Eligible,
    /// In the client's device order; empty until it is bound.
    pub(crate) bound: GpuList,
    /// What its latest lease covered, for affinity.
    pub(crate) last: GpuList,
    pub(crate) waiting: Option<Ticket>,
    pub(crate) lease: Option<Box<Lease>>,
    /// Its part in its gang.
    pub(crate) member: Option<Member>,
    /// False while its gang is not ready: its requests wait without a place in the order.
    pub(crate) let_go: bool,
    pub(crate) estimator: Estimator,
    /// Only with the policy that needs it.
    pub(crate) peaks: Option<Box<Peaks>>,
    /// When it entered the present state.
    pub(crate) since: Time,
    pub(crate) grants: u64,
    pub(crate) waited: Duration,
    pub(crate) held: Duration,
    /// Device memory that it may have on each GPU.
    pub(crate) memory_limit: Option<u64>,
    /// What it cost to begin its latest lease.
    pub(crate) switch: Duration,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct GpuState {
    pub(crate) holders: Vec<ClientId>,
    /// Clients of an earlier life that may still hold a lease here.
    pub(crate) claimed: BTreeSet<ClientId>,
    /// The waiting client that it is kept for.
    pub(crate) reserved: Option<Ticket>,
    /// Waiting clients that are bound to it, in their order…
    pub(crate) line: Line,
    /// …and by arrival; those whose gang is not ready included.
    pub(crate) waiting: Sorted<Ticket>,
    /// Those of `line` that wait for other GPUs, too.
    pub(crate) wide: Sorted<Ticket>,
    /// Clients bound to it, those expected back included.
    pub(crate) bound: BTreeSet<ClientId>,
    /// Time that the clients now bound to it have held it.
    pub(crate) load: Duration,
    pub(crate) busy_since: Option<Time>,
    pub(crate) held: Duration,
    pub(crate) grants: u64,
    /// Time that holders have spent on getting their memory onto it.
    pub(crate) switching: Duration,
    /// Bytes that came in that time.
    pub(crate) moved: u64,
}

impl Client {
    /// It wants a lease: not only its gang does, for which it stands in line with this ticket.
    pub(crate) fn asks_for(&self, ticket: Option<Ticket>) -> bool {
        self.member.as_ref().map_or(ticket.is_some(), |member| member.asks)
    }

    /// The lease that it knows of.
    pub(crate) fn known_lease(&self) -> Option<&Lease> {
        self.lease.as_deref().filter(|lease| lease.is_told)
    }

    /// The lane in which it waits.
    pub(crate) fn lane(&self) -> LaneKey {
        LaneKey { level: self.level, tenant: self.tenant, queue: self.queue, width: self.width }
    }
}

/// What must be planned again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) gpus: GpuSet,
    pub(crate) all: bool,
}

impl Dirty {
    pub(crate) fn is_empty(&self) -> bool {
        self.gpus.is_empty() && !self.all
    }
}
