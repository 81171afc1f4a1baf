//! What the scheduler is told once: GPUs, policy, limits, and what is left of an earlier life.
//!
//! Does not own: where these values come from (cluster file, options of `gpu_assigner`).

use std::fmt;
use std::time::Duration;

use crate::event::Held;
use crate::gang::{GangSpec, Timing};
use crate::ids::{ClientId, Epoch, Gpu, Time};
use crate::queue::QueueConfig;
use crate::tenant::{FairShare, TenantConfig};
use crate::topology::Topology;

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

impl Policy {
    /// True if a GPU has one holder at a time.
    #[must_use]
    pub fn is_exclusive(self) -> bool {
        self != Policy::GpuSharing
    }
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

/// Whether a client may start on a GPU that is kept free for an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backfill {
    /// Never: strict first in, first out on every GPU.
    Off,
    /// When its estimate says that it is done before the earlier one could start.
    ByEstimate,
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
    /// How long a holder may take to stop after a recall. After that its GPUs count as stuck: they
    /// stay with it, but nobody waits for them with a reservation any more.
    pub drain: Duration,
    /// First epoch to hand out: above every epoch of an earlier life of the assigner.
    pub first_epoch: Epoch,
    /// Parameters of the estimator of phase times (ACB's `--exe-est-*`).
    pub estimator: EstimatorConfig,
    /// Parameters of the estimator of peak memory (ACB's `--mem-est-*`), for `gpu-sharing`.
    pub peaks: PeakConfig,
    /// Whether `gpu-affinity` backfills.
    pub backfill: Backfill,
    /// A waiting client with a reservation is bypassed at most so often before nobody may any more.
    pub max_bypass: u32,
    /// …and at most for so long. Both bounds also hold for requests of room.
    pub max_bypass_time: Duration,
    /// What clients held in an earlier life of the assigner.
    pub settle: Settle,
    /// Tenants with a quota or weight of their own. While there are none, every name is a tenant of weight 1.
    pub tenants: Vec<TenantConfig>,
    /// The named queues. The one without a name can be among them, to set its limits.
    pub queues: Vec<QueueConfig>,
    /// Whether GPU time that was used decides who goes first; `None`: only the order of arrival does.
    pub fair_share: Option<FairShare>,
    /// The part of the time that switching may cost, above 0 and below 1: a contended lease lasts as much longer than
    /// its switch took.
    pub switch_share: f64,
    /// How the GPUs are connected.
    pub topology: Topology,
    /// How device memory is shared.
    pub memory: MemoryConfig,
    /// How gangs are run.
    pub gangs: GangConfig,
}

/// How device memory is shared.
#[derive(Clone, Debug)]
pub struct MemoryConfig {
    /// Bytes of the host that may be needed for what leaves the GPUs.
    pub host_budget: u64,
    /// Of each GPU, in their order, what is promised to nobody, for what drivers take unasked; 0 where none is named.
    pub headroom: Vec<u64>,
    /// A client that was asked to move memory and moves none for so long is passed over. A holder
    /// that gets nothing for so long counts as one that is ready.
    pub late: Duration,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        MemoryConfig { host_budget: u64::MAX, headroom: Vec::new(), late: Duration::from_secs(5) }
    }
}

impl Config {
    /// Reads what a plan looks at (`warm`).
    pub(crate) fn warm(&self) -> u64 {
        let sizes = self.gpus.len() ^ self.topology.links.len() ^ self.topology.distances.len();
        let spans = [self.quantum, self.drain, self.max_bypass_time, self.memory.late];
        let spans = spans.iter().fold(self.settle.until.0, |seen, it| seen ^ it.as_secs());
        sizes as u64 ^ spans ^ u64::from(self.estimator.interval ^ self.max_bypass)
    }

    /// A configuration with ACB's defaults.
    #[must_use]
    pub fn new(gpus: Vec<GpuConfig>, policy: Policy) -> Config {
        Config {
            gpus,
            policy,
            quantum: Duration::from_secs(10),
            drain: Duration::from_secs(30),
            first_epoch: Epoch(1),
            estimator: EstimatorConfig::default(),
            peaks: PeakConfig::default(),
            backfill: Backfill::ByEstimate,
            max_bypass: 16,
            max_bypass_time: Duration::from_secs(60),
            settle: Settle::default(),
            tenants: Vec::new(),
            queues: Vec::new(),
            fair_share: None,
            switch_share: 0.1,
            topology: Topology::default(),
            memory: MemoryConfig::default(),
            gangs: GangConfig::default(),
        }
    }

