//! Group `kernels`: what kernels lose on mapped memory, by chunk size, against plain memory in the same
//! run: streams through memory, random reads (address translation), one thread's latency, a matrix product.

use anyhow::Context;

use crate::bench::{Bench, GIB, Workbench, label};
use crate::driver::device::{Grid, Kernel};
use crate::driver::mapped::Range;
use crate::reference::{chase, gather, product, splitmix64};
use crate::row::Row;
use crate::stats::Spread;

const TABLE: u64 = 11;
const GATHER: u64 = 23;
const GATHER_ROUNDS: u64 = 64;
const CHASE_ROUNDS: u64 = 4096;
const LEFT: u64 = 31;
const RIGHT: u64 = 10_000_000_000;

/// The kernels of the group, in the order of the columns.
const KERNELS: [&str; 4] = ["stream", "gather", "chase", "matmul"];

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let work = Workbench::open()?;
    // Two regions of this size on plain memory, two on mapped memory.
    let bytes = bench.device_bytes(&work.gpu, 16 * GIB, 0.6)? / 4;
    let bytes = if bytes.is_power_of_two() { bytes } else { bytes.next_power_of_two() / 2 };
    let order = matrix_order(bytes, bench.pick(1024, 8192));
    let parts = match Parts::load(&work, bytes, order) {
        Ok(parts) => parts,
        Err(error) => {
            refuse(bench, &bench.chunks(2 * bytes), &format!("{error:#}"));
            return Ok(());
        }
    };
    let plain_memory = work.gpu.allocate(2 * bytes)?;
    let plain = Region { at: plain_memory.at };
    let right = parts.check(&plain)?;
    if bench.simulated && right.contains(&false) {
        refuse(bench, &bench.chunks(2 * bytes), "the software GPU does not run these kernels");
        return Ok(());
    }
    let mut checked = Checked::default();
    checked.add(right);
    let repeats = bench.pick(3, 11);
    let mut plain_all: [Vec<f64>; 4] = Default::default();
    let chunks = bench.chunks(2 * bytes);
    let part = |chunk: &u64| format!("mapped_over_plain@{}", label(*chunk));
    let limits = crate::parts::Parts::new(bench, chunks.iter().map(|chunk| (part(chunk), 1.0)));
    for chunk in chunks {
        limits.run(&part(&chunk), |_| {
            let range = Range::filled(&work.gpu, 2 * bytes, chunk)?;
            let mapped = Region { at: range.at };
            checked.add(parts.check(&mapped)?);
            for (k, name) in KERNELS.into_iter().enumerate() {
                // Plain and mapped by turns, so that clocks and heat are the same for both.
                let (mut on_plain, mut on_mapped, mut ratio) = (vec![], vec![], vec![]);
                for repeat in 0..=repeats {
                    let a = parts.seconds(k, &plain)?;
                    let b = parts.seconds(k, &mapped)?;
                    if repeat > 0 {
                        on_plain.push(a);
                        on_mapped.push(b);
                        ratio.push(b / a);
                    }
                }
                let place = |column: &str| format!("mapped_over_plain.{column}@{}", label(chunk));
                bench.sample(&place(name), "ratio", &ratio);
                plain_all[k].extend(on_plain);
            }
            Ok(())
        })?;
    }
    let spread = |k: usize| Spread::of(&plain_all[k]);
    let rate = |k: usize, work: f64| spread(k).map(|s| s.map(|seconds| work / seconds / 1e9));
    let stream = 2.0 * bytes as f64;
    let flops = 2.0 * (order as f64).powi(3);
    let reads = parts.threads() as f64 * GATHER_ROUNDS as f64;
    let group = bench.group;
    bench.row(
        Row::spread(group, "plain_stream_gb_per_s", "GB/s", rate(0, stream))
            .note(format!("{} read, as much written", label(bytes))),
    );
    bench.row(
        Row::spread(group, "plain_gather_reads_per_ns", "1/ns", rate(1, reads))
            .note(format!("8-byte reads at random places of {}", label(bytes))),
    );
    bench.row(
        Row::spread(
            group,
            "plain_chase_ns",
            "ns",
            spread(2).map(|s| s.map(|t| t / CHASE_ROUNDS as f64 * 1e9)),
        )
        .note("one dependent read"),
    );
    bench.row(
        Row::spread(group, "plain_matmul_tflops", "TFLOP/s", rate(3, flops / 1e3))
            .note(format!("single precision without tensor cores, order {order}")),
    );
    bench.row(checked.row(group));
    Ok(())
}

fn refuse(bench: &Bench, chunks: &[u64], why: &str) {
    for chunk in chunks {
        for kernel in KERNELS {
            bench.missing(&format!("mapped_over_plain.{kernel}@{}", label(*chunk)), "ratio", why);
        }
    }
    let plain = [
        ("plain_stream_gb_per_s", "GB/s"),
        ("plain_gather_reads_per_ns", "1/ns"),
        ("plain_chase_ns", "ns"),
        ("plain_matmul_tflops", "TFLOP/s"),
        ("kernels_correct", "text"),
    ];
    for (name, unit) in plain {
        bench.missing(name, unit, why);
    }
}

/// Order of matrices three of which fit, a multiple of 128.
fn matrix_order(bytes: u64, most: u64) -> u64 {
    let fits = ((2 * bytes / 3 / 4) as f64).sqrt() as u64;
    (most.min(fits) / 128).max(1) * 128
}

/// Memory that the kernels run on: two halves.
struct Region {
    at: u64,
}

struct Parts<'a> {
    work: &'a Workbench,
    kernels: [Kernel; 4],
    fill_small: Kernel,
    bytes: u64,
    order: u64,
    out: crate::driver::device::DeviceMemory,
}

