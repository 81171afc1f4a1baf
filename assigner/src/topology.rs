//! How the GPUs of this node are connected, as NVML tells.
//!
//! Owns: what NVML's words count as distances, and who shares a way to the host. What is not known is not used: then
//! all GPUs are alike.

use std::path::Path;

use acb_core::Topology;
use nvml_wrapper::enum_wrappers::device::{P2pCapabilitiesIndex, P2pStatus, TopologyLevel};

use crate::inventory::{self, Device};

type NvmlDevice<'nvml> = nvml_wrapper::Device<'nvml>;

/// The most NVLinks that a GPU has.
const LINKS: u32 = 18;

/// The topology of these GPUs.
pub fn topology(library: Option<&Path>, gpus: &[Device]) -> Topology {
    let Ok(nvml) = inventory::nvml(library) else { return Topology::default() };
    let opened: Result<Vec<NvmlDevice<'_>>, _> =
        gpus.iter().map(|gpu| nvml.device_by_index(gpu.index)).collect();
    let Ok(opened) = opened else { return Topology::default() };
    from_pairs(gpus.len(), |one, other| {
        if gpus[one].index == gpus[other].index {
            return Some(Way { bus: TopologyLevel::Internal, linked: false }); // slices of one GPU
        }
        let again = nvml.device_by_index(gpus[other].index).ok()?;
        let bus = opened[one].topology_common_ancestor(again).ok()?;
        Some(Way { bus, linked: are_linked(&opened[one], &opened[other]) })
    })
}

/// True if two GPUs reach each other over NVLink, directly or through switches. Of a link NVML names the device at its
/// other end, which may be a switch; so that is looked at only where the driver does not tell of pairs.
fn are_linked(one: &NvmlDevice<'_>, other: &NvmlDevice<'_>) -> bool {
    if let Ok(status) = one.p2p_status(other, P2pCapabilitiesIndex::NvLink) {
        return status == P2pStatus::Ok;
    }
    let Ok(address) = other.pci_info().map(|pci| pci.bus_id) else { return false };
    (0..LINKS).any(|link| {
        let link = one.link_wrapper_for(link);
        link.is_active().is_ok_and(|active| active)
            && link.remote_pci_info().is_ok_and(|pci| pci.bus_id == address)
    })
}

/// How two GPUs are connected.
#[derive(Clone, Copy)]
struct Way {
    /// What they have in common on the way to the host.
    bus: TopologyLevel,
    /// True if they reach each other over NVLink, whatever the bus.
    linked: bool,
}

impl Way {
    /// Below a PCIe switch data does not pass the processor. GPUs with NVLink are better used at one processor, too:
    /// the memory of a program is near one.
    fn distance(&self) -> u32 {
        match (&self.bus, self.linked) {
            (TopologyLevel::Internal, _) => 0,
            (TopologyLevel::System, true) => 2,
            (_, true) => 1,
            (TopologyLevel::Single, _) => 3,
            (TopologyLevel::Multiple, _) => 4,
            (TopologyLevel::HostBridge, _) => 5,
            (TopologyLevel::Node, _) => 6,
            (TopologyLevel::System, _) => 9,
        }
    }

    /// True for GPUs on one board or below one switch: they share its way to the host. NVLink does not lead there.
    fn is_shared(&self) -> bool {
        use TopologyLevel::{Internal, Multiple, Single};
        matches!(self.bus, Internal | Single | Multiple)
    }
}

