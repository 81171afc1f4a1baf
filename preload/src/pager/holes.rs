//! Free places in a stretch of addresses: taken first-fit, joined again when given back. Pure.
//!
//! Owns: which bytes of the stretch are free. Does not own: what is in the others.

use std::collections::BTreeMap;

/// The holes of one stretch, by where they begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holes {
    holes: BTreeMap<u64, u64>,
    free: u64,
}

impl Holes {
    /// A stretch of `bytes`, all of it free.
    pub(crate) fn new(bytes: u64) -> Self {
        Holes { holes: BTreeMap::from([(0, bytes)]), free: bytes }
    }

    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    /// Takes `bytes` in one piece, from the first hole that has them.
    pub(crate) fn take(&mut self, bytes: u64) -> Option<u64> {
        let (at, length) =
            self.holes.iter().find(|(_, length)| **length >= bytes).map(|(at, l)| (*at, *l))?;
        self.cut(at, length, bytes);
        Some(at)
    }

    /// Takes `bytes` at most, of the first hole there is.
    pub(crate) fn take_some(&mut self, bytes: u64) -> Option<(u64, u64)> {
        let (at, length) = self.holes.first_key_value().map(|(at, length)| (*at, *length))?;
        let bytes = bytes.min(length);
        self.cut(at, length, bytes);
        Some((at, bytes))
    }

    fn cut(&mut self, at: u64, length: u64, bytes: u64) {
        self.holes.remove(&at);
        if length > bytes {
            self.holes.insert(at + bytes, length - bytes);
        }
        self.free -= bytes;
    }

    /// Gives back what was taken.
    pub(crate) fn give(&mut self, at: u64, bytes: u64) {
        self.free += bytes;
        let (mut at, mut bytes) = (at, bytes);
        if let Some((&before, &length)) = self.holes.range(..at).next_back()
            && before + length == at
        {
            self.holes.remove(&before);
            at = before;
            bytes += length;
        }
        if let Some(length) = self.holes.remove(&(at + bytes)) {
            bytes += length;
        }
        self.holes.insert(at, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_are_joined() {
        let mut holes = Holes::new(100);
        let (a, b, c) = (holes.take(30).unwrap(), holes.take(30).unwrap(), holes.take(40).unwrap());
        assert_eq!((a, b, c), (0, 30, 60));
        assert_eq!(holes.take(1), None);
        holes.give(a, 30);
        holes.give(c, 40);
        assert_eq!(holes.take(50), None, "no hole is that large");
        holes.give(b, 30);
        assert_eq!(holes, Holes::new(100));
    }

    proptest! {
        #[test]
        fn what_is_taken_never_overlaps(steps in prop::collection::vec((any::<bool>(), 1u64..60), 1..200)) {
            let mut holes = Holes::new(256);
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (take, number) in steps {
                if take {
                    if let Some(at) = holes.take(number) {
                        prop_assert!(at + number <= 256);
                        prop_assert!(taken.iter().all(|(a, n)| at + number <= *a || a + n <= at));
                        taken.push((at, number));
                    }
                } else if !taken.is_empty() {
                    let (at, bytes) = taken.swap_remove(number as usize % taken.len());
                    holes.give(at, bytes);
                }
                prop_assert_eq!(holes.free(), 256 - taken.iter().map(|(_, n)| n).sum::<u64>());
            }
            for (at, bytes) in taken {
                holes.give(at, bytes);
            }
            prop_assert_eq!(holes, Holes::new(256));
        }
    }
}