impl<'a> Parts<'a> {
    fn load(work: &'a Workbench, bytes: u64, order: u64) -> anyhow::Result<Self> {
        let kernel = |name: &str| work.kernel(&format!("probe_{name}"));
        Ok(Self {
            work,
            kernels: [kernel("stream")?, kernel("gather")?, kernel("chase")?, kernel("matmul")?],
            fill_small: kernel("fill_small")?,
            bytes,
            order,
            out: work.gpu.allocate(8 * u64::from(work.blocks) * 256)?,
        })
    }

    fn threads(&self) -> u64 {
        u64::from(self.work.blocks) * 256
    }

    fn launch(&self, kernel: usize, region: &Region) -> anyhow::Result<()> {
        let (first, second) = (region.at, region.at + self.bytes);
        let mask = self.bytes / 8 - 1;
        let tiles = (self.order / 128) as u32;
        let square = self.order * self.order * 4;
        let (grid, arguments): (Grid, Vec<u64>) = match KERNELS[kernel] {
            "stream" => (self.work.wide(), vec![second, first, self.bytes / 16, 7]),
            "gather" => (self.work.wide(), vec![first, mask, GATHER_ROUNDS, GATHER, self.out.at]),
            "chase" => (Grid(1, 1, 1), vec![first, mask, CHASE_ROUNDS, self.out.at]),
            _ => (
                Grid(tiles, tiles, 256),
                vec![first, first + square, first + 2 * square, self.order],
            ),
        };
        Ok(self.kernels[kernel].launch(&self.work.stream, grid, &arguments)?)
    }

    fn seconds(&self, kernel: usize, region: &Region) -> anyhow::Result<f64> {
        let sample = self.work.device_seconds(0, 1, |_| self.launch(kernel, region))?;
        sample.first().copied().context("one repeat gives one time")
    }

    /// Runs all kernels once on fresh data, and says which gave what they must; leaves matrices in place.
    fn check(&self, region: &Region) -> anyhow::Result<[bool; 4]> {
        let mut right = [false; 4];
        let (work, words) = (self.work, self.bytes / 8);
        let second = region.at + self.bytes;
        work.fill(region.at, self.bytes, TABLE)?;
        work.stream.clear(second, self.bytes)?;
        self.launch(0, region)?;
        work.stream.synchronize()?;
        // The whole result by its sum, which the host can know; and words from all over it.
        let filled = work.sum(region.at, self.bytes)?;
        let expected = filled.wrapping_mul(3).wrapping_add(7u64.wrapping_mul(words));
        let places = (0..64).map(|i| splitmix64(i) % words);
        right[0] = work.sum(second, self.bytes)? == expected;
        for i in places.chain([0, words - 1]) {
            let word = work.gpu.read(second + i * 8, 1)?[0];
            right[0] &= word == splitmix64(TABLE + i).wrapping_mul(3).wrapping_add(7);
        }
        self.launch(1, region)?;
        work.stream.synchronize()?;
        let sums = work.gpu.read(self.out.at, self.threads())?;
        right[1] = [0, 1, 31, 32, self.threads() / 2, self.threads() - 1]
            .into_iter()
            .all(|t| sums[t as usize] == gather(TABLE, words - 1, GATHER_ROUNDS, GATHER, t));
        self.launch(2, region)?;
        work.stream.synchronize()?;
        right[2] = work.gpu.read(self.out.at, 1)?[0] == chase(TABLE, words - 1, CHASE_ROUNDS);
        right[3] = self.check_product(region)?;
        Ok(right)
    }

    fn check_product(&self, region: &Region) -> anyhow::Result<bool> {
        let (work, n) = (self.work, self.order);
        let square = n * n * 4;
        for (at, seed) in [(region.at, LEFT), (region.at + square, RIGHT)] {
            self.fill_small.launch(&work.stream, work.wide(), &[at, n * n, seed])?;
        }
        work.stream.clear(region.at + 2 * square, square)?;
        self.launch(3, region)?;
        work.stream.synchronize()?;
        let places = (0..64).map(|i| (splitmix64(i) % n, splitmix64(i + 1000) % n));
        for (row, column) in places.chain([(0, 0), (n - 1, n - 1)]) {
            let place = row * n + column;
            let pair = work.gpu.read(region.at + 2 * square + place / 2 * 8, 1)?[0];
            let bits = if place.is_multiple_of(2) { pair as u32 } else { (pair >> 32) as u32 };
            if f32::from_bits(bits) != product((LEFT, RIGHT), n, row, column) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What the checks of all regions said.
#[derive(Default)]
struct Checked {
    regions: u32,
    wrong: [u32; 4],
}

impl Checked {
    fn add(&mut self, right: [bool; 4]) {
        self.regions += 1;
        for (count, right) in self.wrong.iter_mut().zip(right) {
            *count += u32::from(!right);
        }
    }

    fn row(&self, group: &str) -> Row {
        let wrong: Vec<String> = KERNELS
            .iter()
            .zip(self.wrong)
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{name} {count} times"))
            .collect();
        if wrong.is_empty() {
            let note = format!("all kernels on {} regions against the host", self.regions);
            return Row::text(group, "kernels_correct", "right").verified(true).note(note);
        }
        Row::text(group, "kernels_correct", "WRONG").verified(false).note(wrong.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::MIB;

    #[test]
    fn three_matrices_fit() {
        for bytes in [2 * MIB, 64 * MIB, GIB, 4 * GIB] {
            let order = matrix_order(bytes, 8192);
            assert!(order.is_multiple_of(128) && order >= 128);
            assert!(3 * order * order * 4 <= 2 * bytes || order == 128, "{bytes}: {order}");
        }
    }
}
