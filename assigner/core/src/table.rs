//! Records by their number, side by side in memory: to look one up touches the index once and the record.
//!
//! Records keep their places, and new ones take places that are empty, so that what is used often stays where it is. The
//! order of the numbers is made when somebody asks for it.

use std::ops::Index;

/// What a record is known by.
pub(crate) trait Number: Copy + Ord {
    /// The number itself.
    fn number(self) -> u64;
}

/// Records by their number.
#[derive(Clone, Debug)]
pub(crate) struct Table<K, V> {
    places: Vec<Option<(K, V)>>,
    /// Places that are empty.
    empty: Vec<u32>,
    /// Where the record is, by hash, with open addressing; at most half of it is used.
    index: Vec<u32>,
}

/// Nothing is here.
const NOTHING: u32 = u32::MAX;

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table { places: Vec::new(), empty: Vec::new(), index: Vec::new() }
    }
}

impl<K: Number, V> Table<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.empty.len()
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let place = self.index[self.find(*key)?];
        self.places[place as usize].as_ref().map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let place = self.index[self.find(*key)?];
        self.places[place as usize].as_mut().map(|(_, value)| value)
    }

    /// Puts a record in; the one of the same number that was there.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        if let Some(known) = self.get_mut(&key) {
            return Some(std::mem::replace(known, value));
        }
        if self.index.len() < (self.len() + 1) * 2 {
            self.grow();
        }
        let place = self.empty.pop().unwrap_or_else(|| {
            self.places.push(None);
            u32::try_from(self.places.len() - 1).expect("so many records fit in no memory")
        });
        self.places[place as usize] = Some((key, value));
        self.enter(key, place);
        None
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let mut hole = self.find(*key)?;
        let place = std::mem::replace(&mut self.index[hole], NOTHING);
        // Who stands behind the hole, and would be looked for before it, moves into it.
        let mask = self.index.len() - 1;
        let mut at = (hole + 1) & mask;
        while self.index[at] != NOTHING {
            let home = self.home(self.key_at(self.index[at]));
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.index.swap(hole, at);
                hole = at;
            }
            at = (at + 1) & mask;
        }
        self.empty.push(place);
        self.places[place as usize].take().map(|(_, value)| value)
    }

    /// All records, in the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let mut all: Vec<&(K, V)> = self.places.iter().flatten().collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all.into_iter().map(|(key, value)| (key, value))
    }

    /// The same without the numbers.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// All records, in any order.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.places.iter_mut().flatten().map(|(key, value)| (&*key, value))
    }

    /// Where in the index a record's place stands.
    fn find(&self, key: K) -> Option<usize> {
        if self.index.is_empty() {
            return None;
        }
        let mut at = self.home(key);
        loop {
            match self.index[at] {
                NOTHING => return None,
                place if self.key_at(place) == key => return Some(at),
                _ => at = (at + 1) & (self.index.len() - 1),
            }
        }
    }

    fn key_at(&self, place: u32) -> K {
        self.places[place as usize].as_ref().expect("the index names places that are used").0
    }

    /// Where in the index a number is looked for first.
    fn home(&self, key: K) -> usize {
        let hash = key.number().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 32) as usize & (self.index.len() - 1)
    }

    fn enter(&mut self, key: K, place: u32) {
        let mut at = self.home(key);
        while self.index[at] != NOTHING {
            at = (at + 1) & (self.index.len() - 1);
        }
        self.index[at] = place;
    }

    fn grow(&mut self) {
        self.index = vec![NOTHING; (self.index.len() * 2).max(8)];
        for place in 0..self.places.len() {
            if let Some((key, _)) = &self.places[place] {
                self.enter(*key, place as u32);
            }
        }
    }
}

impl<K: Number, V> Index<&K> for Table<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("the caller knows that there is such a record")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl Number for u64 {
        fn number(self) -> u64 {
            self
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0u8..3, 0u64..40), 0..200)) {
            let (mut table, mut map) = (Table::default(), BTreeMap::new());
            for (value, (what, key)) in steps.into_iter().enumerate() {
                match what {
                    0 => prop_assert_eq!(table.remove(&key), map.remove(&key)),
                    _ => prop_assert_eq!(table.insert(key, value), map.insert(key, value)),
                }
                prop_assert!(table.iter().eq(&map));
                prop_assert_eq!(table.len(), map.len());
                for key in 0..40 {
                    prop_assert_eq!(table.get(&key), map.get(&key));
                }
            }
        }
    }
}
