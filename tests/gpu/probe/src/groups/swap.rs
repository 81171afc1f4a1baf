//! Group `swap`: two programs with 95 % of the memory each take turns under the interposer: how fast memory is swapped by chunk
//! size, against plain pinned copies, whether every word of it is right, and whether it was moved at all. Once more with as much
//! memory as the GPU, the host and the time allow.

use std::time::Instant;

use crate::bench::{Bench, GIB, MIB, about, label};
use crate::crowd::{Crowd, Sizes};
use crate::moved::{self, gib};
use crate::pace::Load;
use crate::parts::Parts;
use crate::row::Row;

const COLUMNS: [(&str, &str); 6] = [
    ("switch_gb_per_s", "GB/s"),
    ("unchanged_gb_per_s", "GB/s"),
    ("share_of_copy", "ratio"),
    ("first_gb_per_s", "GB/s"),
    ("moved_gib", "GiB"),
    ("data", "text"),
];

/// The chunk size with which most memory is swapped.
const MOST: u64 = 64 * MIB;

/// Chunks that are compared.
const CHUNKS: [u64; 6] = [2 * MIB, 8 * MIB, 32 * MIB, 64 * MIB, 256 * MIB, GIB];

/// Seconds for which the line of a chunk is planned, at most.
const PLANNED_S: f64 = 20.0;

/// Of a line with so many rounds: programs start and fill their memory, there are five switches and two a round, the memory of both
/// is pinned and compared once.
fn load(rounds: u32) -> Load {
    Load { fixed: 4.0, crossings: 5.0 + 2.0 * f64::from(rounds), handled: 4.0 }
}

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let sizes = match bench.sizes() {
        Ok(sizes) => sizes,
        Err(error) => {
            bench.missing("swap_plain_out_gb_per_s", "GB/s", format!("{error:#}"));
            return Ok(());
        }
    };
    bench.value("swap_plain_out_gb_per_s", "GB/s", sizes.out);
    bench.value("swap_plain_in_gb_per_s", "GB/s", sizes.inward);
    let mut lines: Vec<(&str, u64)> = CHUNKS.map(|chunk| ("swap", chunk)).to_vec();
    lines.push(("swap_most", MOST));
    let name = |(matrix, chunk): &(&str, u64)| format!("{matrix}@{}", label(*chunk));
    let weight = |(matrix, chunk): &(&str, u64)| match (*matrix, *chunk) {
        ("swap_most", _) => 4.0,
        (_, GIB) => 3.0,
        (_, chunk) if chunk > 64 * MIB => 1.5,
        _ => 1.0,
    };
    let parts = Parts::new(bench, lines.iter().map(|line| (name(line), weight(line))));
    let mut pace = sizes.pace(bench.simulated);
    for line in lines {
        let (matrix, chunk) = line;
        let measured = parts.run(&name(&line), |limit| {
            let most = sizes.most(2);
            // Two chunks of each program, at least.
            let least = (chunk * 9 / 4).max(128 * MIB);
            anyhow::ensure!(
                least <= most,
                "too large for the {} that GPU and host have for it",
                about(most)
            );
            anyhow::ensure!(least <= bench.pick(256 * MIB, u64::MAX), "too large for --quick");
            let most = match matrix {
                "swap" => bench.pick(least, least.max(4 * GIB).min(most)),
                _ => bench.pick(256 * MIB, most),
            };
            // What the lines before have left over makes the last one larger; to the others it is a margin.
            let limit = if matrix == "swap" { limit.min(PLANNED_S) } else { limit };
            // A slow machine measures less often before it measures less.
            let often = bench.pick(2, 3);
            let rounds = if pace.fitting(limit, load(often)) < least { 1 } else { often };
            let rest = pace.within(limit, load(rounds), least, most)?;
            let begin = Instant::now();
            let swapped = swap(bench, sizes, matrix, (rest, rounds), chunk);
            pace.learn(rest, load(rounds), begin.elapsed().as_secs_f64());
            swapped
        });
        settle(bench, matrix, chunk, measured);
    }
    Ok(())
}

fn settle(bench: &Bench, matrix: &str, chunk: u64, measured: anyhow::Result<()>) {
    if let Err(error) = measured {
        for (column, unit) in COLUMNS {
            let name = format!("{matrix}.{column}@{}", label(chunk));
            bench.missing(&name, unit, format!("{error:#}"));
        }
    }
}

fn swap(
    bench: &Bench,
    sizes: Sizes,
    matrix: &str,
    (rest, rounds): (u64, u32),
    chunk: u64,
) -> anyhow::Result<()> {
    let crowd = Crowd::gather(bench, sizes, rest, 2, chunk)?;
    let place = |column: &str| format!("{matrix}.{column}@{}-{}", label(chunk), about(crowd.rest));
    let bytes = crowd.each as f64;
    let explain = |error| crowd.assigner.explain(error);
    let mut a = crowd.partner(crowd.each, 1).map_err(explain)?;
    let mut b = crowd.partner(crowd.each, 2).map_err(explain)?;
    // The first switch finds host memory unpinned, or does not; the others do not.
    a.step()?;
    let first = bytes / b.touch()? / 1e9;
    b.step()?;
    a.touch()?;
    let (mut changed, mut unchanged, mut share) = (vec![], vec![], vec![]);
    for _ in 0..rounds {
        a.step()?;
        let switch = b.touch()?;
        changed.push(bytes / switch / 1e9);
        share.push(bytes / sizes.slower() / 1e9 / switch);
        unchanged.push(bytes / a.touch()? / 1e9);
    }
    let right = a.is_right()? & b.is_right()?;
    let moved = moved::of_all(&crowd.assigner, &[a.pid(), b.pid()])?;
    let both = moved.of(a.pid()) > 0 && moved.of(b.pid()) > 0;
    let row = Row::sample(bench.group, &place("switch_gb_per_s"), "GB/s", &changed);
    let note = format!("{} MiB out, as much in", crowd.each / MIB);
    bench.row(row.note(note));
    bench.sample(&place("unchanged_gb_per_s"), "GB/s", &unchanged);
    bench.sample(&place("share_of_copy"), "ratio", &share);
    bench.value(&place("first_gb_per_s"), "GB/s", first);
    let row = Row::value(bench.group, &place("moved_gib"), "GiB", gib(moved.total()));
    bench.row(row.verified(both).note("of both programs, with what needed no copy"));
    let word = match (right, both) {
        (true, true) => "right",
        (false, _) => "WRONG",
        (true, false) => "NOTHING WAS MOVED",
    };
    bench.row(Row::text(bench.group, &place("data"), word).verified(right && both));
    Ok(())
}
