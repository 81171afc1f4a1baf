//! Which devices may reach the memory of others: peer access between contexts, access to pools, copies. Pure.
//!
//! Owns: who reaches whose memory, as grants for new mappings. Does not own: opening what is mapped already (`Pager::spread`).
//!
//! The driver copies memory of its own allocations between all devices, and opens the memory of one context to another; mapped memory
//! is open to whole devices, and copied by these alone. So all of a device's memory is open to every device that can reach it and has
//! a context: more than a program may rely on, never less. Devices without a context copy nothing, and to open memory costs time.

use super::device::read_write;
use super::table::Grant;
use std::collections::{BTreeMap, BTreeSet};

/// Why one device reaches the memory of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    /// A context has enabled access to another.
    Contexts { from: usize, to: usize },
    /// Access to a pool was set, for this device.
    Pool { pool: u64, by: u32 },
}

/// A device that reaches the memory of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    by: u32,
    owner: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Peers {
    reasons: BTreeMap<Reason, Pair>,
    /// Who can reach whose memory, as the driver says.
    able: Vec<Pair>,
    /// Devices that have, or had, a context.
    present: BTreeSet<u32>,
    /// Devices whose memory the driver would not open although others can reach it.
    closed: BTreeSet<u32>,
}

impl Peers {
    pub(crate) const fn new() -> Self {
        Peers {
            reasons: BTreeMap::new(),
            able: Vec::new(),
            present: BTreeSet::new(),
            closed: BTreeSet::new(),
        }
    }

    /// Device `by` can reach memory of device `owner`.
    pub(crate) fn can(&mut self, by: u32, owner: u32) {
        self.able.push(Pair { by, owner });
    }

    /// A device has a context; whose memory is open to it from now on.
    pub(crate) fn arrive(&mut self, device: u32) -> BTreeSet<u32> {
        if !self.present.insert(device) {
            return BTreeSet::new();
        }
        let able = self.able.iter().filter(|pair| pair.by == device);
        able.map(|pair| pair.owner).filter(|owner| !self.closed.contains(owner)).collect()
    }

    pub(crate) fn is_present(&self, device: u32) -> bool {
        self.present.contains(&device)
    }

    /// The driver does not open a device's memory; true: that is news.
    pub(crate) fn close(&mut self, owner: u32) -> bool {
        self.closed.insert(owner)
    }

    /// Whether the driver opens a device's memory like this.
    pub(crate) fn may_be_granted(&self, owner: u32, (kind, id, flags): Grant) -> bool {
        let (own, _, _) = read_write(owner);
        let by = id as u32;
        flags == 0 || kind != own || by == owner || self.able.contains(&Pair { by, owner })
    }

    /// Whether a device copies memory of another.
    pub(crate) fn reaches(&self, by: u32, owner: u32) -> bool {
        by == owner || self.open_to(owner).any(|other| other == by)
    }

    /// Whether there are two devices of which one does not reach the other's memory.
    pub(crate) fn are_apart(&self) -> bool {
        let all = || self.present.iter().copied();
        all().any(|by| all().any(|owner| !self.reaches(by, owner)))
    }

