//! Which devices may reach the memory of others: peer access between contexts, access to pools. Pure.
//!
//! Owns: what the program has enabled, as grants for new mappings. Does not own: opening what is mapped already (`Pager::spread`).
//!
//! The driver opens the memory of one context to another; mapped memory is open to whole devices. So all of a device's memory is
//! open to another one as long as any of their contexts has that enabled: more than a program may rely on, never less.

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
}

impl Peers {
    pub(crate) const fn new() -> Self {
        Peers { reasons: BTreeMap::new() }
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
        let by: BTreeSet<u32> =
            self.reasons.values().filter(|pair| pair.owner == owner).map(|pair| pair.by).collect();
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
