//! What the scheduler is told once: GPUs, policy, limits, and what is left of an earlier life.
//!
//! Does not own: where these values come from (cluster file, options of `gpu_assigner`).

use std::fmt;
use std::time::Duration;

use crate::event::Held;
use crate::ids::{ClientId, Epoch, Gpu, Time};

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
    /// Whether `gpu-affinity` backfills.
    pub backfill: Backfill,
    /// A waiting client with a reservation is bypassed at most so often before nobody may any more.
    pub max_bypass: u32,
    /// …and at most for so long. Both bounds also hold for requests of room.
    pub max_bypass_time: Duration,
    /// What clients held in an earlier life of the assigner.
    pub settle: Settle,
}

impl Config {
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
            backfill: Backfill::ByEstimate,
            max_bypass: 16,
            max_bypass_time: Duration::from_secs(60),
            settle: Settle::default(),
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
        if self.quantum.is_zero() {
            return Err(ConfigError::ZeroQuantum);
        }
        if self.drain.is_zero() {
            return Err(ConfigError::ZeroDrain);
        }
        if self.first_epoch > Epoch::LAST_CREDIBLE {
            return Err(ConfigError::EpochsUsedUp(self.first_epoch));
        }
        self.estimator.validate()
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
}

/// A client of an earlier life of the assigner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its number, then and now.
    pub client: ClientId,
    /// What it held.
    pub held: Held,
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
    /// A quantum of zero would recall every lease at once.
    #[error("the quantum is 0, so that no lease would last; make it longer than a switch takes")]
    ZeroQuantum,
    /// Nobody stops at once.
    #[error("the time to drain is 0, but no client stops at once; make it longer than a kernel")]
    ZeroDrain,
    /// The epoch is garbage.
    #[error("{0} cannot be the first to hand out; remove the state of the earlier life")]
    EpochsUsedUp(Epoch),
    /// Not a percentile.
    #[error("the estimator's percentile is {0}; it must be between 0 and 1")]
    Percentile(f64),
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
