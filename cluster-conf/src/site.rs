//! The cluster file: what an administrator decides for every job.
//!
//! Owns its keys, their defaults and their rules. Does not own where the file lies: that is [`load`](mod@crate::load).
//! Every type here holds only what passed those rules.

mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use crate::diagnostics::ConfigError;
use crate::estimators::{PeakEstimator, PhaseEstimator};
use crate::headroom::Headroom;
use crate::policy::{OnFailure, Policy};
use crate::size::ByteSize;
use crate::tenancy::{QueueRule, TenantRule};
use crate::values::{AbsolutePath, Environment, Part};

/// A cluster file, checked. The default is that of an empty file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SiteConfig {
    /// `[paths]`
    pub paths: Paths,
    /// `[driver]`
    pub driver: DriverPaths,
    /// `[environment]`: set in the assigner and in every task of an acb job.
    pub environment: Environment,
    /// `[scheduler]`
    pub scheduler: SchedulerConfig,
    /// `[[queue]]`
    pub queues: Vec<QueueRule>,
    /// `[[tenant]]`
    pub tenants: Vec<TenantRule>,
    /// `[memory]`
    pub memory: MemoryConfig,
    /// `[failure]`
    pub failure: Failure,
    /// `[network]`
    pub network: Network,
    /// `[controller] node`: the preferred controller of multi-node jobs.
    pub controller: Option<String>,
    /// `[[node]]`
    pub nodes: Nodes,
    /// `[comment]`
    pub comment: CommentConfig,
}

impl SiteConfig {
    /// Reads a cluster file's text; `name` stands in the messages.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        read::site(text)
            .map(|read| read.site)
            .map_err(|problems| ConfigError::new(name, text, problems))
    }
}

/// Where things lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Under it, every node's and job's folders and sockets.
    pub run_dir: AbsolutePath,
    /// Folder of `gpu_assigner` and `agarun`.
    pub bin_dir: AbsolutePath,
    /// Folder of the interposer, `libcuda.so.1`.
    pub lib_dir: AbsolutePath,
}

/// The real driver's libraries, where they are not in the usual places.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriverPaths {
    /// The real `libcuda.so.1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cuda: Option<AbsolutePath>,
    /// The real `libnvidia-ml.so.1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvml: Option<AbsolutePath>,
}

/// How leases are handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// The policy of jobs that name none.
    pub policy: Policy,
    /// How long a contended lease is held before it is recalled, milliseconds.
    pub quantum_ms: NonZeroU32,
    /// How long a wanted GPU must be idle before its holder gives it back, microseconds.
    pub idle_us: u32,
    /// What a CUDA context takes on a GPU, MiB.
    pub context_mib: u32,
    /// The head of the queue is bypassed at most so often…
    pub max_bypass: u32,
    /// …and at most for so long, seconds.
    pub max_bypass_s: u32,
    /// After so long, GPU time that was used counts half, seconds; 0: who came first goes first, whatever was used.
    pub fair_share_half_life_s: u32,
    /// GPU time that who comes back is owed at most, seconds.
    pub fair_share_credit_s: u32,
    /// `[scheduler.estimator]`: how long phases take.
    pub estimator: PhaseEstimator,
    /// `[scheduler.peaks]`: what memory clients without a limit will have.
    pub peaks: PeakEstimator,
}

/// How device memory is shared.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// Whether memory is moved between GPU and host at all.
    pub pager: bool,
    /// What is moved at a time, MiB.
    pub chunk_mib: u32,
    /// The part of the job's host memory that may be needed for what leaves the GPUs…
    pub host_share: Part,
    /// …and no more than this amount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_budget: Option<ByteSize>,
    /// The part of the time that moving memory may cost.
    pub switch_share: Part,
    /// What of each GPU is promised to nobody, for what drivers take unasked.
    pub headroom: Headroom,
    /// Whether memory is compared byte by byte where hashes say that it has not changed.
    pub compare: bool,
}

/// What happens when the assigner is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What clients do.
    pub on_failure: OnFailure,
    /// How long they wait before that, milliseconds.
    pub grace_ms: u32,
    /// How long the start of a job waits for its assigner, seconds.
    pub ready_timeout_s: NonZeroU32,
}

/// The ports of the controllers: `base_port` to `base_port + ports - 1`, all of them below 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base_port: u16,
    ports: u16,
}

impl Network {
    /// A range of at least eight ports from 1024 on; `None` when it is not one.
    pub fn new(base_port: u16, ports: u16) -> Option<Self> {
        let fits = u32::from(base_port) + u32::from(ports) <= 1 << 16;
        (fits && base_port >= 1024 && ports >= crate::election::CANDIDATE_PORTS)
            .then_some(Network { base_port, ports })
    }

    /// The first port.
    pub fn base_port(self) -> u16 {
        self.base_port
    }

    /// How many ports there are.
    pub fn ports(self) -> u16 {
        self.ports
    }
}

/// The nodes that the file lists, with the addresses at which others reach them. It may list none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes(BTreeMap<String, Option<String>>);

impl Nodes {
    /// Whether the file lists no node: then any node will do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the file lists this node.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Where others reach a node: what the file says, else the node's name.
    pub fn address<'a>(&'a self, name: &'a str) -> &'a str {
        self.0.get(name).and_then(|address| address.as_deref()).unwrap_or(name)
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// The job's comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommentConfig {
    /// Whether statistics are written there.
    pub enabled: bool,
}

impl Default for Paths {
    fn default() -> Self {
        let path = |text| AbsolutePath::new(text).expect("the default is absolute");
        Paths {
            run_dir: path("/run/acb"),
            bin_dir: path("/usr/bin"),
            lib_dir: path("/usr/lib/acb"),
        }
    }
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        SchedulerConfig {
            policy: Policy::GpuAffinity,
            quantum_ms: NonZeroU32::new(2000).expect("not zero"),
            idle_us: 2000,
            context_mib: 512,
            max_bypass: 8,
            max_bypass_s: 60,
            fair_share_half_life_s: 0,
            fair_share_credit_s: 0,
            estimator: PhaseEstimator::default(),
            peaks: PeakEstimator::default(),
        }
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        let share = |part| Part::new(part).expect("the default is a share");
        MemoryConfig {
            pager: true,
            chunk_mib: 64,
            host_share: share(0.5),
            host_budget: None,
            switch_share: share(0.1),
            headroom: Headroom::Auto,
            compare: false,
        }
    }
}

impl Default for Failure {
    fn default() -> Self {
        Failure {
            on_failure: OnFailure::Open,
            grace_ms: 10_000,
            ready_timeout_s: NonZeroU32::new(15).expect("not zero"),
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Network { base_port: 21_000, ports: 8_000 }
    }
}

impl Default for CommentConfig {
    fn default() -> Self {
        CommentConfig { enabled: true }
    }
}
