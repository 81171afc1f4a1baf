//! How the GPUs of a node are connected: with each other, and with the host.
//!
//! Owns: the distances, and which GPUs share a link. Does not own: where they come from (NVML).

use crate::ids::Gpu;

/// How far GPUs are from each other, and over which links they reach the host. The default: all alike, each with a
/// link of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// For every GPU its distance to every GPU: lower is closer. Empty: all are equally far.
    pub distances: Vec<Vec<u32>>,
    /// For every GPU the link on which its memory is moved; GPUs with the same number share it. Empty: each has one.
    pub links: Vec<u32>,
}

impl Topology {
    /// The distance between two GPUs.
    pub(crate) fn distance(&self, one: Gpu, other: Gpu) -> u32 {
        self.distances.get(one.index()).map_or(0, |row| row[other.index()])
    }

    /// What of it does not fit a node of so many GPUs.
    pub(crate) fn fault(&self, gpus: usize) -> Option<&'static str> {
        let distances = &self.distances;
        if !distances.is_empty()
            && (distances.len() != gpus || distances.iter().any(|row| row.len() != gpus))
        {
            return Some("distances");
        }
        (!self.links.is_empty() && self.links.len() != gpus).then_some("links")
    }
}
