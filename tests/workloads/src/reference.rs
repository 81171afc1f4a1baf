//! What the kernels must leave behind, computed on the CPU.
//!
//! Owns: the definitions of fill, step and sum. Does not own: running them on a GPU. All arithmetic
//! is on 64-bit words and wraps.

/// Multiplier of [`step`]: Knuth's, for a full period modulo 2^64.
pub const MULTIPLIER: u64 = 6_364_136_223_846_793_005;

/// The finaliser of Steele, Lea and Flood's generator, its increment included.
pub fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What `acb_fill` leaves in `words`.
pub fn fill(words: &mut [u64], seed: u64) {
    for (i, word) in words.iter_mut().enumerate() {
        *word = splitmix64(seed.wrapping_add(i as u64));
    }
}

/// What `acb_step` leaves in `words`.
pub fn step(words: &mut [u64], salt: u64) {
    Steps::default().then(salt).apply(words);
}

/// What `acb_sum` adds to its result.
pub fn sum(words: &[u64]) -> u64 {
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

/// Several steps in one: steps are affine, so they compose to `x * multiplier + addend`, and
/// checking a phase costs one pass over its data, however many kernels it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    multiplier: u64,
    addend: u64,
}

impl Default for Steps {
    fn default() -> Self {
        Self { multiplier: 1, addend: 0 }
    }
}

impl Steps {
    /// These steps, then one more.
    pub fn then(self, salt: u64) -> Self {
        Self {
            multiplier: self.multiplier.wrapping_mul(MULTIPLIER),
            addend: self.addend.wrapping_mul(MULTIPLIER).wrapping_add(salt),
        }
    }

    /// The sum of `count` words after the steps, whose sum was `sum` before.
    pub fn of_sum(self, sum: u64, count: u64) -> u64 {
        sum.wrapping_mul(self.multiplier).wrapping_add(self.addend.wrapping_mul(count))
    }

    /// Takes the steps with every word.
    pub fn apply(self, words: &mut [u64]) {
        for word in words {
            *word = word.wrapping_mul(self.multiplier).wrapping_add(self.addend);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_gives_the_published_sequence() {
        // The first outputs of the generator with seed 1234567.
        let golden = 0x9E37_79B9_7F4A_7C15u64;
        let outputs: Vec<u64> =
            (0..3).map(|i| splitmix64(1_234_567u64.wrapping_add(golden.wrapping_mul(i)))).collect();
        assert_eq!(
            outputs,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn steps_compose() {
        let mut one_by_one = [0u64; 9];
        fill(&mut one_by_one, 7);
        let mut at_once = one_by_one;
        let mut steps = Steps::default();
        for salt in [3, u64::MAX, 0, 12_345] {
            for word in &mut one_by_one {
                *word = word.wrapping_mul(MULTIPLIER).wrapping_add(salt);
            }
            steps = steps.then(salt);
        }
        steps.apply(&mut at_once);
        assert_eq!(at_once, one_by_one);
    }

    #[test]
    fn sum_wraps() {
        assert_eq!(sum(&[u64::MAX, 2, 3]), 4);
    }
}