    /// Checks what the types cannot say.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if self.gpus.is_empty() {
            return Err(ConfigError::NoGpus);
        }
        if u32::try_from(self.gpus.len()).is_err() {
            return Err(ConfigError::TooManyGpus(self.gpus.len()));
        }
        if let Some(index) = self.gpus.iter().position(|gpu| gpu.memory == 0) {
            return Err(ConfigError::NoMemory(index));
        }
        let headroom = self.memory.headroom.iter();
        if let Some(index) = headroom.zip(&self.gpus).position(|(kept, gpu)| *kept >= gpu.memory) {
            return Err(ConfigError::Headroom(index));
        }
        if self.quantum.is_zero() {
            return Err(ConfigError::ZeroQuantum);
        }
        if self.drain.is_zero() {
            return Err(ConfigError::ZeroDrain);
        }
        if self.first_epoch > Epoch::LAST_CREDIBLE {
            return Err(ConfigError::EpochsUsedUp(self.first_epoch));
        }
        if !(self.switch_share > 0.0 && self.switch_share < 1.0) {
            return Err(ConfigError::SwitchShare(self.switch_share));
        }
        if self.fair_share.is_some_and(|share| share.half_life.is_zero()) {
            return Err(ConfigError::ZeroHalfLife);
        }
        if let Some(what) = self.topology.fault(self.gpus.len()) {
            return Err(ConfigError::Topology { what, gpus: self.gpus.len() });
        }
        self.validate_tenants()?;
        self.validate_queues()?;
        if self.memory.late.is_zero() {
            return Err(ConfigError::ZeroLate);
        }
        self.peaks.validate()?;
        self.estimator.validate()
    }

    fn validate_tenants(&self) -> Result<(), ConfigError> {
        for (at, tenant) in self.tenants.iter().enumerate() {
            let name = || tenant.name.clone();
            if self.tenants[..at].iter().any(|other| other.name == tenant.name) {
                return Err(ConfigError::TwiceTenant(name()));
            }
            if tenant.weight == 0 {
                return Err(ConfigError::ZeroWeight(name()));
            }
            if let Some(limit) = tenant.limit.filter(|limit| *limit < tenant.guarantee) {
                let guarantee = tenant.guarantee;
                return Err(ConfigError::LimitBelowGuarantee { tenant: name(), guarantee, limit });
            }
            if tenant.limit == Some(0) {
                return Err(ConfigError::ZeroLimit { kind: "tenant", name: name() });
            }
        }
        let guaranteed = self.tenants.iter().map(|tenant| u64::from(tenant.guarantee)).sum();
        let gpus = self.gpus.len();
        if guaranteed > gpus as u64 {
            return Err(ConfigError::Guarantees { guaranteed, gpus });
        }
        Ok(())
    }

    fn validate_queues(&self) -> Result<(), ConfigError> {
        for (at, queue) in self.queues.iter().enumerate() {
            let name = || queue.name.clone();
            if self.queues[..at].iter().any(|other| other.name == queue.name) {
                return Err(ConfigError::TwiceQueue(name()));
            }
            if queue.max_gpus == Some(0) || queue.max_clients == Some(0) {
                return Err(ConfigError::ZeroLimit { kind: "queue", name: name() });
            }
        }
        Ok(())
    }
}

/// How gangs are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GangConfig {
    /// The job has no other node: a gang that does not fit here is refused.
    pub alone: bool,
    /// The spans.
    pub timing: Timing,
}

impl Default for GangConfig {
    fn default() -> Self {
        GangConfig { alone: true, timing: Timing::default() }
    }
}

/// The time after a restart in which nothing is granted that somebody may still hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settle {
    /// When it is over, on the caller's clock; after that, whoever has not come back holds nothing.
    pub until: Time,
    /// Who held what when the earlier life ended. Each entry is settled by a
    /// [`Join`](crate::Event::Join) or a [`Leave`](crate::Event::Leave) of that client.
    pub expected: Vec<Expected>,
    /// Members of gangs that have gone: so many of each.
    pub departed: Vec<(GangSpec, u32)>,
}

/// A client of an earlier life of the assigner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its number, then and now.
    pub client: ClientId,
    /// What it held.
    pub held: Held,
    /// Its gang.
    pub gang: Option<GangSpec>,
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

impl Default for EstimatorConfig {
    /// ACB's defaults.
    fn default() -> Self {
        EstimatorConfig {
            start_count: 10,
            latest_count: 100,
            interval: 10,
            percentile: 0.9,
            default: Duration::ZERO,
        }
    }
}

impl EstimatorConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&self.percentile) {
            return Err(ConfigError::Percentile(self.percentile));
        }
        for (name, value) in [
            ("start count", self.start_count),
            ("latest count", self.latest_count),
            ("interval", self.interval),
        ] {
            if value == 0 {
                return Err(ConfigError::ZeroEstimator(name));
            }
        }
        Ok(())
    }
}

