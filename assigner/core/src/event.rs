//! What goes into the scheduler and what comes out: [`Event`]s, [`Action`]s and what they carry.

use std::time::Duration;

use crate::config::Policy;
use crate::gang;
use crate::ids::{ClientId, Epoch, Gpu, Priority};

/// What a client says of itself when it joins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientSpec {
    /// GPUs that one lease of it covers; 0 counts as 1.
    pub gpus: u32,
    /// The GPUs it may be placed on.
    pub eligible: Eligible,
    /// What it holds from an earlier life of the assigner.
    pub held: Option<Held>,
    /// True if what it holds is a lease alone: any other GPUs will do for its next one.
    pub unbound: bool,
    /// Within its queue, the higher goes first, and takes GPUs from the lower.
    pub priority: Priority,
    /// Whose quota and share it counts for; empty: those of nobody in particular.
    pub tenant: String,
    /// Where it waits; empty: the queue without a name.
    pub queue: String,
    /// Its gang. A member waits until all members of its gang can hold their leases.
    pub gang: Option<gang::GangSpec>,
    /// Device memory that it may have on each of its GPUs, contexts included.
    pub memory_limit: Option<u64>,
}

/// What a client has of a GPU's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// What cannot be moved: contexts, and what the client says so of.
    pub fixed: u64,
    /// Paged memory, wherever it is.
    pub claimed: u64,
    /// What of that is on the GPU, or credited.
    pub resident: u64,
}

/// The GPUs that a client may be placed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Eligible {
    /// Every GPU of the node.
    #[default]
    All,
    /// These alone.
    Only(Vec<Gpu>),
}

/// What a client brings along from an earlier life of the assigner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The GPUs it is bound to, in its own device order, with the room it has on each.
    pub bound: Vec<(Gpu, Room)>,
    /// The lease it holds.
    pub lease: Option<Epoch>,
}

