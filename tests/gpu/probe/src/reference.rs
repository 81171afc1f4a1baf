//! What the kernels must leave behind, computed on the host: random words, the
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
        assert_eq!(gather(11, 4095, 64, 23, 0), 0x9ce0_6c26_4210_228b);
        assert_eq!(gather(11, 4095, 64, 23, 7), 0x0add_a450_b9a4_6bab);
        assert_eq!(chase(11, 4095, 4096), 0x92af_6f8c_cb0f_1cb0);
        assert_eq!(product((31, 10_000_000_000), 256, 3, 5), 99.0);
        assert_eq!(product((31, 10_000_000_000), 256, 255, 254), 110.0);
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
