//! The 128-bit hash by which the pager knows that a chunk of device memory has not changed: the kernel as PTX, and what
//! it computes. The interposer loads the one, tests and the software GPU use the other.
//!
//! `acb_hash128(data, pairs, seed, out)`, all parameters 64 bits wide: for each chunk c of `pairs` 16-byte pairs, of which there
//! are gridDim.y one behind the other, it adds the chunk's hash to `out[2c]` and `out[2c + 1]`, atomically. The sum does
//! not depend on the order, so any grid gives the same; the permutation that each pair goes through makes sure that
//! a change of one pair is always seen.

/// The kernel, for GPUs from sm_70 and drivers from 520 on. It ends in NUL, as cuModuleLoadData wants it.
pub const PTX: &str = concat!(include_str!("../kernels/hash128.ptx"), "\0");

/// The kernel's name.
pub const KERNEL: &str = "acb_hash128";

/// Threads of a block, at most.
pub const THREADS: u32 = 256;

/// The hash of one chunk, as the kernel leaves it in `out`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hash128(pub [u64; 2]);

impl Hash128 {
    /// The hash of two parts together.
    pub fn plus(self, other: Hash128) -> Hash128 {
        let ([a, b], [c, d]) = (self.0, other.0);
        Hash128([a.wrapping_add(c), b.wrapping_add(d)])
    }
}

/// What the kernel computes of words that begin with the pair numbered `first` of their chunk.
pub fn hash128(words: &[u64], first: u64, seed: u64) -> Hash128 {
    let pairs = words.chunks_exact(2).enumerate();
    pairs.fold(Hash128::default(), |sum, (i, pair)| {
        sum.plus(hash_pair([pair[0], pair[1]], first + i as u64, seed))
    })
}

/// What the pair numbered `place` of a chunk adds to its hash.
#[inline]
pub fn hash_pair(pair: [u64; 2], place: u64, seed: u64) -> Hash128 {
    let key = seed.wrapping_add((place + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut u = (pair[0] ^ key).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    u ^= u >> 32;
    let mut v = (pair[1] ^ u).wrapping_mul(0x94D0_49BB_1331_11EB);
    v ^= v >> 29;
    u = u.wrapping_add(v).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    u ^= u >> 32;
    v = (v ^ u).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    v ^= v >> 32;
    Hash128([u, v])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(words: u64, seed: u64) -> Vec<u64> {
        let splitmix64 = |seed: u64| {
            let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        (0..words).map(|i| splitmix64(seed.wrapping_add(i))).collect()
    }

    #[test]
    fn the_kernel_is_in_the_ptx() {
        assert!(PTX.contains(&format!(".visible .entry {KERNEL}(")));
        assert!(PTX.contains(&format!(".maxntid {THREADS}, 1, 1")));
    }

    #[test]
    fn the_kernels_source_compiled_for_the_host_gave_the_same() {
        // kernels/hash128.cu through a C++ compiler, with one thread a block.
        let words = random(512, 1000);
        let chunks = [hash128(&words[..256], 0, 0x5EED), hash128(&words[256..], 0, 0x5EED)];
        assert_eq!(chunks[0].0, [0xcad0_d5a9_2d9a_2387, 0x9808_4119_d127_815b]);
        assert_eq!(chunks[1].0, [0x088a_c700_b45b_fc1f, 0x8915_7bd2_095b_6598]);
    }

    #[test]
    fn the_hash_of_a_chunk_is_the_sum_of_its_parts() {
        let words = random(4096, 1);
        let whole = hash128(&words, 0, 9).0;
        let (a, b) = (hash128(&words[..1000], 0, 9).0, hash128(&words[1000..], 500, 9).0);
        assert_eq!(whole, [a[0].wrapping_add(b[0]), a[1].wrapping_add(b[1])]);
    }

    #[test]
    fn every_flipped_bit_changes_both_halves() {
        let mut words = random(64, 3);
        let before = hash128(&words, 0, 5).0;
        for bit in 0..words.len() * 64 {
            words[bit / 64] ^= 1 << (bit % 64);
            let after = hash128(&words, 0, 5).0;
            assert!(after[0] != before[0] && after[1] != before[1], "bit {bit}");
            words[bit / 64] ^= 1 << (bit % 64);
        }
    }

    #[test]
    fn exchanged_words_and_pairs_change_the_hash() {
        let words = random(64, 4);
        let before = hash128(&words, 0, 5);
        for (a, b) in [(0, 1), (0, 2), (1, 3), (10, 63)] {
            let mut other = words.clone();
            other.swap(a, b);
            assert_ne!(hash128(&other, 0, 5), before, "{a} and {b}");
        }
    }

    #[test]
    fn structured_data_does_not_collide() {
        // What real memory looks like: constants, counters, one word set in zeros.
        let mut seen = std::collections::HashSet::new();
        for value in 0..2000u64 {
            assert!(seen.insert(hash128(&[value; 128], 0, 7).0), "constant {value}");
            let mut sparse = [0u64; 128];
            sparse[(value % 128) as usize] = value / 128 + 1 + (1 << 40);
            assert!(seen.insert(hash128(&sparse, 0, 7).0), "sparse {value}");
            let counter: Vec<u64> = (value + 1..value + 129).collect();
            assert!(seen.insert(hash128(&counter, 0, 7).0), "counter {value}");
        }
    }

    #[test]
    fn bits_of_the_hash_are_balanced() {
        let mut ones = [0u32; 128];
        let runs = 4000;
        for seed in 0..runs {
            let Hash128([low, high]) = hash128(&[0, 0, 0, seed], 0, 11);
            for (bit, count) in ones.iter_mut().enumerate() {
                let half = if bit < 64 { low } else { high };
                *count += (half >> (bit % 64) & 1) as u32;
            }
        }
        for (bit, count) in ones.into_iter().enumerate() {
            // 2000 expected, standard deviation 32.
            assert!((1800..2200).contains(&count), "bit {bit} is set {count} times of {runs}");
        }
    }
}
