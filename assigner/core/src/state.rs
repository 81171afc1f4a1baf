//! What the scheduler keeps: clients, their leases, those that wait, GPUs.
//!
//! At a thousand nodes, what a decision costs is the memory that it touches for the first time in a while, 64 bytes at once. So
//! records begin at such a boundary, and what is looked at together stands together.
//!
//! Owns: the records. Does not own: how they change (`scheduler`).

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::time::Duration;

use crate::estimator::{Estimator, Peaks};
use crate::event::{Cause, Eligible};
use crate::few::{Blank, Few, GpuList};
use crate::gang::Member;
use crate::gpu_set::GpuSet;
use crate::ids::{ClientId, Epoch, Time};
use crate::order::{LaneKey, Level, Line, Place};
use crate::queue::QueueId;
use crate::recall::NEVER;
use crate::sorted::Sorted;
use crate::span::Span;
use crate::table::{Number, Record};
use crate::tenant::{TenantId, Used};

/// The order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(NonZeroU64);

impl Ticket {
    pub(crate) fn next(self) -> Ticket {
        Ticket(self.0.saturating_add(1))
    }
}

/// The first.
impl Default for Ticket {
    fn default() -> Ticket {
        Ticket(NonZeroU64::MIN)
    }
}

impl Blank for Ticket {
    const BLANK: Ticket = Ticket(NonZeroU64::MIN);
}

impl Number for Ticket {
    fn number(self) -> u64 {
        self.0.get()
    }
}

/// A client that waits for a lease.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Waiter {
    // A plan looks at these.
    /// Where it stands among those of its lane.
    pub(crate) place: Place,
    pub(crate) client: ClientId,
    pub(crate) reservation: Option<Reservation>,
    // And at these now and then.
    /// How long it will hold the lease, where that is known.
    pub(crate) estimate: Option<Duration>,
    /// When all that hold a GPU that it could use are told, if it can use any.
    pub(crate) asks_at: Option<Time>,
    /// The requests whose leases have been recalled at once for this one: each makes way for it only once.
    pub(crate) made_way: Tickets,
    /// What it has used already of its quantum: it gave way before that was over.
    pub(crate) spent: Span,
    /// When GPUs were first kept for it; the end of time: never yet.
    pub(crate) kept_since: Time,
    /// Later clients that started on GPUs kept for this one.
    pub(crate) bypassed: u32,
    /// Whether it was within its tenant's guarantee when GPUs were kept for it.
    pub(crate) entitled: bool,
}

impl Waiter {
    /// How it has been passed.
    pub(crate) fn bypass(&self) -> Bypass {
        Bypass { since: self.kept_since, count: self.bypassed }
    }
}

impl Record<Ticket> for Waiter {
    fn key(&self) -> &Ticket {
        &self.place.ticket
    }
}

/// Requests.
pub(crate) type Tickets = Few<Ticket, 1>;

/// A request whose lease was recalled at once, for a guarantee or a higher level. It goes on where it was.
#[derive(Clone, Debug, Default)]
pub(crate) struct GaveWay {
    pub(crate) ticket: Ticket,
    pub(crate) at: Time,
    /// What it had of its quantum.
    pub(crate) spent: Span,
    /// The requests that had made way for it.
    pub(crate) made_way: Tickets,
    pub(crate) bypass: Bypass,
}

/// How a request has been passed; it counts on when that gave way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bypass {
    /// When GPUs were first kept for it; the end of time: never yet.
    pub(crate) since: Time,
    /// Later clients that started on GPUs kept for it.
    pub(crate) count: u32,
}

impl Default for Bypass {
    fn default() -> Bypass {
        Bypass { since: NEVER, count: 0 }
    }
}

/// What a waiting client has been promised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reservation {
    /// When it will start if the estimates are right.
    pub(crate) expected: Time,
    /// When the last holder in its way is recalled, however wrong the estimates are. Only for the
    /// first in line on its GPUs; never moved back.
    pub(crate) promised: Option<Time>,
}

