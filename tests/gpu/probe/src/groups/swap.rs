//! Group `swap`: two programs with 95 % of the memory each take turns under the interposer: how fast memory is swapped by chunk
//! size, against plain pinned copies, whether every word of it is right, and whether it was moved at all. Once more with as much
//! memory as the GPU, the host and the time allow.

use crate::bench::{Bench, GIB, MIB, about, label};
use crate::crowd::{Crowd, Sizes};
use crate::moved::{self, gib};
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

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let sizes = match Sizes::find() {
        Ok(sizes) => sizes,
        Err(error) => {
            bench.missing("swap_plain_out_gb_per_s", "GB/s", format!("{error:#}"));
            return Ok(());
        }
    };
    bench.value("swap_plain_out_gb_per_s", "GB/s", sizes.out);
    bench.value("swap_plain_in_gb_per_s", "GB/s", sizes.inward);
    let rest = bench.pick(128 * MIB, 4 * GIB);
    for chunk in [2 * MIB, 8 * MIB, 32 * MIB, 64 * MIB, 256 * MIB, GIB] {
        let measured = match chunk * 4 <= rest {
            true => bench.time_for(12.0).and_then(|()| swap(bench, sizes, "swap", rest, chunk)),
            false => Err(anyhow::anyhow!("too large for {} of memory", label(rest))),
        };
        settle(bench, "swap", chunk, measured);
    }
    let measured =
        most(bench, sizes, rest).and_then(|rest| swap(bench, sizes, "swap_most", rest, MOST));
    settle(bench, "swap_most", MOST, measured);
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

/// Bytes to fight for, as many as possible; an error where that is no more than was measured before.
fn most(bench: &Bench, sizes: Sizes, before: u64) -> anyhow::Result<u64> {
    // Both programs' memory is pinned and compared once, at 3 GB/s or more, and there are ten one-way copies.
    let seconds_per_gb = 4.0 / 3.0 + 10.0 / sizes.slower();
    let in_time = (bench.seconds_left() - 12.0).max(0.0) / seconds_per_gb * 1e9;
    let most = bench.pick(256 * MIB, sizes.most(2)).min(sizes.most(2)).min(in_time as u64);
    anyhow::ensure!(in_time as u64 > before, crate::bench::NO_TIME);
    anyhow::ensure!(
        most > before,
        "GPU and host have memory for no more than the {} above",
        about(before)
    );
    Ok(most)
}

fn swap(bench: &Bench, sizes: Sizes, matrix: &str, rest: u64, chunk: u64) -> anyhow::Result<()> {
    let crowd = Crowd::gather(bench, sizes, rest, 2, chunk)?;
    let place = |column: &str| format!("{matrix}.{column}@{}-{}", label(chunk), about(crowd.rest));
    let bytes = crowd.each as f64;
    let explain =
        |error: anyhow::Error| anyhow::anyhow!("{error:#}; gpu_assigner: {}", crowd.assigner.log());
    let mut a = crowd.partner(crowd.each, 1).map_err(explain)?;
    let mut b = crowd.partner(crowd.each, 2).map_err(explain)?;
    // The first switch finds host memory unpinned, or does not; the others do not.
    a.step()?;
    let first = bytes / b.touch()? / 1e9;
    b.step()?;
    a.touch()?;
    let (mut changed, mut unchanged, mut share) = (vec![], vec![], vec![]);
    for _ in 0..bench.pick(2, 3) {
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