/// What happens to the scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client appears. Answered by [`Action::Refused`], after which the client is unknown, or not at all.
    Join {
        /// Its number.
        client: ClientId,
        /// What it wants.
        spec: ClientSpec,
    },
    /// A client must know its GPUs for good (`cuInit`). Answered by [`Action::Bound`]; a client that
    /// is bound already gets the same answer again.
    Bind {
        /// The client.
        client: ClientId,
    },
    /// A client that tells nothing of its memory says what its next lease will need on each GPU.
    MemoryHint {
        /// The client.
        client: ClientId,
        /// Bytes, if it knows.
        bytes: Option<u64>,
    },
    /// A client wants a lease on its bound GPUs, or on any eligible ones when it is not bound.
    /// Ignored while it holds one; while it waits, only the expectation is renewed.
    Acquire {
        /// The client.
        client: ClientId,
        /// How long it will hold the lease, where it knows; otherwise the estimator says.
        expected: Option<Duration>,
    },
    /// A client withdraws an [`Event::Acquire`] that has not been granted.
    Cancel {
        /// The client.
        client: ClientId,
    },
    /// A client gives its lease back; ignored when the epoch is not the one it holds.
    Release {
        /// The client.
        client: ClientId,
        /// The lease.
        epoch: Epoch,
        /// How long it was in use, where the client knows; otherwise all of it counts.
        busy: Option<Duration>,
    },
    /// There is a connection to the controller of the gangs that span nodes. It replaces an earlier one.
    GangConnected(gang::Session),
    /// That connection is lost.
    GangDisconnected,
    /// The controller says something.
    GangOrder(gang::Order),
    /// A client is gone; all that it held is free. Also said of a client of an earlier life that
    /// will not come back ([`Settle::expected`](crate::Settle::expected)).
    Leave {
        /// The client.
        client: ClientId,
    },
    /// A client wants device memory that cannot be moved. Answered by [`Action::Room`].
    RoomRequest {
        /// The client.
        client: ClientId,
        /// The client's own number for the request.
        seq: u64,
        /// Where.
        gpu: Gpu,
        /// How much.
        bytes: u64,
    },
    /// A driver has taken memory for a client unasked. It counts at once, out of the headroom, if whoever's turn it is still has
    /// all of its memory then; else it is a [`RoomRequest`](Event::RoomRequest).
    Grown {
        /// The client.
        client: ClientId,
        /// The client's own number for the request.
        seq: u64,
        /// Where.
        gpu: Gpu,
        /// How much.
        bytes: u64,
    },
    /// A client withdraws a room request. When that was granted meanwhile, nothing happens: the
    /// client sees the verdict and gives the room back.
    RoomCancel {
        /// The client.
        client: ClientId,
        /// Number of the request.
        seq: u64,
    },
    /// A client gives fixed memory back.
    RoomReturn {
        /// The client.
        client: ClientId,
        /// Where.
        gpu: Gpu,
        /// How much; more than it has counts as all of it.
        bytes: u64,
    },
    /// A client wants paged memory. Answered at once by [`Action::Room`]. Room on the GPU comes as
    /// [`Action::Credit`] when the client holds a lease, or is the next one to.
    Claim {
        /// The client.
        client: ClientId,
        /// The client's own number for the request.
        seq: u64,
        /// Where.
        gpu: Gpu,
        /// How much.
        bytes: u64,
    },
    /// A client gives up a claim, or credit that it has no use for (with `bytes` 0).
    ClaimReturn {
        /// The client.
        client: ClientId,
        /// Where.
        gpu: Gpu,
        /// How much of what it claimed; more than that counts as all of it.
        bytes: u64,
        /// How much of what was resident or credited goes back with it.
        resident: u64,
    },
    /// Paged memory of a client has been moved to the host; the answer to [`Action::Evict`], in
    /// as many parts as the client likes.
    Evicted {
        /// The client.
        client: ClientId,
        /// Where.
        gpu: Gpu,
        /// How much.
        bytes: u64,
        /// Whether the rest of what was asked for cannot be moved.
        rest: Rest,
    },
    /// A holder has all of its memory on its GPUs: its quantum begins.
    Ready {
        /// The client.
        client: ClientId,
        /// Its lease.
        epoch: Epoch,
    },
    /// A page-in has found less on a GPU than was credited: that credit comes back, and nobody knows who has the memory.
    Short {
        /// The client.
        client: ClientId,
        /// Where.
        gpu: Gpu,
        /// Credit that it cannot use.
        bytes: u64,
    },
    /// What is in use on a GPU in truth, whoever has it: no more than that is missing there.
    Used {
        /// Where.
        gpu: Gpu,
        /// By all programs and the driver.
        bytes: u64,
    },
    /// Whether a client's memory on a GPU can be moved at all.
    Pinned {
        /// The client.
        client: ClientId,
        /// Where.
        gpu: Gpu,
        /// False: nothing of it can.
        movable: bool,
    },
    /// A client cannot be reached for now. It keeps what it has, but no longer waits.
    Away {
        /// The client.
        client: ClientId,
    },
    /// A client can be reached again. What it had been asked and told of memory, it has forgotten. What it was told of its lease
    /// may have been lost, so it is told again: [`Action::Wanted`], [`Action::Recall`], [`Action::Overtaken`].
    Back {
        /// The client.
        client: ClientId,
        /// The lease that it holds, as it says. A grant that it has not heard of is taken back.
        lease: Option<Epoch>,
    },
    /// The deadline of [`Scheduler::poll_deadline`](crate::Scheduler::poll_deadline) has come.
    Timer,
}

