//! The scheduler of one node's GPUs as a pure state machine.
//!
//! Owns: who may submit work to which GPU, in which order, and how many bytes of each GPU are promised to whom.
//! Does not own: sockets, clocks, processes, randomness. Events and the time come in, actions come out:
//!
//! ```text
//! handle(event, now)     poll_action() -> Option<Action>     poll_deadline() -> Option<Time>
//! ```
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

/// A moment on the caller's monotonic clock: nanoseconds since an origin of the caller's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

/// A GPU of this node, by its position in [`Config::gpus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpu(pub u32);

/// A client, numbered by the caller; a number is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// Number of a lease; grows with every grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// One GPU as the scheduler sees it.
#[derive(Clone, Debug)]
pub struct GpuConfig {
    /// Bytes that may be promised to clients.
    pub memory: u64,
}

/// The scheduling policies, by ACB's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// First in, first out; one GPU for each client.
    Simple,
    /// Several holders on one GPU while their memory fits.
    GpuSharing,
    /// One to k GPUs, first in first out with backfill and affinity.
    GpuAffinity,
}

/// Everything the scheduler is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// The GPUs of this node.
    pub gpus: Vec<GpuConfig>,
    /// The policy.
    pub policy: Policy,
    /// How long a contended lease is held before it is recalled.
    pub quantum: Duration,
    /// First epoch to hand out: above every epoch of an earlier life of the assigner.
    pub first_epoch: Epoch,
    /// Parameters of the estimator of phase times (ACB's `--exe-est-*`).
    pub estimator: EstimatorConfig,
    /// The head of the queue is bypassed at most so often before it has a hard reservation.
    pub max_bypass: u32,
    /// …and at most for so long.
    pub max_bypass_time: Duration,
}

/// ACB's `--exe-est-*` options: the estimate is a percentile of the latest phases of a client.
#[derive(Clone, Debug)]
pub struct EstimatorConfig {
    /// Phases seen before an estimate is made.
    pub start_count: u32,
    /// Phases kept.
    pub latest_count: u32,
    /// Phases between two estimates.
    pub interval: u32,
    /// Which percentile, 0 to 1.
    pub percentile: f64,
    /// The estimate before there is one; zero means unknown, and unknown is never backfilled.
    pub default: Duration,
}

/// What a client says of itself when it joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSpec {
    /// GPUs that one lease of it covers.
    pub gpus: u32,
    /// The GPUs it may be placed on.
    pub eligible: Eligible,
    /// What it holds from an earlier life of the assigner.
    pub held: Option<Held>,
}

/// The GPUs that a client may be placed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Eligible {
    /// Every GPU of the node.
    All,
    /// These alone.
    Only(Vec<Gpu>),
}

/// What a client brings along from an earlier life of the assigner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The GPUs it is bound to, in its own device order, with the room it has on each.
    pub bound: Vec<(Gpu, u64)>,
    /// The lease it holds.
    pub lease: Option<Epoch>,
}

/// What happens to the scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client appears.
    Join {
        /// Its number.
        client: ClientId,
        /// What it wants.
        spec: ClientSpec,
    },
    /// A client must know its GPUs for good (`cuInit`). Answered by [`Action::Bound`] or [`Action::Refused`].
    Bind {
        /// The client.
        client: ClientId,
    },
    /// A client wants a lease on its bound GPUs, or on any eligible ones when it is not bound.
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
    },
    /// A client is gone; all that it held is free.
    Leave {
        /// The client.
        client: ClientId,
    },
    /// A client wants device memory. Answered by [`Action::Room`].
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
    /// A client withdraws a room request.
    RoomCancel {
        /// The client.
        client: ClientId,
        /// Number of the request.
        seq: u64,
    },
    /// A client gives device memory back.
    RoomReturn {
        /// The client.
        client: ClientId,
        /// Where.
        gpu: Gpu,
        /// How much; more than it has counts as all of it.
        bytes: u64,
    },
    /// The deadline of [`Scheduler::poll_deadline`] has come.
    Timer,
}

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
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
    },
    /// Tell a holder that somebody waits: it should give the lease back once it is idle. At most once per lease.
    Wanted {
        /// The holder.
        client: ClientId,
        /// Its lease.
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
    /// The policy gives one GPU to a client.
    #[error("policy {policy} gives one GPU to a client, but {wanted} are wanted; use gpu-affinity")]
    PolicyGivesOne {
        /// The policy.
        policy: Policy,
        /// What the client wants.
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
        /// Bytes short.
        missing: u64,
        /// Who holds memory on that GPU, most first.
        holders: Vec<(ClientId, u64)>,
    },
    /// Never.
    Denied(RoomDenied),
}

/// Why room is denied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoomDenied {
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

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Policy::Simple => "simple",
            Policy::GpuSharing => "gpu-sharing",
            Policy::GpuAffinity => "gpu-affinity",
        })
    }
}
