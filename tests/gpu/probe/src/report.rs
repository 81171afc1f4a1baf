//! The page docs/gpu-results.md, made from a result file, or from none: then every row is marked as not
//! yet seen. Pure. The page is never edited by hand.

use std::fmt::Write;

use crate::catalogue::{self, Entry, ROWS};
use crate::groups::Group;
use crate::row::{Results, Row, shown};
use crate::table::{Matrix, Position, position};

const UNSEEN: &str = "not yet seen on a real GPU";
/// The same in a cell of a matrix.
const UNSEEN_CELL: &str = "UNSEEN";

/// The page.
pub(crate) fn page(results: Option<&Results>) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = head(&mut out, results);
    for group in Group::ALL {
        let _ = section(&mut out, group.name(), results);
    }
    out
}

fn head(out: &mut String, results: Option<&Results>) -> std::fmt::Result {
    writeln!(
        out,
        "<!-- Made by `acb-gpu-probe report`; do not edit. tests/gpu/README.md says how. -->"
    )?;
    writeln!(out, "# Results on a real GPU\n")?;
    writeln!(
        out,
        "What the design takes for granted, measured. Medians; the middle half and the number of"
    )?;
    writeln!(
        out,
        "measurements stand beside them. A row that no real GPU has been seen to give is marked so, and so is each cell of"
    )?;
    writeln!(out, "the tables by chunk, program or case (UNSEEN).\n")?;
    writeln!(out, "```")?;
    writeln!(
        out,
        "tests/gpu/build DIR                              # where there is Rust; carry DIR to the GPU"
    )?;
    writeln!(
        out,
        "DIR/run --json gpu.json                          # there: no network, no compiler, under 9 minutes"
    )?;
    writeln!(out, "acb-gpu-probe report gpu.json > docs/gpu-results.md")?;
    writeln!(out, "```\n")?;
    let Some(results) = results else {
        return writeln!(
            out,
            "**No real GPU has been measured yet: every row below is {UNSEEN}.**\n"
        );
    };
    if results.simulated {
        writeln!(
            out,
            "**Simulated: these are the software GPU's modelled numbers. Every row below is {UNSEEN}.**\n"
        )?;
    }
    let quick = if results.quick { " (quick: small sizes, few repeats)" } else { "" };
    writeln!(out, "| | |\n| --- | --- |")?;
    writeln!(out, "| date | {} UTC{quick} |", results.date)?;
    for (key, value) in &results.machine {
        writeln!(out, "| {} | {} |", key.replace('_', " "), escaped(value))?;
    }
    writeln!(out, "| command | `{}` |", results.command)?;
    writeln!(out, "| probe | {} |\n", results.probe)?;
    if !results.simulated {
        follows(out, results)?;
    }
    Ok(())
}

/// Where a group's rows come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Device,
    /// A device, but the group did not end well.
    CutShort,
    Simulated,
}

fn section(out: &mut String, group: &str, results: Option<&Results>) -> std::fmt::Result {
    writeln!(out, "## {group}\n")?;
    let rows: Vec<&Row> =
        results.into_iter().flat_map(|r| &r.rows).filter(|row| row.group == group).collect();
    let run = results.and_then(|r| r.groups.iter().find(|run| run.name == group));
    if let Some(run) = run.filter(|run| !run.why.is_empty()) {
        writeln!(out, "This group did not end well: {}\n", escaped(&run.why))?;
    }
    writeln!(
        out,
        "| row | is | value | middle half | assumed | seen |\n| --- | --- | --- | --- | --- | --- |"
    )?;
    let source = match results {
        Some(results) if results.simulated => Source::Simulated,
        _ if run.is_some_and(|run| !run.why.is_empty()) => Source::CutShort,
        _ => Source::Device,
    };
    for entry in ROWS.iter().filter(|entry| entry.group == group) {
        line(out, entry, &rows, source)?;
    }
    writeln!(out)?;
    let found = Matrix::all(&rows);
    for name in catalogue::matrices(group) {
        grid(out, name, &rows, source)?;
    }
    for matrix in found.iter().filter(|m| !catalogue::matrices(group).contains(&m.name)) {
        unlisted(out, matrix)?;
    }
    // A newer program's rows, which this catalogue does not know.
    for row in &rows {
        if let Position::Plain(name) = position(&row.name)
            && !ROWS.iter().any(|entry| entry.group == group && entry.name == name)
        {
            writeln!(
                out,
                "- {name}: {} {} {}",
                escaped(&row.shown()),
                row.unit,
                escaped(&row.note)
            )?;
        }
    }
    Ok(())
}

