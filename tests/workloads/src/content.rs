//! What a piece of device memory must hold, known without a copy of it.
//!
//! Owns: the arithmetic. A piece is filled from its seed; then its first words, the changing ones, take
//! steps, and the rest stays. Both kernels are affine on sums, so the sum of a piece follows from two
//! numbers that are computed once, however many steps it has taken. Pieces have different seeds: one that
//! is missing, old, or another's has another sum. Does not own: the memory ([`crate::memory`]).

use crate::reference::{Steps, splitmix64};

/// Words of a piece at most: 2 MiB, the least that a driver maps.
pub const PIECE_WORDS: u64 = (2 << 20) / 8;

/// What must be in a piece of memory.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Words.
    pub words: u64,
    /// How many of them, from the first on, take the steps.
    pub changing: u64,
    /// Word i is `splitmix64(seed + i)` at first.
    pub seed: u64,
    sum_changing: u64,
    sum_still: u64,
}

impl Piece {
    /// A piece that is to be filled.
    pub fn new(words: u64, changing: u64, seed: u64) -> Self {
        Self { words, changing: changing.min(words), seed, sum_changing: 0, sum_still: 0 }
    }

    /// The piece with what the fill puts there; costs a pass over that many words.
    pub fn filled(self) -> Self {
        let Self { words, changing, seed, .. } = self;
        let sum = |range: std::ops::Range<u64>| {
            range.fold(0u64, |sum, i| sum.wrapping_add(splitmix64(seed.wrapping_add(i))))
        };
        Self {
            words,
            changing,
            seed,
            sum_changing: sum(0..changing),
            sum_still: sum(changing..words),
        }
    }

    /// What `acb_sum` adds up to after these steps.
    pub fn sum(&self, steps: Steps) -> u64 {
        steps.of_sum(self.sum_changing, self.changing).wrapping_add(self.sum_still)
    }

    /// Bytes of `found` that are not what they must be after these steps, and the first word with one.
    pub fn wrong(&self, steps: Steps, found: &[u64]) -> Wrong {
        let mut wrong = Wrong::default();
        for (i, found) in found.iter().enumerate() {
            let filled = splitmix64(self.seed.wrapping_add(i as u64));
            let right = if (i as u64) < self.changing { steps.of_sum(filled, 1) } else { filled };
            let differing = (found ^ right).to_ne_bytes().iter().filter(|byte| **byte != 0).count();
            if differing > 0 {
                wrong.bytes += differing as u64;
                wrong.first.get_or_insert(WrongWord { at: i as u64, found: *found, right });
            }
        }
        wrong
    }
}

/// What is wrong with a piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wrong {
    /// How many bytes.
    pub bytes: u64,
    /// Where the first of them is.
    pub first: Option<WrongWord>,
}

/// A word that is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongWord {
    /// Its place in the piece.
    pub at: u64,
    /// What is there.
    pub found: u64,
    /// What must be there.
    pub right: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    fn content(piece: &Piece, salts: &[u64]) -> Vec<u64> {
        let mut words = vec![0; piece.words as usize];
        reference::fill(&mut words, piece.seed);
        for salt in salts {
            reference::step(&mut words[..piece.changing as usize], *salt);
        }
        words
    }

    #[test]
    fn sums_follow_the_steps() {
        let piece = Piece::new(100, 30, 5).filled();
        let mut steps = Steps::default();
        for count in 0..5 {
            let salts: Vec<u64> = (0..count).collect();
            let words = content(&piece, &salts);
            assert_eq!(piece.sum(steps), reference::sum(&words));
            assert_eq!(piece.wrong(steps, &words), Wrong::default());
            steps = steps.then(count);
        }
    }

    #[test]
    fn every_wrong_byte_is_counted() {
        let piece = Piece::new(64, 64, 9).filled();
        let steps = Steps::default().then(3);
        let mut words = content(&piece, &[3]);
        words[7] ^= 0x0100_0000_00ff;
        words[50] ^= 1;
        let wrong = piece.wrong(steps, &words);
        assert_eq!(wrong.bytes, 3);
        assert_eq!(wrong.first.map(|word| word.at), Some(7));
        // Content from before the step is wrong nearly everywhere.
        assert!(piece.wrong(steps, &content(&piece, &[])).bytes > 64 * 7);
        // So is another piece's.
        assert_ne!(Piece::new(64, 64, 10).filled().sum(steps), piece.sum(steps));
    }
}
