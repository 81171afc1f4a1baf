//! What is simulated: nodes, clients, and what goes wrong when.
//!
//! Owns: the types; a value of [`Scenario`] that [`read`](mod@crate::read) made makes sense. Does not own: how a run goes.

use std::time::Duration;

use acb_core::gang::GangSpec;
use acb_core::{Config, Eligible, Gpu, Priority};

use crate::random::Lengths;

/// A cluster and what happens on it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What people call it.
    pub title: String,
    /// From which all randomness follows.
    pub seed: u64,
    /// When the run is cut off; without it, all clients are done at its end.
    pub stop: Option<Duration>,
    /// When all clients must be done; that they are not is a violation.
    pub due: Option<Duration>,
    /// The steady state, where the scenario says it: what is counted.
    pub steady: Option<(Duration, Duration)>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Names of the groups of clients.
    pub groups: Vec<String>,
    /// The clients; those that arrive at the same moment do so in this order.
    pub clients: Vec<Client>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// What messages and processes take.
    pub costs: Costs,
}

/// A node: its scheduler and what its GPUs take.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What its scheduler is told.
    pub config: Config,
    /// What a GPU loses when its next holder is not its latest one, whatever their memory.
    pub switch: Duration,
    /// How memory is moved to its GPUs and from them.
    pub link: Link,
}

/// The link between the host and a GPU, or several that share it.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Bytes a second, in each direction.
    pub bytes_per_s: f64,
    /// Whether both directions go on at once.
    pub duplex: bool,
    /// Bytes moved at a time.
    pub chunk: u64,
}

impl Default for Link {
    fn default() -> Self {
        Link { bytes_per_s: 25e9, duplex: true, chunk: 64 << 20 }
    }
}

/// What messages and processes take.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// A message between a client and its assigner.
    pub message: Lengths,
    /// A message between a node and the controller. Messages may overtake each other.
    pub network: Lengths,
    /// The share of those that get lost, and of those that come twice.
    pub network_loss: f64,
    /// How long a connection can be silent before it counts as lost.
    pub detect: Duration,
    /// From SIGKILL until a process and its GPU contexts are gone, beyond the end of its kernel.
    pub death: Duration,
    /// How long a restarted assigner waits for the clients that it expects back.
    pub settle: Duration,
}

impl Default for Costs {
    fn default() -> Self {
        Costs {
            message: Lengths::constant(Duration::ZERO),
            network: Lengths::constant(Duration::from_micros(100)),
            network_loss: 0.0,
            detect: Duration::from_secs(2),
            death: Duration::from_millis(10),
            settle: Duration::from_secs(2),
        }
    }
}

/// A made-up client.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its name.
    pub name: String,
    /// Its group, by position.
    pub group: usize,
    /// Its node, by position.
    pub node: usize,
    /// GPUs that each of its leases covers.
    pub gpus: u32,
    /// Where it may run.
    pub eligible: Eligible,
    /// Whether it is bound to its GPUs when it arrives, like a program under the interposer; else any eligible one will do
    /// each time, as in manual mode.
    pub bound: bool,
    /// Higher goes first.
    pub priority: Priority,
    /// Whose quota and share it counts for; empty: nobody's in particular.
    pub tenant: String,
    /// Where it waits; empty: the queue without a name.
    pub queue: String,
    /// Its gang: its members begin each of their rounds together.
    pub gang: Option<GangSpec>,
    /// Bytes of paged memory on each of its GPUs; none unless it is bound.
    pub memory: u64,
    /// What of that it does not change.
    pub read_only: u64,
    /// Bytes that it may have on each of them; more is denied.
    pub memory_limit: Option<u64>,
    /// When it appears.
    pub arrival: Duration,
    /// What it does.
    pub work: Work,
    /// What it tells of the length of its GPU phases.
    pub expectation: Expectation,
    /// When it gives a lease back.
    pub release: Release,
    /// Length of its kernels: it stops between two of them.
    pub kernel: Duration,
}

/// What a client does.
#[derive(Clone, Debug)]
pub enum Work {
    /// CPU phase, GPU phase, and so on.
    Rounds {
        /// Its CPU phases.
        cpu: Lengths,
        /// Its GPU phases.
        gpu: Lengths,
        /// How many rounds; for ever where it does not say.
        rounds: Option<u64>,
    },
    /// Requests come from outside, whether or not earlier ones are done.
    Requests {
        /// The time between two of them.
        every: Lengths,
        /// What each takes on the GPU.
        gpu: Lengths,
        /// How many come; for ever where it does not say.
        requests: Option<u64>,
    },
}

/// What a client tells of the length of its GPU phases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expectation {
    /// Nothing: the estimator has to know.
    Unknown,
    /// The truth times this.
    Times(f64),
}

/// When a client gives a lease back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// After every GPU phase.
    AfterPhase,
    /// Once somebody waits and it has been idle for so long; until then it keeps the lease through CPU phases.
    WhenWanted(Duration),
}

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// When.
    pub at: Duration,
    /// What.
    pub what: FaultKind,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum FaultKind {
    /// A client is killed.
    Kill(usize),
    /// A client is stopped (SIGSTOP), and goes on after so long.
    Stop(usize, Duration),
    /// The assigner of a node dies, and is back after so long. On the first node the controller dies with it.
    Restart(usize, Duration),
    /// The controller alone dies, and is back after so long.
    Controller(Duration),
    /// A node is cut off from the controller for so long.
    Cut(usize, Duration),
    /// A node is gone for good, with its assigner and all of its clients. Gangs with members there are ended everywhere
    /// else, after so long.
    Crash(usize, Duration),
    /// Programs that nobody knows take memory of a GPU, as much as they find, and are gone after so long.
    Outside {
        /// The node.
        node: usize,
        /// Its GPU.
        gpu: Gpu,
        /// How much they want.
        bytes: u64,
        /// For how long.
        lasts: Duration,
    },
}
