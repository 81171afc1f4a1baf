//! `--gpu-list`: which of a node's GPUs are handed out.
//!
//! Owns the grammar and the choice among what NVML shows. Does not ask NVML.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The value of `--gpu-list`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum GpuList {
    /// Every GPU.
    #[default]
    All,
    /// No GPU: every manual-mode client runs on the CPU.
    None,
    /// These, by index or UUID.
    Only(Vec<GpuName>),
}

/// How a user names a GPU.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GpuName {
    /// As `nvidia-smi` counts.
    Index(u32),
    /// `GPU-…` or `MIG-…`.
    Uuid(String),
}

/// Why a text is no list of GPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuListError {
    /// An element is neither index nor UUID.
    #[error("`{0}` is neither an index like 0 nor a UUID like GPU-… or MIG-…")]
    Element(String),
    /// An element is there twice.
    #[error("{0} is there twice")]
    Twice(GpuName),
}

impl fmt::Display for GpuName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GpuName::Index(index) => write!(f, "{index}"),
            GpuName::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

impl FromStr for GpuList {
    type Err = GpuListError;

    fn from_str(text: &str) -> Result<GpuList, GpuListError> {
        match text {
            "all" => return Ok(GpuList::All),
            "none" => return Ok(GpuList::None),
            _ => {}
        }
        let mut names = Vec::new();
        let mut seen = BTreeSet::new();
        for element in text.split(',').map(str::trim) {
            let name = if element.starts_with("GPU-") || element.starts_with("MIG-") {
                GpuName::Uuid(element.to_owned())
            } else {
                let index =
                    element.parse().map_err(|_| GpuListError::Element(element.to_owned()))?;
                GpuName::Index(index)
            };
            if !seen.insert(name.clone()) {
                return Err(GpuListError::Twice(name));
            }
            names.push(name);
        }
        Ok(GpuList::Only(names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_indices_and_uuids() {
        assert_eq!("all".parse(), Ok(GpuList::All));
        assert_eq!("none".parse(), Ok(GpuList::None));
        let only = GpuList::Only(vec![GpuName::Index(2), GpuName::Uuid("GPU-ab".into())]);
        assert_eq!("2, GPU-ab".parse(), Ok(only));
        for wrong in ["", "1,", "a", "-1", "0,0", "1.5"] {
            assert!(wrong.parse::<GpuList>().is_err(), "{wrong:?}");
        }
    }
}