/// A granted lease.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Lease {
    // What a plan asks of all leases…
    pub(crate) recalled: Option<Time>,
    /// The waiting clients that it was let go before.
    pub(crate) passed: Tickets,
    pub(crate) gpus: GpuList,
    /// All of the holder's memory is on the GPUs.
    pub(crate) is_ready: bool,
    /// The client knows of it. Others are seats of a gang (`gang::seats`).
    pub(crate) is_told: bool,
    /// An earlier one of the same round of a gang has had its quantum.
    pub(crate) is_again: bool,
    /// Its time is over, which its gang has been told.
    pub(crate) is_due: bool,
    pub(crate) wanted: bool,
    /// It was recalled long ago, but the client does not stop.
    pub(crate) stuck: bool,
    /// Why it was recalled.
    pub(crate) cause: Option<Cause>,
    pub(crate) epoch: Epoch,
    // … of those in somebody's way…
    /// When its quantum began.
    pub(crate) started: Time,
    /// Its quantum is at least so long: what the switch to it was worth.
    pub(crate) least: Span,
    /// Its quantum is so much shorter: an earlier lease for the same request had that much.
    pub(crate) spent: Span,
    /// When the holder expects to be done; the end of time: nobody knows.
    pub(crate) ends: Time,
    /// A backfilled lease is recalled when the one it went before could start; the end of time: it is none.
    pub(crate) yields: Time,
    /// Its entry in the timers: the recall, or the end of patience after it.
    pub(crate) timer: Option<Time>,
    pub(crate) granted: Time,
    // … and now and then.
    /// The request that it was granted for.
    pub(crate) ticket: Option<Ticket>,
    /// What the client had been promised when it waited; the end of time: nothing.
    pub(crate) promised: Time,
    /// When the holder last got room for its memory.
    pub(crate) progress: Time,
    /// What of its memory was not there when it was granted.
    pub(crate) lacked: u64,
    /// The requests that made way for the one that it was granted for.
    pub(crate) made_way: Tickets,
    pub(crate) bypass: Bypass,
}

#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Client {
    // What a plan asks of those who hold or wait.
    pub(crate) id: ClientId,
    pub(crate) lease: Option<Box<Lease>>,
    pub(crate) waiting: Option<Ticket>,
    /// GPU time that it has used.
    pub(crate) used: Used,
    pub(crate) level: Level,
    /// GPUs of a lease.
    pub(crate) width: u32,
    pub(crate) tenant: TenantId,
    pub(crate) queue: QueueId,
    /// False while its gang is not ready: its requests wait without a place in the order.
    pub(crate) let_go: bool,
    /// It was told that it gets nothing any more; what it has is counted until it leaves.
    pub(crate) is_refused: bool,
    /// Its part in its gang.
    pub(crate) member: Option<Box<Member>>,
    /// Only with the policy that needs it.
    pub(crate) peaks: Option<Box<Peaks>>,
    // Where it may run.
    pub(crate) eligible: Eligible,
    /// In the client's device order; empty until it is bound.
    pub(crate) bound: GpuList,
    /// What its latest lease covered, for affinity.
    pub(crate) last: GpuList,
    // What changes with every lease.
    /// When it entered the present state.
    pub(crate) since: Time,
    pub(crate) grants: u64,
    pub(crate) waited: Span,
    pub(crate) held: Span,
    /// When it last gave a lease back because it had to; the end of time: never yet.
    pub(crate) cut: Time,
    /// The request with which it had to give way.
    pub(crate) gave_way: Option<Box<GaveWay>>,
    /// What it cost to begin its latest lease.
    pub(crate) switch: Span,
    pub(crate) estimator: Estimator,
    /// Device memory that it may have on each GPU.
    pub(crate) memory_limit: Option<u64>,
}

impl Record<ClientId> for Client {
    fn key(&self) -> &ClientId {
        &self.id
    }
}

#[derive(Clone, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct GpuState {
    // What a plan asks of every GPU.
    pub(crate) holders: Few<ClientId, 1>,
    /// Clients of an earlier life that may still hold a lease here.
    pub(crate) claimed: Few<ClientId, 1>,
    /// The waiting client that it is kept for.
    pub(crate) reserved: Option<Ticket>,
    /// Waiting clients that are bound to it, in their order…
    pub(crate) line: Line,
    /// …and by arrival; those whose gang is not ready included.
    pub(crate) waiting: Sorted<Ticket>,
    /// Those of `line` that wait for other GPUs, too.
    pub(crate) wide: Sorted<Ticket>,
    // What changes with every lease.
    /// Who had to give it back last, with fair share.
    pub(crate) cut: Option<ClientId>,
    pub(crate) busy_since: Option<Time>,
    pub(crate) held: Span,
    pub(crate) grants: u64,
    /// Time that the clients now bound to it have held it.
    pub(crate) load: Span,
    /// Clients bound to it, those expected back included.
    pub(crate) bound: BTreeSet<ClientId>,
    /// Time that holders have spent on getting their memory onto it.
    pub(crate) switching: Span,
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

    /// True if it had to give its lease back less than a quantum ago: what it wants then it has wanted all the time.
    pub(crate) fn was_cut(&self, now: Time, quantum: Duration) -> bool {
        self.cut <= now && now.since(self.cut) < quantum
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
