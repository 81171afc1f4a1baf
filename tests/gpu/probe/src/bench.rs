//! What a group's process works with: where it puts rows, how large it may go, where its files are.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use serde_json::Value;

use crate::crowd::Sizes;
use crate::driver::device::{Event, Gpu, Grid, Kernel, Module, Stream};
use crate::driver::table::DriverError;
use crate::host;
use crate::reference::splitmix64;
use crate::row::{Line, Row};

/// A mebibyte.
pub(crate) const MIB: u64 = 1 << 20;
/// A gibibyte.
pub(crate) const GIB: u64 = 1 << 30;
/// Why a row has no value, where there would have been time if what came before it had been quicker.
pub(crate) const NO_TIME: &str = "no time was left";

/// Kernels that the software GPU knows too.
const SHARED_PTX: &str = include_str!("../../../workloads/kernels.ptx");
/// Kernels of the probe alone.
const OWN_PTX: &str = include_str!("../kernels/probe.ptx");

/// How much is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Small sizes, few repeats: to see that everything runs.
    Quick,
    /// What the results page is made from.
    Full,
}

/// A group at work.
pub(crate) struct Bench {
    pub(crate) group: &'static str,
    pub(crate) depth: Depth,
    pub(crate) simulated: bool,
    /// Folder with bin/, lib/acb/ and libexec/acb-tests/; None: only what needs none of them is measured.
    pub(crate) prefix: Option<PathBuf>,
    /// Private folder of this run.
    pub(crate) work: PathBuf,
    /// The group is ended then.
    pub(crate) deadline: Instant,
    /// Parts that an earlier process of this group has ended, or did not survive.
    pub(crate) ended: BTreeSet<String>,
    /// What was measured of the GPU before all groups.
    pub(crate) sizes: Option<Sizes>,
}

impl Bench {
    /// Hands a row over.
    pub(crate) fn row(&self, row: Row) {
        self.line(&Line::Row(row));
    }

    /// Hands a fact about the machine over.
    pub(crate) fn machine(&self, key: &str, value: impl Into<String>) {
        self.line(&Line::Machine { key: key.into(), value: value.into() });
    }

    /// Hands over what does not fit a row; one per group.
    pub(crate) fn detail(&self, value: Value) {
        self.line(&Line::Detail { value });
    }

    pub(crate) fn line(&self, line: &Line) {
        let text = serde_json::to_string(line).expect("rows have string keys and finite numbers");
        let mut out = std::io::stdout().lock();
        // If the reader is gone, so is the run.
        let _ = writeln!(out, "{text}");
        let _ = out.flush();
    }

    pub(crate) fn value(&self, name: &str, unit: &str, value: f64) {
        self.row(Row::value(self.group, name, unit, value));
    }

    pub(crate) fn sample(&self, name: &str, unit: &str, sample: &[f64]) {
        self.row(Row::sample(self.group, name, unit, sample));
    }

    pub(crate) fn text(&self, name: &str, text: impl Into<String>) {
        self.row(Row::text(self.group, name, text));
    }

    pub(crate) fn missing(&self, name: &str, unit: &str, why: impl std::fmt::Display) {
        self.row(Row::missing(self.group, name, unit, why.to_string()));
    }

    /// One of two numbers, by depth.
    pub(crate) fn pick<T>(&self, quick: T, full: T) -> T {
        match self.depth {
            Depth::Quick => quick,
            Depth::Full => full,
        }
    }

    /// Seconds until the group is ended.
    pub(crate) fn seconds_left(&self) -> f64 {
        self.deadline.saturating_duration_since(Instant::now()).as_secs_f64()
    }

    /// That there is still so much time.
    pub(crate) fn time_for(&self, seconds: f64) -> anyhow::Result<()> {
        anyhow::ensure!(self.seconds_left() > seconds, NO_TIME);
        Ok(())
    }

