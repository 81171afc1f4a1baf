//! Group `hash`: a 128-bit hash of device memory by chunk, against a device-to-device copy, and whether
//! it is the right one and sees a changed bit.

use crate::bench::{Bench, GIB, MIB, Workbench, label};
use crate::driver::device::Grid;
use crate::parts::Parts;
use crate::row::Row;
use acb_cuda_abi::hash::{Hash128, hash128};

const SEED: u64 = 0x5EED;

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let work = Workbench::open()?;
    let bytes = bench.device_bytes(&work.gpu, 16 * GIB, 0.6)? / 2;
    let bytes = if bytes >= GIB { bytes / GIB * GIB } else { bytes.next_power_of_two() / 2 };
    let (from, to) = (work.gpu.allocate(bytes)?, work.gpu.allocate(bytes)?);
    work.fill(from.at, bytes, 3)?;
    // The software GPU computes on the host, and always takes the same time.
    let repeats = if bench.simulated { 3 } else { bench.pick(3, 15) };
    let copy =
        work.device_seconds(2, repeats, |stream| Ok(stream.copy_within(to.at, from.at, bytes)?))?;
    let moved: Vec<f64> = copy.iter().map(|s| 2.0 * bytes as f64 / s / 1e9).collect();
    bench.row(
        Row::sample(bench.group, "device_copy_gb_per_s", "GB/s", &moved)
            .note(format!("{} device to device, bytes read and written", label(bytes))),
    );
    let chunks: Vec<u64> =
        bench.chunks(2 * bytes).into_iter().filter(|chunk| bytes.is_multiple_of(*chunk)).collect();
    let kernel = match work.kernel(acb_cuda_abi::hash::KERNEL) {
        Ok(kernel) => kernel,
        Err(error) => {
            refuse(bench, &chunks, &format!("{error:#}"));
            return Ok(());
        }
    };
    let out = work.gpu.allocate(16 * (bytes / (2 * MIB)))?;
    let hashes = |chunk: u64, count: u64| -> anyhow::Result<Vec<Hash128>> {
        work.stream.clear(out.at, 16 * count)?;
        kernel.launch(&work.stream, grid(&work, count), &[from.at, chunk / 16, SEED, out.at])?;
        work.stream.synchronize()?;
        let words = work.gpu.read(out.at, 2 * count)?;
        Ok(words.chunks_exact(2).map(|pair| Hash128([pair[0], pair[1]])).collect())
    };
    // Against the host's reference, over several chunks.
    let (chunk, count) = (2 * MIB, (bytes / (2 * MIB)).min(bench.pick(4, 32)));
    let data = work.gpu.read(from.at, chunk * count / 8)?;
    let expected: Vec<Hash128> =
        data.chunks_exact(chunk as usize / 8).map(|words| hash128(words, 0, SEED)).collect();
    let right = hashes(chunk, count)? == expected;
    if !right && bench.simulated {
        refuse(bench, &chunks, "the software GPU does not run this kernel");
        return Ok(());
    }
    let word = if right { "right" } else { "WRONG" };
    bench.row(
        Row::text(bench.group, "hash_correct", word)
            .verified(right)
            .note(format!("{count} chunks of 2MiB against the reference")),
    );
    let before = hashes(chunk, count)?;
    let place = from.at + chunk * (count - 1) + 4096;
    let old = work.gpu.read(place, 1)?;
    work.gpu.write(place, &[old[0] ^ (1 << 33)])?;
    let after = hashes(chunk, count)?;
    work.gpu.write(place, &old)?;
    let last = count as usize - 1;
    let seen = before[last] != after[last] && before[..last] == after[..last];
    let word = if seen { "right" } else { "WRONG" };
    bench.row(Row::text(bench.group, "hash_sees_a_changed_bit", word).verified(seen));
    let part = |chunk: &u64| format!("hash@{}", label(*chunk));
    let parts = Parts::new(bench, chunks.iter().map(|chunk| (part(chunk), 1.0)));
    for chunk in chunks {
        parts.run(&part(&chunk), |_| {
            let count = bytes / chunk;
            let seconds = work.device_seconds(2, repeats, |stream| {
                stream.clear(out.at, 16 * count)?;
                Ok(kernel.launch(
                    stream,
                    grid(&work, count),
                    &[from.at, chunk / 16, SEED, out.at],
                )?)
            })?;
            let rates: Vec<f64> = seconds.iter().map(|s| bytes as f64 / s / 1e9).collect();
            bench.sample(&format!("hash.gb_per_s@{}", label(chunk)), "GB/s", &rates);
            // A copy of n bytes moves 2n: 1.0 means that the hash reads as fast as a copy moves.
            let pairs: Vec<f64> =
                rates.iter().zip(&moved).map(|(hash, copy)| hash / copy).collect();
            bench.sample(&format!("hash.share_of_copy_rate@{}", label(chunk)), "ratio", &pairs);
            Ok(())
        })?;
    }
    // One chunk alone, as at the page-out of one.
    let chunk = (64 * MIB).min(bytes);
    let seconds = work.device_seconds(2, repeats, |stream| {
        stream.clear(out.at, 16)?;
        Ok(kernel.launch(stream, grid(&work, 1), &[from.at, chunk / 16, SEED, out.at])?)
    })?;
    let us: Vec<f64> = seconds.iter().map(|s| s * 1e6).collect();
    bench.sample("hash_one_64mib_us", "us", &us);
    Ok(())
}

fn refuse(bench: &Bench, chunks: &[u64], why: &str) {
    for name in ["hash_correct", "hash_sees_a_changed_bit"] {
        bench.missing(name, "text", why);
    }
    for chunk in chunks {
        bench.missing(&format!("hash.gb_per_s@{}", label(*chunk)), "GB/s", why);
        bench.missing(&format!("hash.share_of_copy_rate@{}", label(*chunk)), "ratio", why);
    }
    bench.missing("hash_one_64mib_us", "us", why);
}

/// Blocks for `count` chunks: enough to fill the GPU, however many chunks there are.
fn grid(work: &Workbench, count: u64) -> Grid {
    let each = (u64::from(work.blocks) / count).max(1);
    Grid(each as u32, count as u32, 256)
}
