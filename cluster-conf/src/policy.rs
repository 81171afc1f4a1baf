//! The two closed choices that the cluster file and the `--acb` option share.
//!
//! Owns their names. Does not own what they do: that is the scheduler's and the interposer's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which client gets a GPU next; ACB's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// First in, first out; one GPU for each client.
    Simple,
    /// Several clients on one GPU while their memory fits.
    GpuSharing,
    /// One to k GPUs, first in first out with backfill and affinity.
    #[default]
    GpuAffinity,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Policy; 3] = [Policy::Simple, Policy::GpuSharing, Policy::GpuAffinity];

    /// The name, as it is written everywhere.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Simple => "simple",
            Policy::GpuSharing => "gpu-sharing",
            Policy::GpuAffinity => "gpu-affinity",
        }
    }

    /// Whether a client can have more than one GPU.
    pub fn gives_several_gpus(self) -> bool {
        self == Policy::GpuAffinity
    }
}

/// What a client does when its assigner is lost and does not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// It goes on without scheduling.
    #[default]
    Open,
    /// Its CUDA calls fail.
    Fail,
}

impl OnFailure {
    /// Both.
    pub const ALL: [OnFailure; 2] = [OnFailure::Open, OnFailure::Fail];

    /// The name, as it is written everywhere.
    pub fn name(self) -> &'static str {
        match self {
            OnFailure::Open => "open",
            OnFailure::Fail => "fail",
        }
    }
}

/// The text is no member of the closed choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not one of the allowed names")]
pub struct UnknownName;

impl FromStr for Policy {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        Policy::ALL.into_iter().find(|policy| policy.name() == text).ok_or(UnknownName)
    }
}

impl FromStr for OnFailure {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        OnFailure::ALL.into_iter().find(|choice| choice.name() == text).ok_or(UnknownName)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
