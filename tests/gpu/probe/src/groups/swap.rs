//! Group `swap`: two programs with 95 % of the memory each take turns under the interposer: how fast memory is swapped by chunk
//! size, against plain pinned copies, and whether every word of it is right.

use crate::bench::{Bench, GIB, MIB, label};
use crate::crowd::{Crowd, Sizes};
use crate::row::Row;

const COLUMNS: [(&str, &str); 5] = [
    ("switch_gb_per_s", "GB/s"),
    ("unchanged_gb_per_s", "GB/s"),
    ("share_of_copy", "ratio"),
    ("first_gb_per_s", "GB/s"),
    ("data", "text"),
];

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
            true => swap(bench, sizes, rest, chunk),
            false => Err(anyhow::anyhow!("too large for {} of memory", label(rest))),
        };
        if let Err(error) = measured {
            for (column, unit) in COLUMNS {
                bench.missing(&place(column, chunk), unit, format!("{error:#}"));
            }
        }
    }
    Ok(())
}

fn place(column: &str, chunk: u64) -> String {
    format!("swap.{column}@{}", label(chunk))
}

fn swap(bench: &Bench, sizes: Sizes, rest: u64, chunk: u64) -> anyhow::Result<()> {
    anyhow::ensure!(bench.seconds_left() > 12.0, "no time was left");
    let crowd = Crowd::gather(bench, sizes, rest, 2, chunk)?;
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
        share.push(bytes / sizes.out.min(sizes.inward) / 1e9 / switch);
        unchanged.push(bytes / a.touch()? / 1e9);
    }
    let right = a.is_right()? & b.is_right()?;
    let row = Row::sample(bench.group, &place("switch_gb_per_s", chunk), "GB/s", &changed);
    let note = format!("{} MiB out, as much in", crowd.each / MIB);
    bench.row(row.note(note));
    bench.sample(&place("unchanged_gb_per_s", chunk), "GB/s", &unchanged);
    bench.sample(&place("share_of_copy", chunk), "ratio", &share);
    bench.value(&place("first_gb_per_s", chunk), "GB/s", first);
    let word = if right { "right" } else { "WRONG" };
    bench.row(Row::text(bench.group, &place("data", chunk), word).verified(right));
    Ok(())
}