/// What becomes of the rest of an eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It comes later, or this was all.
    Comes,
    /// It stays where it is until the client's next lease, or the end of the one that it has, or until the client says that some has left after all.
    Stays,
}

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send to the controller of the gangs that span nodes.
    GangReport(gang::Report),
    /// Tell a client its GPUs, in its device order.
    Bound {
        /// The client.
        client: ClientId,
        /// Its GPUs.
        gpus: Vec<Gpu>,
    },
    /// Tell a client that what it wants is impossible.
    Refused {
        /// The client.
        client: ClientId,
        /// Why.
        reason: Refusal,
    },
    /// Tell a client that it holds a lease.
    Grant {
        /// The client.
        client: ClientId,
        /// The lease.
        epoch: Epoch,
        /// What it covers.
        gpus: Vec<Gpu>,
        /// Whether all claimed memory is there: the quantum has begun, and [`Event::Ready`] is not waited for.
        is_ready: bool,
    },
    /// Tell a holder that somebody waits: it should give the lease back once it is idle. At most once per lease.
    Wanted {
        /// The holder.
        client: ClientId,
        /// Its lease.
        epoch: Epoch,
    },
    /// Tell a client that the lease with which it came back from before a restart is over: others have had its GPUs since. It
    /// holds nothing, and asks anew.
    Overtaken {
        /// The client.
        client: ClientId,
        /// What it said that it held.
        epoch: Epoch,
    },
    /// Tell a holder that its quantum is over. At most once per lease.
    Recall {
        /// The holder.
        client: ClientId,
        /// Its lease.
        epoch: Epoch,
    },
    /// Answer to a room request.
    Room {
        /// The client.
        client: ClientId,
        /// Its request.
        seq: u64,
        /// The answer.
        verdict: RoomVerdict,
    },
    /// Tell a client without a lease to move so much more paged memory to the host.
    Evict {
        /// The client.
        client: ClientId,
        /// From where.
        gpu: Gpu,
        /// How much, in addition to what it was asked for before.
        bytes: u64,
    },
    /// Tell a client that so much more of its claims may be on the GPU.
    Credit {
        /// The client.
        client: ClientId,
        /// Where.
        gpu: Gpu,
        /// How much.
        bytes: u64,
    },
    /// Tell a client without a lease to give back the credit for which nothing is under way: another's turn has come, and
    /// what it pages in would share the link with that one's. Its answer is [`Event::ClaimReturn`] of no claims, if there is
    /// some.
    Withdraw {
        /// The client.
        client: ClientId,
        /// Where.
        gpu: Gpu,
    },
    /// Tell a client with a lease that what it was asked to move to the host may stay, but for what is under way.
    Stay {
        /// The client.
        client: ClientId,
        /// Where.
        gpu: Gpu,
    },
    /// Tell a client how much pinned memory of the host it needs, over all its GPUs.
    Arena {
        /// The client.
        client: ClientId,
        /// How much.
        bytes: u64,
    },
    /// Tell the user of a client that waits for memory who is in the way.
    Blocked {
        /// Who waits.
        client: ClientId,
        /// Where.
        gpu: Gpu,
        /// Who was asked to move memory, and does not.
        by: ClientId,
        /// How much.
        bytes: u64,
    },
}

/// Why a lease is asked back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Others wait, and its quantum is over.
    Quantum,
    /// Somebody of a higher priority waits.
    Priority,
    /// It is on a borrowed GPU, and a tenant below its guarantee waits.
    Quota,
    /// Somebody's promised start would be late otherwise: it was let go before (backfill), or is in the way alone.
    Promise,
    /// Its gang's round has ended: another member has given back, was recalled or is gone.
    Gang,
}

/// Leases that have been asked back, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recalls {
    /// [`Cause::Quantum`]
    pub quantum: u64,
    /// [`Cause::Priority`]
    pub priority: u64,
    /// [`Cause::Quota`]
    pub quota: u64,
    /// [`Cause::Promise`]
    pub promise: u64,
    /// [`Cause::Gang`]
    pub gang: u64,
}

impl Recalls {
    pub(crate) fn count(&mut self, cause: Cause) {
        *match cause {
            Cause::Quantum => &mut self.quantum,
            Cause::Priority => &mut self.priority,
            Cause::Quota => &mut self.quota,
            Cause::Promise => &mut self.promise,
            Cause::Gang => &mut self.gang,
        } += 1;
    }
}