    /// How large the GPU is and how fast its copies are: measured before all groups, or now.
    pub(crate) fn sizes(&self) -> anyhow::Result<Sizes> {
        self.sizes.map_or_else(Sizes::find, Ok)
    }

    /// The chunk sizes that are compared, largest left out where `limit` bytes do not hold two of them.
    pub(crate) fn chunks(&self, limit: u64) -> Vec<u64> {
        let full = [2 * MIB, 8 * MIB, 32 * MIB, 64 * MIB, 256 * MIB, GIB];
        full.into_iter().filter(|chunk| chunk * 2 <= limit).collect()
    }

    /// Bytes to work with on the device: at most `most`, and a share of what is free.
    pub(crate) fn device_bytes(
        &self,
        gpu: &Gpu,
        most: u64,
        share: f64,
    ) -> Result<u64, DriverError> {
        let most = self.pick(most / 64, most);
        let free = (gpu.memory()?.free as f64 * share) as u64;
        Ok((most.min(free) / (2 * MIB)).max(1) * 2 * MIB)
    }

    /// Bytes to pin on the host, in the same way.
    pub(crate) fn host_bytes(&self, most: u64, share: f64) -> u64 {
        let most = self.pick(most / 64, most);
        let free = (host::available_memory() as f64 * share) as u64;
        (most.min(free) / (2 * MIB)).max(1) * 2 * MIB
    }

    /// A file below the prefix, if there is one.
    pub(crate) fn installed(&self, path: &str) -> Option<PathBuf> {
        self.prefix.as_ref().map(|prefix| prefix.join(path)).filter(|file| file.exists())
    }
}

/// `64MiB`, `1GiB`: how sizes are written in row names.
pub(crate) fn label(bytes: u64) -> String {
    if bytes.is_multiple_of(GIB) {
        format!("{}GiB", bytes / GIB)
    } else {
        format!("{}MiB", bytes / MIB)
    }
}

/// The same for sizes that nobody has chosen: whole GiB, from one on.
pub(crate) fn about(bytes: u64) -> String {
    match bytes >= GIB {
        true => label((bytes + GIB / 2) / GIB * GIB),
        false => label(bytes),
    }
}

/// A GPU with a stream and the kernels loaded.
pub(crate) struct Workbench {
    pub(crate) gpu: Gpu,
    pub(crate) stream: Stream,
    shared: Module,
    own: Option<Module>,
    hash: Option<Module>,
    /// Blocks that fill the GPU.
    pub(crate) blocks: u32,
}

impl Workbench {
    pub(crate) fn open() -> anyhow::Result<Self> {
        let gpu = Gpu::open()?;
        let stream = gpu.stream()?;
        let shared = gpu.module(SHARED_PTX).context("loading kernels.ptx")?;
        // The software GPU may refuse kernels that it does not know; the rows that need them say so.
        let own = gpu.module(OWN_PTX).ok();
        let hash = gpu.module(acb_cuda_abi::hash::PTX.trim_end_matches('\0')).ok();
        let processors =
            gpu.attribute(crate::driver::device::Attribute::Multiprocessors).unwrap_or(16);
        Ok(Self { gpu, stream, shared, own, hash, blocks: processors.max(1) as u32 * 8 })
    }

    /// A kernel by name, of any of the modules.
    pub(crate) fn kernel(&self, name: &str) -> anyhow::Result<Kernel> {
        if name == acb_cuda_abi::hash::KERNEL {
            let hash = self.hash.as_ref().context("the driver did not take the pager's kernel")?;
            return Ok(hash.kernel(name)?);
        }
        if name.starts_with("acb_") {
            return Ok(self.shared.kernel(name)?);
        }
        let own = self.own.as_ref().context("the driver did not take the probe's own kernels")?;
        Ok(own.kernel(name)?)
    }

    /// A grid of threads that stride over the whole input.
    pub(crate) fn wide(&self) -> Grid {
        Grid(self.blocks, 1, 256)
    }

