//! A sorted list that is a set: what waits comes at its end and goes at its beginning, and its memory stays where it is.

use std::collections::VecDeque;

/// Values in their order, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sorted<T>(VecDeque<T>);

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Sorted(VecDeque::new())
    }
}

impl<T: Ord> Sorted<T> {
    /// True if it was not there.
    pub(crate) fn insert(&mut self, value: T) -> bool {
        if self.0.back().is_none_or(|last| *last < value) {
            self.0.push_back(value);
            return true;
        }
        match self.0.binary_search(&value) {
            Ok(_) => false,
            Err(at) => {
                self.0.insert(at, value);
                true
            }
        }
    }

    /// True if it was there.
    pub(crate) fn remove(&mut self, value: &T) -> bool {
        let found = self.0.binary_search(value);
        found.is_ok_and(|at| self.0.remove(at).is_some())
    }

    pub(crate) fn contains(&self, value: &T) -> bool {
        self.0.binary_search(value).is_ok()
    }

    pub(crate) fn first(&self) -> Option<&T> {
        self.0.front()
    }

    /// The first that is larger than a value, which need not be there.
    pub(crate) fn after(&self, value: &T) -> Option<&T> {
        self.0.get(self.0.partition_point(|other| other <= value))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ops::Bound;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_sorted_set(steps in proptest::collection::vec((any::<bool>(), 0u8..20), 0..80)) {
            let (mut sorted, mut set) = (Sorted::default(), BTreeSet::new());
            for (inserts, value) in steps {
                match inserts {
                    true => prop_assert_eq!(sorted.insert(value), set.insert(value)),
                    false => prop_assert_eq!(sorted.remove(&value), set.remove(&value)),
                }
                prop_assert!(sorted.iter().eq(&set));
                prop_assert_eq!(sorted.contains(&value), set.contains(&value));
                prop_assert_eq!(sorted.first(), set.first());
                let mut after = set.range((Bound::Excluded(value), Bound::Unbounded));
                prop_assert_eq!(sorted.after(&value), after.next());
            }
        }
    }
}