/// The topology from the way between each two; the default where one is not known, or all are alike.
fn from_pairs(gpus: usize, between: impl Fn(usize, usize) -> Option<Way>) -> Topology {
    let own = Way { bus: TopologyLevel::Internal, linked: false };
    let row = |one| {
        let way = |other| if one == other { Some(own) } else { between(one, other) };
        (0..gpus).map(way).collect()
    };
    let rows: Option<Vec<Vec<Way>>> = (0..gpus).map(row).collect();
    let Some(ways) = rows else { return Topology::default() };
    let mut links: Vec<u32> = Vec::new();
    for (gpu, row) in ways.iter().enumerate() {
        let mate = (0..gpu).find(|mate| row[*mate].is_shared());
        let own = u32::try_from(gpu).expect("NVML numbers GPUs with 32 bits");
        links.push(mate.map_or(own, |mate| links[mate]));
    }
    let distances: Vec<Vec<u32>> =
        ways.iter().map(|row| row.iter().map(Way::distance).collect()).collect();
    let mut apart = (0..gpus).flat_map(|one| (0..one).map(move |other| (one, other)));
    let alike = apart.all(|(one, other)| distances[one][other] == distances[1][0]);
    if alike && links.iter().collect::<std::collections::BTreeSet<_>>().len() == gpus {
        return Topology::default();
    }
    Topology { distances, links }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(bus: TopologyLevel, linked: bool) -> Option<Way> {
        Some(Way { bus, linked })
    }

    /// Two pairs of GPUs, each below a switch of its own, at two processors.
    fn pairs(linked: bool) -> Topology {
        from_pairs(4, |one, other| match one / 2 == other / 2 {
            true => way(TopologyLevel::Single, linked),
            false => way(TopologyLevel::System, false),
        })
    }

    #[test]
    fn pairs_below_one_switch_share_their_link() {
        let topology = pairs(false);
        assert_eq!(topology.distances[0], [0, 3, 9, 9]);
        assert_eq!(topology.links, [0, 0, 2, 2]);
    }

    #[test]
    fn nvlink_brings_gpus_closer_and_is_no_way_to_the_host() {
        let topology = pairs(true);
        assert_eq!(topology.distances[0], [0, 1, 9, 9]);
        assert_eq!(topology.distances[2], [9, 9, 0, 1]);
        assert_eq!(topology.links, [0, 0, 2, 2]);
        // A pair alone: nothing to choose between, but one way to the host.
        let pair = from_pairs(2, |_, _| way(TopologyLevel::Single, true));
        assert_eq!(pair.links, [0, 0]);
    }

    #[test]
    fn eight_gpus_on_nvlink_switches_are_best_used_at_one_processor() {
        // Four at each of two processors, two and two below a switch.
        let board = from_pairs(8, |one, other| match () {
            () if one / 2 == other / 2 => way(TopologyLevel::Single, true),
            () if one / 4 == other / 4 => way(TopologyLevel::Node, true),
            () => way(TopologyLevel::System, true),
        });
        assert_eq!(board.distances[1], [1, 0, 1, 1, 2, 2, 2, 2]);
        assert_eq!(board.distances[6], [2, 2, 2, 2, 1, 1, 0, 1]);
        assert_eq!(board.links, [0, 0, 2, 2, 4, 4, 6, 6]);
    }

    #[test]
    fn four_gpus_without_nvlink_have_their_processors_alone_in_common() {
        let board = from_pairs(4, |one, other| match one / 2 == other / 2 {
            true => way(TopologyLevel::HostBridge, false),
            false => way(TopologyLevel::System, false),
        });
        assert_eq!(board.distances[0], [0, 5, 9, 9]);
        assert_eq!(board.links, [0, 1, 2, 3]);
    }

    #[test]
    fn switches_behind_one_another_lead_to_the_host_over_one_link() {
        let board = from_pairs(3, |_, _| way(TopologyLevel::Multiple, false));
        assert_eq!(board.links, [0, 0, 0]);
        assert_eq!(board.distances[0], [0, 4, 4]);
    }

    #[test]
    fn what_is_alike_or_unknown_is_left_out() {
        let far = || way(TopologyLevel::System, false);
        assert_eq!(from_pairs(3, |_, _| far()), Topology::default());
        assert_eq!(from_pairs(3, |one, _| (one != 2).then(far)?), Topology::default());
        assert_eq!(from_pairs(1, |_, _| None), Topology::default());
    }
}
