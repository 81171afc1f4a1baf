//! How GPUs are connected: what they share on the way to the host, and NVLink. Only told, never
//! charged for: `link_out` and `link_in` hold for each GPU alone.

use crate::config::GpuConfig;

/// The most NVLinks that a GPU has (NVML_NVLINK_MAX_LINKS).
pub const NVLINKS_MAX: usize = 18;

/// One GPU's way to the host, and its NVLinks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connection {
    /// The processor (NUMA node) that it is at.
    pub node: u32,
    /// The PCIe switch that it is below, if any.
    pub switch: Option<u32>,
    /// What is at the other end of each of its NVLinks.
    pub nvlinks: Vec<NvLinkEnd>,
}

/// The other end of an NVLink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NvLinkEnd {
    /// A GPU.
    Gpu(usize),
    /// The NVLink switch of this number, which leads to all GPUs that have links to switches.
    Switch(usize),
}

/// What two GPUs have in common on the way to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ancestor {
    /// They are the same.
    Itself,
    /// One PCIe switch.
    Switch,
    /// A processor.
    Node,
    /// The processors' own link.
    System,
}

impl Connection {
    /// What GPUs with these two connections have in common. They are not the same.
    #[must_use]
    pub fn ancestor(&self, other: &Connection) -> Ancestor {
        match (self.switch, other.switch) {
            (Some(one), Some(two)) if one == two => Ancestor::Switch,
            _ if self.node == other.node => Ancestor::Node,
            _ => Ancestor::System,
        }
    }

    /// True if NVLink leads to GPU `to`, which has this other connection.
    #[must_use]
    pub fn reaches(&self, to: usize, other: &Connection) -> bool {
        let switched =
            |one: &Connection| one.nvlinks.iter().any(|end| matches!(end, NvLinkEnd::Switch(_)));
        self.nvlinks.contains(&NvLinkEnd::Gpu(to)) || (switched(self) && switched(other))
    }
}

/// What cannot be of these GPUs' connections.
pub(crate) fn check(gpus: &[GpuConfig]) -> Result<(), String> {
    let to = |from: &GpuConfig, gpu| {
        from.connection.nvlinks.iter().filter(|end| **end == NvLinkEnd::Gpu(gpu)).count()
    };
    for (index, gpu) in gpus.iter().enumerate() {
        let own = &gpu.connection;
        if own.nvlinks.len() > NVLINKS_MAX {
            return Err(format!(
                "GPU {index} has {} NVLinks (`nvlinks` and `nvswitch_links`): there may be at most {NVLINKS_MAX}",
                own.nvlinks.len()
            ));
        }
        if to(gpu, index) > 0 {
            return Err(format!("`nvlinks` of GPU {index} names the GPU itself"));
        }
        for (other, there) in gpus.iter().enumerate() {
            let torn = own.switch.is_some()
                && own.switch == there.connection.switch
                && own.node != there.connection.node;
            if torn {
                return Err(format!(
                    "GPUs {index} and {other} have the same `switch` but not the same `node`"
                ));
            }
            if to(gpu, other) != to(there, index) {
                return Err(format!(
                    "`nvlinks` of GPU {index} names GPU {other} {} times, that one's names GPU {index} {} times: a link has two ends",
                    to(gpu, other),
                    to(there, index)
                ));
            }
        }
        let far = own.nvlinks.iter().find_map(|end| match end {
            NvLinkEnd::Gpu(gpu) => (*gpu >= gpus.len()).then_some(*gpu),
            NvLinkEnd::Switch(_) => None,
        });
        if let Some(far) = far {
            return Err(format!("`nvlinks` of GPU {index} names GPU {far}: there is none"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nvlink_leads_to_its_other_end_and_through_switches() {
        let direct = Connection { nvlinks: vec![NvLinkEnd::Gpu(1)], ..Connection::default() };
        let switched = Connection { nvlinks: vec![NvLinkEnd::Switch(0)], ..Connection::default() };
        assert!(direct.reaches(1, &switched));
        assert!(!direct.reaches(2, &switched));
        assert!(switched.reaches(5, &switched));
        assert!(!switched.reaches(5, &Connection::default()));
    }

    #[test]
    fn what_two_have_in_common_is_the_closest() {
        let at = |node, switch| Connection { node, switch, nvlinks: Vec::new() };
        assert_eq!(at(0, Some(1)).ancestor(&at(0, Some(1))), Ancestor::Switch);
        assert_eq!(at(0, Some(1)).ancestor(&at(0, Some(2))), Ancestor::Node);
        assert_eq!(at(0, None).ancestor(&at(0, None)), Ancestor::Node);
        assert_eq!(at(0, None).ancestor(&at(1, None)), Ancestor::System);
    }
}
