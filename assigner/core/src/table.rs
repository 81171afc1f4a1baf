//! Records by their number, side by side in memory: to look one up touches the index once and the record.
//!
//! Records keep their places, and new ones take places that are empty, so that what is used often stays where it is. The
//! order of the numbers is made when somebody asks for it.

use std::marker::PhantomData;
use std::ops::Index;

/// What a record is known by.
pub(crate) trait Number: Copy + Ord {
    /// The number itself.
    fn number(self) -> u64;
}

/// A record that knows what it is known by.
pub(crate) trait Record<K> {
    /// That.
    fn key(&self) -> &K;
}

/// Records by their number.
#[derive(Clone, Debug)]
pub(crate) struct Table<K, V> {
    places: Vec<Option<V>>,
    /// Places that are empty.
    empty: Vec<u32>,
    /// Where the record is, by its number, with open addressing; an eighth of it is free at least.
    index: Vec<u32>,
    keys: PhantomData<K>,
}

/// Nothing is here.
const NOTHING: u32 = u32::MAX;

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table { places: Vec::new(), empty: Vec::new(), index: Vec::new(), keys: PhantomData }
    }
}

impl<K: Number, V: Record<K>> Table<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.empty.len()
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let place = self.index[self.find(*key)?];
        self.places[place as usize].as_ref()
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let place = self.index[self.find(*key)?];
        self.places[place as usize].as_mut()
    }

    /// Puts a record in; the one of the same number that was there.
    pub(crate) fn insert(&mut self, value: V) -> Option<V> {
        let key = *value.key();
        if let Some(known) = self.get_mut(&key) {
            return Some(std::mem::replace(known, value));
        }
        if self.index.len() * 7 < (self.len() + 1) * 8 {
            self.grow();
        }
        let place = self.empty.pop().unwrap_or_else(|| {
            self.places.push(None);
            u32::try_from(self.places.len() - 1).expect("so many records fit in no memory")
        });
        self.places[place as usize] = Some(value);
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
        self.places[place as usize].take()
    }

    /// All records, in the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let mut all: Vec<&V> = self.places.iter().flatten().collect();
        all.sort_unstable_by_key(|value| *value.key());
        all.into_iter().map(|value| (value.key(), value))
    }

    /// The same without the numbers.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// All records, in any order.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.places.iter_mut().flatten()
    }

    /// Reads the lines of the index (`warm`).
    pub(crate) fn warm_index(&self) -> u64 {
        self.index.iter().step_by(16).fold(0, |seen, place| seen ^ u64::from(*place))
    }

    /// Records in no order, the first of them.
    pub(crate) fn some(&self) -> impl Iterator<Item = &V> {
        self.places.iter().flatten()
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
        *self.places[place as usize].as_ref().expect("the index names places that are used").key()
    }

    /// Where in the index a number is looked for first.
    fn home(&self, key: K) -> usize {
        // Numbers are given one after the other: so they stand, unless the index has come round.
        let number = key.number();
        (number ^ (number >> 7).wrapping_mul(0x9e37_79b9)) as usize & (self.index.len() - 1)
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
            if let Some(value) = &self.places[place] {
                self.enter(*value.key(), place as u32);
            }
        }
    }
}

impl<K: Number, V: Record<K>> Index<&K> for Table<K, V> {
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

    impl Record<u64> for (u64, usize) {
        fn key(&self) -> &u64 {
            &self.0
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0u8..3, 0u64..40), 0..200), apart in 0u32..20) {
            let (mut table, mut map) = (Table::default(), BTreeMap::new());
            for (value, (what, key)) in steps.into_iter().enumerate() {
                let key = key << apart;
                match what {
                    0 => prop_assert_eq!(table.remove(&key), map.remove(&key)),
                    _ => prop_assert_eq!(table.insert((key, value)), map.insert(key, (key, value))),
                }
                prop_assert!(table.iter().eq(&map));
                prop_assert_eq!(table.len(), map.len());
                for key in (0..40).map(|key| key << apart) {
                    prop_assert_eq!(table.get(&key), map.get(&key));
                }
            }
        }
    }
}