fn line(out: &mut String, entry: &Entry, rows: &[&Row], source: Source) -> std::fmt::Result {
    if !entry.lines().is_empty() {
        return column(out, entry, rows, source);
    }
    let found = rows.iter().find(|row| entry.has(None, &row.name));
    let (value, spread) = match found {
        Some(row) if row.is_measured() => {
            let unit = if row.unit == "text" { "" } else { &row.unit };
            (format!("{} {unit}", row.shown()), row.shown_spread())
        }
        _ => (String::new(), String::new()),
    };
    let seen = match found {
        Some(row) if row.verified == Some(false) => "**WRONG**".to_owned(),
        None if source == Source::CutShort => format!("{UNSEEN}: its group did not end well"),
        None => UNSEEN.to_owned(),
        Some(_) if source == Source::Simulated => format!("simulated; {UNSEEN}"),
        Some(row) if !row.is_measured() => format!("{UNSEEN}: {}", row.why),
        Some(row) if row.verified == Some(true) => "yes, checked".to_owned(),
        Some(_) => "yes".to_owned(),
    };
    let note = match found {
        Some(row) if !row.note.is_empty() => format!("; {}", row.note),
        _ => String::new(),
    };
    writeln!(
        out,
        "| `{}` | {}{} | {} | {spread} | {} | {} |",
        entry.name,
        entry.what,
        escaped(&note),
        escaped(value.trim()),
        entry.assumed,
        escaped(&seen)
    )
}

/// The line of a column: how many of its cells have been seen. The cells are in the table below.
fn column(out: &mut String, entry: &Entry, rows: &[&Row], source: Source) -> std::fmt::Result {
    let cells = entry.cells();
    let count = |wanted: &dyn Fn(&Row) -> bool| {
        let is_so =
            |cell: Option<&str>| rows.iter().any(|row| entry.has(cell, &row.name) && wanted(row));
        cells.iter().filter(|cell| is_so(**cell)).count()
    };
    let measured = count(&|row| row.is_measured());
    let seen = match (measured, count(&|row| row.verified == Some(false))) {
        (0, 0) => UNSEEN.to_owned(),
        (_, 0) if source == Source::Simulated => format!("simulated; {UNSEEN}"),
        (_, 0) if measured == cells.len() => "yes".to_owned(),
        (_, 0) => format!("{measured} of {}, the others {UNSEEN}", cells.len()),
        (_, wrong) => format!("**{wrong} WRONG**"),
    };
    let value = if measured == 0 { "" } else { "below" };
    writeln!(
        out,
        "| `{}` | {} | {value} |  | {} | {} |",
        entry.name,
        entry.what,
        entry.assumed,
        escaped(&seen)
    )
}

