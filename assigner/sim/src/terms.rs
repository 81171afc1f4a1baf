//! The scheduler's configuration in the words of the cluster file.
//!
//! Owns: the translation, for whoever reads a file or a job's spec. Does not own: keys, defaults, bounds
//! ([`acb_cluster_conf`]), or what they do ([`acb_core`]).

use std::time::Duration;

use acb_cluster_conf::{PeakEstimator, PhaseEstimator};
use acb_core::{EstimatorConfig, PeakConfig, Policy, Select};

/// A policy.
#[must_use]
pub fn policy(given: acb_cluster_conf::Policy) -> Policy {
    match given {
        acb_cluster_conf::Policy::Simple => Policy::Simple,
        acb_cluster_conf::Policy::GpuSharing => Policy::GpuSharing,
        acb_cluster_conf::Policy::GpuAffinity => Policy::GpuAffinity,
    }
}

/// The estimator of phase times.
#[must_use]
pub fn phases(given: &PhaseEstimator) -> EstimatorConfig {
    EstimatorConfig {
        start_count: given.start_count.get(),
        latest_count: given.latest_count.get(),
        interval: given.interval.get(),
        percentile: given.percentile.value(),
        default: Duration::from_millis(given.default_ms.into()),
    }
}

/// The estimator of peak memory.
#[must_use]
pub fn peaks(given: &PeakEstimator) -> PeakConfig {
    PeakConfig {
        start_count: given.start_count.get(),
        latest_count: given.latest_count.get(),
        interval: given.interval.get(),
        percentile: given.percentile.value(),
        ratio: given.ratio.value(),
        select: match given.select {
            acb_cluster_conf::Select::Min => Select::Min,
            acb_cluster_conf::Select::Max => Select::Max,
        },
    }
}
