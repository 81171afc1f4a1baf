//! Which chunk is the next to leave, while it is still being found out which of them have changed. Pure.
//!
//! Owns: the order. Does not own: what is known of a chunk (`table`), or finding it out (`mover::pass`).
//!
//! Unchanged chunks go first, for they need not be copied; they go as soon as they are known. A changed one is copied meanwhile only
//! if so much is asked for that it will have to go, should those not yet known be like those that are.

use super::table::{ChunkId, Fate};
use std::collections::{BTreeMap, VecDeque};

/// Chunks that can go, in their order.
#[derive(Debug, Default)]
pub(crate) struct Victims {
    unchanged: VecDeque<ChunkId>,
    changed: VecDeque<ChunkId>,
    unknown: BTreeMap<ChunkId, u64>,
    /// Bytes that have become known, and how many of them were unchanged.
    known: u64,
    alike: u64,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Take(ChunkId),
    /// More will be known soon.
    Wait,
    /// All are gone, or on their way.
    Nothing,
}

impl Victims {
    /// All that can go, in the order of `Table::victims`.
    pub(crate) fn new(all: Vec<(Fate, u64, ChunkId)>) -> Self {
        let mut victims = Victims::default();
        for (fate, bytes, id) in all {
            match fate {
                Fate::Untouched | Fate::Alike => victims.unchanged.push_back(id),
                Fate::Changed => victims.changed.push_back(id),
                Fate::Unknown => drop(victims.unknown.insert(id, bytes)),
            }
        }
        victims
    }

    /// One of those not known is known now.
    pub(crate) fn learn(&mut self, id: ChunkId, fate: Fate) {
        let Some(bytes) = self.unknown.remove(&id) else { return };
        self.known += bytes;
        match fate {
            Fate::Untouched | Fate::Alike => {
                self.alike += bytes;
                self.unchanged.push_back(id);
            }
            Fate::Changed | Fate::Unknown => self.changed.push_back(id),
        }
    }

    /// Which one goes next, where `missing` bytes are asked for and not on their way.
    pub(crate) fn next(&mut self, missing: u64) -> Next {
        if let Some(id) = self.unchanged.pop_front() {
            return Next::Take(id);
        }
        if missing > self.expected()
            && let Some(id) = self.changed.pop_front()
        {
            return Next::Take(id);
        }
        if self.unknown.is_empty() { Next::Nothing } else { Next::Wait }
    }

    /// Bytes that will be found unchanged, as far as one can tell.
    fn expected(&self) -> u64 {
        let unknown: u64 = self.unknown.values().sum();
        match self.known {
            0 => unknown,
            known => (u128::from(unknown) * u128::from(self.alike) / u128::from(known)) as u64,
        }
    }

    /// It cannot go yet: it is the next of those that are copied.
    pub(crate) fn put_back(&mut self, id: ChunkId) {
        self.changed.push_front(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::account::Account;
    use crate::pager::table::{State, Table};

    fn ids<const N: usize>() -> [ChunkId; N] {
        let mut table = Table::new();
        table.accounts = vec![Account::default()];
        std::array::from_fn(|_| table.add(0, 1, Vec::new(), State::Absent))
    }

    #[test]
    fn what_is_found_unchanged_goes_before_what_must_be_copied() {
        let [a, b, c, d, e] = ids();
        let mut victims = Victims::new(vec![
            (Fate::Untouched, 10, a),
            (Fate::Changed, 10, b),
            (Fate::Unknown, 10, c),
            (Fate::Unknown, 10, d),
            (Fate::Unknown, 10, e),
        ]);
        assert_eq!(victims.next(40), Next::Take(a));
        assert_eq!(victims.next(30), Next::Wait, "all three may be unchanged");
        victims.learn(c, Fate::Alike);
        assert_eq!(victims.next(30), Next::Take(c));
        assert_eq!(victims.next(20), Next::Wait, "the other two will be");
        victims.learn(d, Fate::Changed);
        assert_eq!(victims.next(20), Next::Take(b), "at most one of the two will be");
        assert_eq!(victims.next(10), Next::Take(d), "there is a better chance that it will not");
        victims.put_back(d);
        victims.learn(e, Fate::Alike);
        assert_eq!(victims.next(10), Next::Take(e));
        assert_eq!(victims.next(10), Next::Take(d), "more is asked for");
        assert_eq!(victims.next(10), Next::Nothing);
    }

    #[test]
    fn what_must_be_copied_in_any_case_does_not_wait() {
        let [a, b, c] = ids();
        let mut victims = Victims::new(vec![
            (Fate::Changed, 10, a),
            (Fate::Changed, 10, b),
            (Fate::Unknown, 10, c),
        ]);
        assert_eq!(victims.next(30), Next::Take(a));
        assert_eq!(victims.next(20), Next::Take(b));
        assert_eq!(victims.next(10), Next::Wait);
        victims.learn(b, Fate::Alike);
        assert_eq!(victims.next(10), Next::Wait, "it was known before");
    }
}