/// All cells that a full run has, each with its value or marked.
fn grid(out: &mut String, matrix: &str, rows: &[&Row], source: Source) -> std::fmt::Result {
    let is_column = |entry: &&Entry| entry.name.split_once('.').is_some_and(|(m, _)| m == matrix);
    let columns: Vec<&Entry> = ROWS.iter().filter(is_column).collect();
    write!(out, "| {matrix} |")?;
    for entry in &columns {
        write!(out, " {} |", &entry.name[matrix.len() + 1..])?;
    }
    writeln!(out, "\n| --- |{}", " --- |".repeat(columns.len()))?;
    let mut lines: Vec<&str> = Vec::new();
    for line in columns.iter().flat_map(|entry| entry.lines()) {
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    for line in lines {
        let of = |entry: &Entry| rows.iter().find(|row| entry.has(Some(line), &row.name));
        // With the size that it came to.
        let found = columns.iter().filter_map(|entry| of(entry)?.name.split_once('@'));
        let shown = found.map(|(_, shown)| shown).max_by_key(|shown| shown.len()).unwrap_or(line);
        write!(out, "| {shown} |")?;
        for entry in &columns {
            let text = match of(entry) {
                _ if !entry.lines().contains(&line) => "–".to_owned(),
                Some(row) => cell(row, source),
                None => UNSEEN_CELL.to_owned(),
            };
            write!(out, " {} |", escaped(&text))?;
        }
        writeln!(out)?;
    }
    writeln!(out)
}

fn cell(row: &Row, source: Source) -> String {
    let text = match &row.spread {
        _ if !row.is_measured() => return UNSEEN_CELL.to_owned(),
        _ if row.verified == Some(false) => format!("**{}**", row.shown()),
        Some(s) if s.n > 1 => format!("{} ({}…{})", row.shown(), shown(s.q1), shown(s.q3)),
        _ => row.shown(),
    };
    match source {
        Source::Simulated => format!("{text}, simulated; {UNSEEN_CELL}"),
        Source::Device | Source::CutShort => text,
    }
}

/// A matrix of a newer program, which this catalogue does not know.
fn unlisted(out: &mut String, matrix: &Matrix) -> std::fmt::Result {
    for line in &matrix.lines {
        for column in &matrix.columns {
            if let Some(row) = matrix.cell(column, line) {
                writeln!(out, "- {}: {} {}", row.name, escaped(&row.shown()), row.unit)?;
            }
        }
    }
    Ok(())
}

/// What the numbers say to the choices of the design, each with the rows that it follows from.
fn follows(out: &mut String, results: &Results) -> std::fmt::Result {
    let value = |group: &str, name: &str| {
        results
            .rows
            .iter()
            .find(|row| row.group == group && row.name == name)
            .and_then(|row| row.value)
    };
    writeln!(out, "## What follows for the design\n")?;
    let unknown = "not measured".to_owned();
    let out_rate = value("link", "copy.out_1_gb_per_s@64MiB");
    // A chunk whose calls take under a tenth of its copy, and whose kernels lose under one percent.
    let chunk = ["2MiB", "8MiB", "32MiB", "64MiB", "256MiB", "1GiB"].into_iter().find(|chunk| {
        let cycle = value("memory", &format!("mapped_idle.cycle_ms_per_gib@{chunk}"));
        let penalty =
            |kernel: &str| value("kernels", &format!("mapped_over_plain.{kernel}@{chunk}"));
        let copy_ms = out_rate.map(|rate| 1.0737 / rate * 1e3);
        let cheap = cycle.zip(copy_ms).is_some_and(|(cycle, copy)| cycle <= 0.1 * copy);
        let lossless =
            ["stream", "matmul"].iter().all(|k| penalty(k).is_some_and(|ratio| ratio <= 1.01));
        cheap && lossless
    });
    let chunk = chunk.map_or(
        "none of the sizes measured has mapping under a tenth of the copy and kernels within 1 %".into(),
        |chunk| format!("{chunk} is the smallest whose calls take under a tenth of its copy and whose kernels lose under 1 %"),
    );
    writeln!(
        out,
        "- **Chunk size**: {chunk} (`mapped_idle.cycle_ms_per_gib`, `copy.out_1_gb_per_s`, `mapped_over_plain`)."
    )?;
    let pin = value("pinned", "pin.allocate_gib_per_s@4GiB")
        .or(value("pinned", "pin.allocate_gib_per_s@1GiB"))
        .zip(
            value("pinned", "pin.prepare_gib_per_s@4GiB")
                .or(value("pinned", "pin.prepare_gib_per_s@1GiB")),
        )
        .map_or(unknown.clone(), |(own, prepared)| {
            format!(
                "{} GiB/s by the driver, {} GiB/s touched and registered",
                shown(own),
                shown(prepared)
            )
        });
    writeln!(out, "- **Pinning**: {pin} (`pin.allocate_gib_per_s`, `pin.prepare_gib_per_s`).")?;
    let duplex = value("link", "duplex_out_gb_per_s")
        .zip(value("link", "duplex_in_gb_per_s"))
        .zip(out_rate)
        .map_or(unknown.clone(), |((out, within), one)| {
            format!(
                "{} GB/s out with {} in at once, against {} out alone: {} of one way",
                shown(out),
                shown(within),
                shown(one),
                shown((out + within) / one)
            )
        });
    writeln!(
        out,
        "- **Both directions**: {duplex} (`duplex_out_gb_per_s`, `duplex_in_gb_per_s`)."
    )?;
    let hash = value("hash", "hash.gb_per_s@64MiB").zip(out_rate).map_or(
        unknown.clone(),
        |(hash, copy)| {
            let times = hash / copy;
            let verdict = if times >= 10.0 { "pays" } else { "does not pay by much" };
            format!("hashing is {} times as fast as copying out: it {verdict}", shown(times))
        },
    );
    writeln!(out, "- **Hash before copying**: {hash} (`hash.gb_per_s`, `copy.out_1_gb_per_s`).")?;
    let penalty = value("kernels", "mapped_over_plain.stream@64MiB")
        .zip(value("kernels", "mapped_over_plain.gather@64MiB"))
        .zip(value("kernels", "mapped_over_plain.matmul@64MiB"))
        .map_or(unknown, |((stream, gather), matmul)| {
            format!(
                "{} streaming, {} random reads, {} matrix product, with 64 MiB chunks",
                shown(stream),
                shown(gather),
                shown(matmul)
            )
        });
    writeln!(out, "- **Mapped against plain memory**: time × {penalty} (`mapped_over_plain`).\n")
}

/// For a cell of a table.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::row::{Ended, GroupRun};

    fn results(simulated: bool) -> Results {
        Results {
            schema: 1,
            simulated,
            quick: false,
            date: "2026-01-01 00:00".into(),
            command: "run --json x".into(),
            probe: "0.1.0".into(),
            machine: BTreeMap::from([("gpu".into(), "Some | GPU".into())]),
            groups: vec![GroupRun {
                name: "hash".into(),
                ended: Ended::Failed,
                seconds: 1.0,
                why: "boom".into(),
            }],
            rows: vec![
                Row::sample("memory", "context_mib", "MiB", &[300.0, 310.0, 320.0]),
                Row::sample("memory", "mapped_idle.cycle_us@2MiB", "us", &[33.0]),
                Row::missing("memory", "mapped_idle.cycle_us@1GiB", "us", "no room"),
                Row::text("hash", "hash_correct", "WRONG").verified(false),
                Row::value("link", "copy.out_1_gb_per_s@64MiB", "GB/s", 50.0),
                Row::value("hash", "hash.gb_per_s@64MiB", "GB/s", 3000.0),
                Row::missing("calls", "grant_p50_us", "us", "no assigner"),
            ],
            details: BTreeMap::new(),
        }
    }

    #[test]
    fn without_a_gpu_every_row_is_marked() {
        let page = page(None);
        for entry in ROWS {
            let line = page.lines().find(|line| line.starts_with(&format!("| `{}` |", entry.name)));
            assert!(line.is_some_and(|line| line.contains(UNSEEN)), "{}", entry.name);
        }
        assert!(
            !page.lines().any(|line| line.ends_with("| yes |") || line.contains("yes, checked"))
        );
        let cells: usize =
            ROWS.iter().filter(|e| !e.lines().is_empty()).map(|e| e.cells().len()).sum();
        // The head explains the word.
        assert_eq!(page.matches(UNSEEN_CELL).count(), cells + 1);
    }

    #[test]
    fn what_was_seen_is_shown_and_the_rest_is_marked() {
        let page = page(Some(&results(false)));
        let of =
            |name: &str| page.lines().find(|l| l.starts_with(&format!("| `{name}` |"))).unwrap();
        assert!(of("context_mib").contains("310 MiB") && of("context_mib").ends_with("| yes |"));
        assert!(of("mapped_idle.cycle_us").contains("| 1 of 6, the others not yet seen"));
        // Each cell by itself: measured, refused, and never tried.
        let cells = |line: &str| {
            let table = page.split("| mapped_idle |").nth(1).unwrap();
            let found = table.lines().find(|found| found.starts_with(&format!("| {line} |")));
            found.unwrap().matches("UNSEEN").count()
        };
        assert_eq!([cells("2MiB"), cells("1GiB"), cells("8MiB")], [7, 8, 8]);
        assert!(page.contains("| memory::pitched_copies | UNSEEN |"));
        assert!(of("hash_correct").contains("**WRONG**"));
        assert!(of("grant_p50_us").contains("not yet seen on a real GPU: no assigner"));
        assert!(of("pcie").contains(UNSEEN));
        assert!(
            page.contains("60.0 times as fast")
                && page.contains("boom")
                && page.contains("Some \\| GPU")
        );
    }

    #[test]
    fn simulated_numbers_never_pass_for_seen_ones() {
        let page = page(Some(&results(true)));
        assert!(
            page.contains("**Simulated:") && !page.lines().any(|line| line.ends_with("| yes |"))
        );
        assert!(!page.contains("What follows for the design"));
    }
}
