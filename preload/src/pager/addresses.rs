//! The program's own addresses: what it has reserved, and where memory that is the driver's own is mapped. Pure.
//!
//! Owns: what the driver would say of a range if all of the pager's memory were mapped. Does not own: where names are mapped (`names`).

use std::collections::BTreeMap;

/// Stretches by their beginnings.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    reserved: BTreeMap<u64, u64>,
    mapped: BTreeMap<u64, u64>,
}

impl Addresses {
    pub(crate) const fn new() -> Self {
        Addresses { reserved: BTreeMap::new(), mapped: BTreeMap::new() }
    }

    pub(crate) fn reserve(&mut self, address: u64, bytes: u64) {
        self.reserved.insert(address, bytes);
    }

    pub(crate) fn give(&mut self, address: u64) {
        self.reserved.remove(&address);
    }

    /// The driver has mapped memory of its own there.
    pub(crate) fn map(&mut self, address: u64, bytes: u64) {
        self.mapped.insert(address, bytes);
    }

    /// …and all that begins there is gone.
    pub(crate) fn unmap(&mut self, address: u64, bytes: u64) {
        let range = address..address.saturating_add(bytes);
        self.mapped.retain(|at, _| !range.contains(at));
    }

    /// Whether the driver would map something there: it is one reservation's, and nothing of the driver's own lies there.
    pub(crate) fn take(&self, address: u64, bytes: u64) -> bool {
        let Some(end) = address.checked_add(bytes) else { return false };
        let before = |stretches: &BTreeMap<u64, u64>, below: u64| {
            let (start, bytes) = stretches.range(..below).next_back()?;
            Some(start + bytes)
        };
        let is_reserved = before(&self.reserved, address + 1).is_some_and(|until| end <= until);
        let is_free = before(&self.mapped, end).is_none_or(|until| until <= address);
        is_reserved && is_free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_lies_in_one_reservation_and_over_no_other() {
        let mut addresses = Addresses::new();
        addresses.reserve(100, 50);
        addresses.reserve(150, 50);
        assert!(addresses.take(100, 50) && addresses.take(150, 50) && addresses.take(120, 30));
        assert!(!addresses.take(99, 2) && !addresses.take(140, 20) && !addresses.take(190, 11));
        addresses.map(120, 10);
        assert!(addresses.take(100, 20) && addresses.take(130, 20));
        assert!(!addresses.take(110, 11) && !addresses.take(125, 1) && !addresses.take(100, 50));
        addresses.unmap(100, 50);
        addresses.give(150);
        assert!(addresses.take(100, 50) && !addresses.take(150, 10));
        assert!(!addresses.take(100, u64::MAX));
    }
}