/// Why a client cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// More GPUs than are eligible.
    #[error("{wanted} GPUs wanted, but only {eligible} can be used")]
    TooManyGpus {
        /// What the client wants.
        wanted: u32,
        /// What there is for it.
        eligible: u32,
    },
    /// More GPUs than the client's queue may hold at once.
    #[error("{wanted} GPUs wanted, but queue \"{queue}\" holds {most} at most")]
    BeyondQueue {
        /// What the client wants.
        wanted: u32,
        /// Its queue.
        queue: String,
        /// What the queue allows.
        most: u32,
    },
    /// More GPUs than the client's tenant may hold at once.
    #[error("{wanted} GPUs wanted, but tenant \"{tenant}\" holds {most} at most")]
    BeyondTenant {
        /// What the client wants.
        wanted: u32,
        /// Its tenant.
        tenant: String,
        /// What the tenant allows.
        most: u32,
    },
    /// There is no such queue.
    #[error("there is no queue \"{queue}\"; there are {known}")]
    UnknownQueue {
        /// What the client named.
        queue: String,
        /// What there is.
        known: String,
    },
    /// There is no such tenant.
    #[error("there is no tenant \"{tenant}\"; there are {known}")]
    UnknownTenant {
        /// What the client named.
        tenant: String,
        /// What there is.
        known: String,
    },
    /// The queue has as many clients as it takes.
    #[error("queue \"{queue}\" takes {most} clients at once, and has them; try again later")]
    QueueFull {
        /// The queue.
        queue: String,
        /// What it takes.
        most: u32,
    },
    /// It cannot be a member of its gang. Can also come later, when that turns out.
    #[error("{0}")]
    Gang(gang::GangRefusal),
    /// The policy gives one GPU to a client.
    #[error("policy {policy} gives one GPU to a client, but {wanted} are wanted; use gpu-affinity")]
    PolicyGivesOne {
        /// The policy.
        policy: Policy,
        /// What the client wants.
        wanted: u32,
    },
    /// What the client says it holds from before a restart belongs to another by now.
    #[error("the lease on {gpu} from before the restart belongs to {holder} now; start again")]
    HeldByAnother {
        /// The GPU.
        gpu: Gpu,
        /// Whose it is.
        holder: ClientId,
    },
    /// The memory that the client says it has from before a restart does not fit any more.
    #[error(
        "the {room} bytes on {gpu} from before the restart are no longer free ({free} are); \
         start again"
    )]
    HeldRoom {
        /// The GPU.
        gpu: Gpu,
        /// What the client says it has.
        room: u64,
        /// What it could have.
        free: u64,
    },
    /// The lease that the client says it holds cannot have been granted.
    #[error("{0} from before the restart cannot have been granted; start again")]
    HeldEpoch(Epoch),
    /// What the client says it holds from before a restart cannot be.
    #[error(
        "{bound} GPUs held from before the restart for the {wanted} wanted; each must exist and be \
         named once"
    )]
    HeldInvalid {
        /// GPUs that the client says it is bound to.
        bound: u32,
        /// What it wants.
        wanted: u32,
    },
}

/// Answer to a room request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoomVerdict {
    /// The bytes are the client's.
    Granted,
    /// Not now: `missing` bytes are held by `holders`. A further verdict follows.
    Waiting {
        /// Bytes short, counting what waits ahead.
        missing: u64,
        /// Who has memory on that GPU, most first.
        holders: Vec<(ClientId, u64)>,
        /// What it takes.
        obstacle: Obstacle,
    },
    /// Never.
    Denied(RoomDenied),
}

/// What has to happen before waiting for fixed memory is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Paged memory of others is being moved to the host.
    Moving,
    /// Those who use the GPU now have to give their leases back; they are asked to.
    Lease,
    /// What others have claimed needs the rest of the GPU when it is their turn: they have to free
    /// some, or to end.
    Claims,
    /// Others have to free memory that cannot be moved.
    Fixed,
    /// Clients from before a restart have to come back first, or to be late.
    Restart,
}

/// Why room is denied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoomDenied {
    /// The client would exceed its limit.
    #[error("{total} bytes in all exceed the program's limit of {limit}")]
    ExceedsLimit {
        /// What the client would have in all.
        total: u64,
        /// What it may have.
        limit: u64,
    },
    /// What others have that cannot be moved leaves no room for so much at a time.
    #[error(
        "{total} bytes in all do not fit beside the {others} of others' memory that cannot be moved \
         (GPU {capacity})"
    )]
    OthersFixed {
        /// What the client would have in all.
        total: u64,
        /// What others have.
        others: u64,
        /// What the GPU has.
        capacity: u64,
    },
    /// The host could not hold what would have to leave the GPU.
    #[error(
        "{needed} bytes of host memory would be needed for what leaves the GPU, but the budget is \
         {budget} ({used} in use)"
    )]
    HostBudget {
        /// What may be used.
        budget: u64,
        /// What is spoken for.
        used: u64,
        /// What would be.
        needed: u64,
    },
    /// The client alone would exceed the GPU.
    #[error("{total} bytes in all exceed the GPU's {capacity}")]
    ExceedsGpu {
        /// What the client would have in all.
        total: u64,
        /// What the GPU has.
        capacity: u64,
    },
    /// Every client with memory on the GPU waits for more of it, so that waiting would never end.
    #[error("every program on the GPU waits for more memory; none could go on")]
    Deadlock,
    /// The client is not bound to that GPU.
    #[error("the client is not bound to that GPU")]
    NotBound,
}
