//! How the GPUs of this node are connected, as NVML tells.
//!
//! Owns: what NVML's words count as distances. What is not known is not used: then all GPUs are alike.

use std::path::Path;

use acb_core::Topology;
use nvml_wrapper::enum_wrappers::device::TopologyLevel;
use nvml_wrapper::{Device as NvmlDevice, Nvml};

use crate::inventory::Device;

/// The most NVLinks that a GPU has.
const LINKS: u32 = 18;
/// GPUs on one board, or slices of one GPU.
const SAME: u32 = 0;
/// GPUs with an NVLink between them.
const LINKED: u32 = 1;

/// The topology of these GPUs.
pub fn topology(library: Option<&Path>, gpus: &[Device]) -> Topology {
    let path = library.unwrap_or(Path::new("libnvidia-ml.so.1"));
    let Ok(nvml) = Nvml::builder().lib_path(path.as_os_str()).init() else {
        return Topology::default();
    };
    let opened: Result<Vec<NvmlDevice<'_>>, _> =
        gpus.iter().map(|gpu| nvml.device_by_index(gpu.index)).collect();
    let Ok(opened) = opened else { return Topology::default() };
    from_pairs(gpus.len(), |one, other| {
        if gpus[one].index == gpus[other].index {
            return Some(SAME);
        }
        let level =
            opened[one].topology_common_ancestor(nvml.device_by_index(gpus[other].index).ok()?);
        let by_bus = distance(&level.ok()?);
        Some(if are_linked(&opened[one], &opened[other]) { LINKED.min(by_bus) } else { by_bus })
    })
}

fn are_linked(one: &NvmlDevice<'_>, other: &NvmlDevice<'_>) -> bool {
    let Ok(address) = other.pci_info().map(|pci| pci.bus_id) else { return false };
    (0..LINKS).any(|link| {
        let link = one.link_wrapper_for(link);
        link.is_active().is_ok_and(|active| active)
            && link.remote_pci_info().is_ok_and(|pci| pci.bus_id == address)
    })
}

/// Below a PCIe switch data does not pass the processor.
fn distance(level: &TopologyLevel) -> u32 {
    match level {
        TopologyLevel::Internal => SAME,
        TopologyLevel::Single => 2,
        TopologyLevel::Multiple => 3,
        TopologyLevel::HostBridge => 4,
        TopologyLevel::Node => 5,
        TopologyLevel::System => 8,
    }
}

/// The topology from the distance of each two; the default where one is not known, or all are alike.
fn from_pairs(gpus: usize, between: impl Fn(usize, usize) -> Option<u32>) -> Topology {
    let row = |one| {
        (0..gpus).map(|other| if one == other { Some(SAME) } else { between(one, other) }).collect()
    };
    let rows: Option<Vec<Vec<u32>>> = (0..gpus).map(row).collect();
    let Some(distances) = rows else { return Topology::default() };
    // GPUs below one switch, or on one board, share its way to the host.
    let shares =
        |one: usize, other: usize| one != other && matches!(distances[one][other], SAME | 2 | 3);
    let mut links: Vec<u32> = Vec::new();
    for gpu in 0..gpus {
        let mate = (0..gpu).find(|mate| shares(gpu, *mate));
        let own = u32::try_from(gpu).expect("NVML numbers GPUs with 32 bits");
        links.push(mate.map_or(own, |mate| links[mate]));
    }
    let apart = || (0..gpus).flat_map(|one| (0..one).map(move |other| (one, other)));
    let first = apart().next().map(|(one, other)| distances[one][other]);
    let alike = apart().all(|(one, other)| Some(distances[one][other]) == first);
    if alike && links.iter().collect::<std::collections::BTreeSet<_>>().len() == gpus {
        return Topology::default();
    }
    Topology { distances, links }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_below_one_switch_share_their_link() {
        // Two pairs, each below a switch of its own, at two processors.
        let between = |one: usize, other: usize| Some(if one / 2 == other / 2 { 2 } else { 8 });
        let topology = from_pairs(4, between);
        assert_eq!(topology.distances[0], [0, 2, 8, 8]);
        assert_eq!(topology.links, [0, 0, 2, 2]);
    }

    #[test]
    fn what_is_alike_or_unknown_is_left_out() {
        assert_eq!(from_pairs(3, |_, _| Some(8)), Topology::default());
        assert_eq!(from_pairs(3, |one, _| (one != 2).then_some(2)), Topology::default());
        assert_eq!(from_pairs(1, |_, _| None), Topology::default());
    }
}