/// ACB's `--mem-est-*` options: what a client without a limit will have on a GPU. Until it is known, and beyond it, counts
/// what the client has claimed.
#[derive(Clone, Debug)]
pub struct PeakConfig {
    /// Phases seen before an estimate is made.
    pub start_count: u32,
    /// Phases kept.
    pub latest_count: u32,
    /// Phases between two estimates.
    pub interval: u32,
    /// Which percentile of them is usual, 0 to 1…
    pub percentile: f64,
    /// …and is taken so many times.
    pub ratio: f64,
    /// That, or the largest of them.
    pub select: Select,
}

/// ACB's `--mem-est-select-strategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// The smaller one.
    Min,
    /// The larger one.
    Max,
}

impl Default for PeakConfig {
    /// ACB's defaults.
    fn default() -> Self {
        PeakConfig {
            start_count: 10,
            latest_count: 100,
            interval: 10,
            percentile: 0.99,
            ratio: 1.1,
            select: Select::Min,
        }
    }
}

impl PeakConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&self.percentile) {
            return Err(ConfigError::Percentile(self.percentile));
        }
        if !(self.ratio.is_finite() && self.ratio > 0.0) {
            return Err(ConfigError::PeakRatio(self.ratio));
        }
        let counts = [self.start_count, self.latest_count, self.interval];
        if counts.contains(&0) {
            return Err(ConfigError::ZeroEstimator("counts of peak memory"));
        }
        Ok(())
    }
}

/// Why a [`Config`] makes no scheduler.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// There is nothing to schedule.
    #[error("no GPU to schedule; name at least one")]
    NoGpus,
    /// More GPUs than can be numbered.
    #[error("{0} GPUs are more than can be numbered")]
    TooManyGpus(usize),
    /// A GPU without memory.
    #[error("GPU {0} has no memory to give; leave it out")]
    NoMemory(usize),
    /// Nothing would be left.
    #[error("all memory of GPU {0} is to be kept free; make the headroom smaller")]
    Headroom(usize),
    /// A quantum of zero would recall every lease at once.
    #[error("the quantum is 0, so that no lease would last; make it longer than a switch takes")]
    ZeroQuantum,
    /// Nobody stops at once.
    #[error("the time to drain is 0, but no client stops at once; make it longer than a kernel")]
    ZeroDrain,
    /// Nobody moves memory at once.
    #[error("the time to move memory is 0, but no client moves any at once; give it seconds")]
    ZeroLate,
    /// The epoch is garbage.
    #[error("{0} cannot be the first to hand out; remove the state of the earlier life")]
    EpochsUsedUp(Epoch),
    /// The share of the time for switches.
    #[error("switches may cost {0} of the time; it must be above 0 and below 1")]
    SwitchShare(f64),
    /// Nothing would count.
    #[error("the half-life of used GPU time is 0, so that nothing would count; leave it out")]
    ZeroHalfLife,
    /// The topology is that of another node.
    #[error("the {what} of the topology do not fit {gpus} GPUs")]
    Topology {
        /// Which part of it.
        what: &'static str,
        /// The GPUs there are.
        gpus: usize,
    },
    /// More is guaranteed than there is.
    #[error(
        "{guaranteed} GPUs are guaranteed to tenants, but there are {gpus}; lower the guarantees"
    )]
    Guarantees {
        /// The sum of the guarantees.
        guaranteed: u64,
        /// The GPUs there are.
        gpus: usize,
    },
    /// A limit below what is guaranteed.
    #[error("tenant \"{tenant}\" is guaranteed {guarantee} GPUs, but limited to {limit}")]
    LimitBelowGuarantee {
        /// The tenant.
        tenant: String,
        /// What it is guaranteed.
        guarantee: u32,
        /// What it is limited to.
        limit: u32,
    },
    /// A weight of zero.
    #[error("tenant \"{0}\" has weight 0 and would never get its turn; give it at least 1")]
    ZeroWeight(String),
    /// A limit that lets nobody in.
    #[error(
        "{kind} \"{name}\" has a limit of 0, so that nothing would ever be granted; leave it out"
    )]
    ZeroLimit {
        /// What it is.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Two tenants of one name.
    #[error("tenant \"{0}\" is there twice")]
    TwiceTenant(String),
    /// Two queues of one name.
    #[error("queue \"{0}\" is there twice")]
    TwiceQueue(String),
    /// Not a percentile.
    #[error("the estimator's percentile is {0}; it must be between 0 and 1")]
    Percentile(f64),
    /// Not a ratio.
    #[error("the estimator's ratio is {0}; it must be above 0")]
    PeakRatio(f64),
    /// A count of the estimator that must be positive.
    #[error("the estimator's {0} is 0; it must be at least 1")]
    ZeroEstimator(&'static str),
    /// The state of an earlier life names a GPU that is not there.
    #[error("{client} held {gpu} before the restart, but there is no such GPU now")]
    ExpectedGpu {
        /// The client.
        client: ClientId,
        /// The GPU.
        gpu: Gpu,
    },
}
