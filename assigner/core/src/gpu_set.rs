//! A set of GPUs, as bits: plans make and walk many of them, and a node has few GPUs.

use crate::ids::Gpu;

/// A set of GPUs, walked in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GpuSet {
    /// The first 64.
    low: u64,
    /// 64 more with each.
    high: Vec<u64>,
}

impl GpuSet {
    /// Those of the numbers below `count`.
    pub(crate) fn first(count: usize) -> GpuSet {
        match count {
            0..64 => GpuSet { low: (1 << count) - 1, high: Vec::new() },
            _ => (0..).map(Gpu).take(count).collect(),
        }
    }

    /// True if it was not in it.
    pub(crate) fn insert(&mut self, gpu: Gpu) -> bool {
        let bit = 1 << (gpu.index() % 64);
        let word = match gpu.index() / 64 {
            0 => &mut self.low,
            at => {
                if self.high.len() < at {
                    self.high.resize(at, 0);
                }
                &mut self.high[at - 1]
            }
        };
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    pub(crate) fn remove(&mut self, gpu: Gpu) {
        let bit = 1 << (gpu.index() % 64);
        match gpu.index() / 64 {
            0 => self.low &= !bit,
            at => self.high.iter_mut().skip(at - 1).take(1).for_each(|word| *word &= !bit),
        }
    }

    pub(crate) fn contains(&self, gpu: Gpu) -> bool {
        let word = match gpu.index() / 64 {
            0 => self.low,
            at => self.high.get(at - 1).copied().unwrap_or(0),
        };
        word & 1 << (gpu.index() % 64) != 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.low == 0 && self.high.iter().all(|word| *word == 0)
    }

    /// Takes out the one of the lowest number.
    pub(crate) fn pop_first(&mut self) -> Option<Gpu> {
        let words = std::iter::once(&mut self.low).chain(&mut self.high);
        let (at, word) = (0..).zip(words).find(|(_, word)| **word != 0)?;
        let bit = word.trailing_zeros();
        *word &= *word - 1;
        Some(Gpu(at * 64 + bit))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Gpu> + Clone {
        let words = std::iter::once(self.low).chain(self.high.iter().copied());
        (0..).zip(words).flat_map(|(at, word)| Bits(word).map(move |bit| Gpu(at * 64 + bit)))
    }
}

/// The places of the bits that are set.
#[derive(Clone)]
struct Bits(u64);

impl Iterator for Bits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let bit = self.0.trailing_zeros();
        (bit < 64).then(|| {
            self.0 &= self.0 - 1;
            bit
        })
    }
}

impl Extend<Gpu> for GpuSet {
    fn extend<T: IntoIterator<Item = Gpu>>(&mut self, gpus: T) {
        for gpu in gpus {
            self.insert(gpu);
        }
    }
}

impl<'a> Extend<&'a Gpu> for GpuSet {
    fn extend<T: IntoIterator<Item = &'a Gpu>>(&mut self, gpus: T) {
        self.extend(gpus.into_iter().copied());
    }
}

impl FromIterator<Gpu> for GpuSet {
    fn from_iter<T: IntoIterator<Item = Gpu>>(gpus: T) -> GpuSet {
        let mut set = GpuSet::default();
        set.extend(gpus);
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_in_order(numbers in proptest::collection::vec(0u32..200, 0..60), below in 0usize..200) {
            let expected: BTreeSet<Gpu> = numbers.iter().copied().map(Gpu).collect();
            let mut set = GpuSet::default();
            for (at, number) in numbers.iter().enumerate() {
                prop_assert_eq!(set.insert(Gpu(*number)), !numbers[..at].contains(number));
            }
            prop_assert!(set.iter().eq(expected.iter().copied()));
            prop_assert!((0..300).map(Gpu).all(|gpu| set.contains(gpu) == expected.contains(&gpu)));
            prop_assert!(GpuSet::first(below).iter().eq((0..below as u32).map(Gpu)));
            let mut without = set.clone();
            without.remove(Gpu(below as u32));
            let others = expected.iter().copied().filter(|gpu| gpu.index() != below);
            prop_assert!(without.iter().eq(others));
            let popped: Vec<Gpu> = std::iter::from_fn(|| set.pop_first()).collect();
            prop_assert!(popped.into_iter().eq(expected) && set.is_empty());
        }
    }
}
