//! What the kernels must leave behind, computed on the host: random words, the 128-bit hash, the
//! sums of random reads, entries of the matrix product. Pure.

/// The kernels' multiplier for places.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// `acb_fill` writes `splitmix64(seed + i)`.
pub(crate) fn splitmix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// 128-bit content hash of one chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hash128(pub(crate) [u64; 2]);

/// `probe_hash128` of a chunk: the sum over its pairs of words, from the pair numbered `first` on, of a
/// permutation keyed by the pair's number.
pub(crate) fn hash128(words: &[u64], first: u64, seed: u64) -> Hash128 {
    let (mut low, mut high) = (0u64, 0u64);
    for (i, pair) in words.chunks_exact(2).enumerate() {
        let place = first + i as u64 + 1;
        let key = seed.wrapping_add(place.wrapping_mul(GOLDEN));
        let mut u = (pair[0] ^ key).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        u ^= u >> 32;
        let mut v = (pair[1] ^ u).wrapping_mul(0x94D0_49BB_1331_11EB);
        v ^= v >> 29;
        u = u.wrapping_add(v).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        u ^= u >> 32;
        v = (v ^ u).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        v ^= v >> 32;
        low = low.wrapping_add(u);
        high = high.wrapping_add(v);
    }
    Hash128([low, high])
}

/// What thread `thread` of `probe_gather` writes, over a table that `acb_fill` filled.
pub(crate) fn gather(table_seed: u64, mask: u64, rounds: u64, seed: u64, thread: u64) -> u64 {
    (0..rounds).fold(0u64, |sum, round| {
        let place = splitmix64(seed.wrapping_add(thread * rounds + round)) & mask;
        sum.wrapping_add(splitmix64(table_seed.wrapping_add(place)))
    })
}

/// What `probe_chase` writes, over a table that `acb_fill` filled.
pub(crate) fn chase(table_seed: u64, mask: u64, rounds: u64) -> u64 {
    (0..rounds)
        .fold(0u64, |at, round| splitmix64(table_seed.wrapping_add(at.wrapping_add(round) & mask)))
}

/// What `probe_fill_small` writes at place `i`.
pub(crate) fn small(seed: u64, i: u64) -> i64 {
    (splitmix64(seed.wrapping_add(i)) >> 61) as i64 - 4
}

/// Entry of the product of two matrices that `probe_fill_small` filled, exact.
pub(crate) fn product(seeds: (u64, u64), order: u64, row: u64, column: u64) -> f32 {
    let sum: i64 = (0..order)
        .map(|k| small(seeds.0, row * order + k) * small(seeds.1, k * order + column))
        .sum();
    sum as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(words: u64, seed: u64) -> Vec<u64> {
        (0..words).map(|i| splitmix64(seed.wrapping_add(i))).collect()
    }

    #[test]
    fn splitmix_is_the_published_one() {
        // First outputs of the reference generator for the state 1234567.
        let published =
            [6457827717110365317u64, 3203168211198807973, 9817491932198370423, 4593380528125082431];
        let state = 1_234_567u64;
        for (i, expected) in published.into_iter().enumerate() {
            assert_eq!(splitmix64(state.wrapping_add((i as u64).wrapping_mul(GOLDEN))), expected);
        }
    }

    #[test]
    fn the_kernels_source_compiled_for_the_host_gave_the_same() {
        // kernels/probe.cu through a C++ compiler, with one thread a block.
        let words = random(512, 1000);
        let chunks = [hash128(&words[..256], 0, 0x5EED), hash128(&words[256..], 0, 0x5EED)];
        assert_eq!(chunks[0].0, [0xcad0_d5a9_2d9a_2387, 0x9808_4119_d127_815b]);
        assert_eq!(chunks[1].0, [0x088a_c700_b45b_fc1f, 0x8915_7bd2_095b_6598]);
        assert_eq!(gather(11, 4095, 64, 23, 0), 0x9ce0_6c26_4210_228b);
        assert_eq!(gather(11, 4095, 64, 23, 7), 0x0add_a450_b9a4_6bab);
        assert_eq!(chase(11, 4095, 4096), 0x92af_6f8c_cb0f_1cb0);
        assert_eq!(product((31, 10_000_000_000), 256, 3, 5), 99.0);
        assert_eq!(product((31, 10_000_000_000), 256, 255, 254), 110.0);
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

    #[test]
    fn the_product_is_that_of_the_matrices() {
        let order = 8;
        let expected: i64 =
            (0..order).map(|k| small(1, 3 * order + k) * small(2, k * order + 5)).sum();
        assert_eq!(product((1, 2), order, 3, 5), expected as f32);
        assert!((0..1000).all(|i| (-4..=3).contains(&small(9, i))));
    }
}