    /// Devices that a device's memory is open to, beside itself; some twice.
    fn open_to(&self, owner: u32) -> impl Iterator<Item = u32> + '_ {
        let able = self.able.iter().filter(move |pair| {
            pair.owner == owner && self.present.contains(&pair.by) && !self.closed.contains(&owner)
        });
        let enabled = self.reasons.values().filter(move |pair| pair.owner == owner);
        able.chain(enabled).map(|pair| pair.by)
    }

    /// Context `from`, on device `by`, reaches memory of context `to`, on device `owner`.
    pub(crate) fn enable(&mut self, from: usize, to: usize, by: u32, owner: u32) {
        self.reasons.insert(Reason::Contexts { from, to }, Pair { by, owner });
    }

    /// No longer; the device whose memory it was.
    pub(crate) fn disable(&mut self, from: usize, to: usize) -> Option<u32> {
        self.reasons.remove(&Reason::Contexts { from, to }).map(|pair| pair.owner)
    }

    /// Device `by` reaches memory of a pool on device `owner`, or does not any more.
    pub(crate) fn set_pool(&mut self, pool: u64, by: u32, owner: u32, open: bool) {
        let reason = Reason::Pool { pool, by };
        match open && by != owner {
            true => self.reasons.insert(reason, Pair { by, owner }),
            false => self.reasons.remove(&reason),
        };
    }

    /// A context is gone; the devices that had been opened for it.
    pub(crate) fn context_gone(&mut self, context: usize) -> BTreeSet<u32> {
        self.forget(|reason| match reason {
            Reason::Contexts { from, to } => *from == context || *to == context,
            Reason::Pool { .. } => false,
        })
    }

    /// A pool is gone; the same.
    pub(crate) fn pool_gone(&mut self, gone: u64) -> BTreeSet<u32> {
        self.forget(|reason| matches!(reason, Reason::Pool { pool, .. } if *pool == gone))
    }

    fn forget(&mut self, of: impl Fn(&Reason) -> bool) -> BTreeSet<u32> {
        let gone: BTreeSet<u32> =
            self.reasons.iter().filter(|(why, _)| of(why)).map(|(_, pair)| pair.owner).collect();
        self.reasons.retain(|why, _| !of(why));
        gone
    }

    /// Access to a device's memory; `None`: only its own.
    pub(crate) fn grants(&self, owner: u32) -> Option<Vec<Grant>> {
        let by: BTreeSet<u32> = self.open_to(owner).collect();
        let all = std::iter::once(owner).chain(by.iter().copied());
        (!by.is_empty()).then(|| all.map(read_write).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_open_as_long_as_any_context_has_it_enabled() {
        let mut peers = Peers::new();
        assert_eq!(peers.grants(1), None);
        peers.enable(10, 20, 0, 1);
        peers.enable(11, 20, 0, 1);
        peers.enable(30, 20, 2, 1);
        let [own, first, third] = [1, 0, 2].map(read_write);
        assert_eq!(peers.grants(1), Some(vec![own, first, third]));
        assert_eq!(peers.grants(0), None, "not the other way round");
        assert_eq!(peers.disable(10, 20), Some(1));
        assert_eq!(peers.disable(10, 20), None, "not twice");
        assert_eq!(peers.context_gone(30), BTreeSet::from([1]));
        assert_eq!(peers.grants(1), Some(vec![own, first]));
        assert_eq!(peers.context_gone(20), BTreeSet::from([1]));
        assert_eq!(peers.grants(1), None);
    }

    #[test]
    fn memory_is_open_to_every_device_that_reaches_it_once_that_has_a_context() {
        let mut peers = Peers::new();
        for (by, owner) in [(0, 1), (1, 0), (2, 1)] {
            peers.can(by, owner);
        }
        assert_eq!(peers.arrive(0), BTreeSet::from([1]));
        assert_eq!(peers.arrive(0), BTreeSet::new(), "not twice");
        assert_eq!(peers.grants(0), None, "nobody is there who could reach it");
        assert_eq!(peers.grants(1), Some(vec![read_write(1), read_write(0)]));
        assert!(!peers.are_apart());
        assert_eq!(peers.arrive(1), BTreeSet::from([0]));
        assert!(peers.reaches(1, 0) && peers.reaches(1, 1) && !peers.are_apart());
        assert_eq!(peers.arrive(2), BTreeSet::from([1]));
        assert!(!peers.reaches(2, 0) && peers.are_apart());
        assert_eq!(peers.grants(1), Some(vec![read_write(1), read_write(0), read_write(2)]));
        assert!(peers.may_be_granted(1, read_write(2)) && peers.may_be_granted(0, read_write(0)));
        assert!(!peers.may_be_granted(0, read_write(2)) && peers.may_be_granted(0, (1, 2, 0)));
        assert!(peers.close(1) && !peers.close(1));
        assert_eq!(peers.grants(1), None);
        peers.enable(10, 20, 0, 1);
        assert_eq!(peers.grants(1), Some(vec![read_write(1), read_write(0)]), "asked for");
    }

    #[test]
    fn pools_are_opened_by_device_and_closed_with_their_end() {
        let mut peers = Peers::new();
        peers.set_pool(7, 0, 1, true);
        peers.set_pool(8, 0, 1, true);
        peers.set_pool(7, 1, 1, true);
        assert_eq!(peers.grants(1), Some(vec![read_write(1), read_write(0)]));
        peers.set_pool(7, 0, 1, false);
        assert!(peers.grants(1).is_some(), "the other pool is open still");
        assert_eq!(peers.pool_gone(8), BTreeSet::from([1]));
        assert_eq!(peers.grants(1), None);
    }
}