    /// Fills device memory with random words, `splitmix64(seed + i)`.
    pub(crate) fn fill(&self, at: u64, bytes: u64, seed: u64) -> anyhow::Result<()> {
        self.kernel("acb_fill")?.launch(&self.stream, self.wide(), &[at, bytes / 8, seed])?;
        Ok(self.stream.synchronize()?)
    }

    /// Sum of the words of device memory.
    pub(crate) fn sum(&self, at: u64, bytes: u64) -> anyhow::Result<u64> {
        let out = self.gpu.allocate(8)?;
        self.stream.clear(out.at, 8)?;
        self.kernel("acb_sum")?.launch(&self.stream, self.wide(), &[at, bytes / 8, out.at])?;
        self.stream.synchronize()?;
        Ok(self.gpu.read(out.at, 1)?[0])
    }

    /// Whether each word of device memory is as expected, and a digest of all. In pieces, for the host may have no room for a second
    /// copy of the whole, and by several threads: one alone would take longer than all that is measured.
    pub(crate) fn compare(
        &self,
        at: u64,
        words: u64,
        expected: impl Fn(u64) -> u64 + Sync,
    ) -> anyhow::Result<(bool, u64)> {
        let threads = host::cores().clamp(1, 16);
        let (mut right, mut digest) = (true, 0u64);
        let piece = 64 * MIB / 8;
        for from in (0..words).step_by(piece as usize) {
            let data = self.gpu.read(at + from * 8, piece.min(words - from))?;
            let part = data.len().div_ceil(threads).max(1);
            let compare = &|first: u64, part: &[u64]| {
                part.iter().zip(first..).fold((true, 0u64), |(right, digest), (word, i)| {
                    let mixed = splitmix64(word ^ splitmix64(i));
                    (right & (*word == expected(i)), digest.wrapping_add(mixed))
                })
            };
            let parts = std::thread::scope(|scope| {
                let start =
                    |(n, words)| scope.spawn(move || compare(from + (n * part) as u64, words));
                let workers: Vec<_> = data.chunks(part).enumerate().map(start).collect();
                workers.into_iter().map(|worker| worker.join()).collect::<Vec<_>>()
            });
            for part in parts {
                let (same, mixed) = part.map_err(|_| anyhow::anyhow!("a thread panicked"))?;
                right &= same;
                digest = digest.wrapping_add(mixed);
            }
        }
        Ok((right, digest))
    }

    /// Device seconds of each of `repeats` runs of the work, after `warm` that do not count.
    pub(crate) fn device_seconds(
        &self,
        warm: usize,
        repeats: usize,
        mut work: impl FnMut(&Stream) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<f64>> {
        let (before, after): (Event, Event) = (self.gpu.event()?, self.gpu.event()?);
        let mut sample = Vec::with_capacity(repeats);
        for repeat in 0..warm + repeats {
            before.record(&self.stream)?;
            work(&self.stream)?;
            after.record(&self.stream)?;
            after.synchronize()?;
            if repeat >= warm {
                sample.push(after.seconds_since(&before)?);
            }
        }
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_short_names() {
        assert_eq!(label(2 * MIB), "2MiB");
        assert_eq!(label(256 * MIB), "256MiB");
        assert_eq!(label(GIB), "1GiB");
        assert_eq!(label(16 * GIB), "16GiB");
        assert_eq!([about(3 * GIB + GIB / 3), about(96 * MIB)], ["3GiB", "96MiB"]);
    }

    #[test]
    fn the_kernels_are_the_ones_that_are_launched() {
        for name in ["acb_nop", "acb_spin", "acb_fill", "acb_sum"] {
            assert!(SHARED_PTX.contains(&format!(".visible .entry {name}(")), "{name}");
        }
        for name in ["stream", "gather", "chase", "fill_small", "matmul"] {
            assert!(OWN_PTX.contains(&format!(".visible .entry probe_{name}(")), "{name}");
        }
    }
}
