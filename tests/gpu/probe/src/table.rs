//! The printed table of a run: groups, their plain rows, and their matrices. Pure.

use std::fmt::Write;

use comfy_table::{ContentArrangement, Table, TableComponent, presets};

use crate::row::{Ended, Results, Row};

/// Where a row stands: `matrix.column@line`, or a plain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position<'a> {
    Plain(&'a str),
    Cell { matrix: &'a str, column: &'a str, line: &'a str },
}

/// Reads a row's name.
pub(crate) fn position(name: &str) -> Position<'_> {
    let Some((path, line)) = name.split_once('@') else { return Position::Plain(name) };
    let (matrix, column) = path.split_once('.').unwrap_or(("", path));
    Position::Cell { matrix, column, line }
}

/// The rows of a group whose names are cells of one matrix.
pub(crate) struct Matrix<'a> {
    pub(crate) name: &'a str,
    pub(crate) columns: Vec<&'a str>,
    pub(crate) lines: Vec<&'a str>,
    cells: Vec<(&'a str, &'a str, &'a Row)>,
}

impl<'a> Matrix<'a> {
    /// All matrices of some rows, in the order in which they occur.
    pub(crate) fn all(rows: &[&'a Row]) -> Vec<Self> {
        let mut matrices: Vec<Self> = Vec::new();
        for row in rows {
            let Position::Cell { matrix, column, line } = position(&row.name) else { continue };
            let place = matrices.iter().position(|other| other.name == matrix);
            let place = place.unwrap_or_else(|| {
                matrices.push(Self { name: matrix, columns: vec![], lines: vec![], cells: vec![] });
                matrices.len() - 1
            });
            let found = &mut matrices[place];
            if !found.columns.contains(&column) {
                found.columns.push(column);
            }
            if !found.lines.contains(&line) {
                found.lines.push(line);
            }
            found.cells.push((column, line, row));
        }
        matrices
    }

    pub(crate) fn cell(&self, column: &str, line: &str) -> Option<&'a Row> {
        self.cells.iter().find(|(c, l, _)| *c == column && *l == line).map(|(_, _, row)| *row)
    }
}

/// The whole table.
pub(crate) fn render(results: &Results) -> String {
    let mut out = String::new();
    let machine = |key: &str| results.machine.get(key).map_or("unknown", String::as_str);
    let simulated = if results.simulated { " — SIMULATED, no GPU" } else { "" };
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "\n{} · driver {} · CUDA {} · {}{simulated}",
        machine("gpu"),
        machine("driver"),
        machine("cuda_version"),
        results.date
    );
    for group in &results.groups {
        let rows: Vec<&Row> = results.rows.iter().filter(|row| row.group == group.name).collect();
        let _ = write!(
            out,
            "\n== {} ({:.0} s{})",
            group.name,
            group.seconds,
            if results.simulated { ", simulated" } else { "" }
        );
        if group.ended != Ended::Well {
            let _ = write!(out, " {}", describe(group.ended));
        }
        let _ = writeln!(out);
        if !group.why.is_empty() {
            let _ = writeln!(out, "{}", group.why);
        }
        plain(&mut out, &rows);
        for matrix in Matrix::all(&rows) {
            grid(&mut out, &matrix);
        }
    }
    out
}

/// What a run is made for and has no value: the rows by their reasons.
pub(crate) fn unanswered(rows: &[(String, String)]) -> String {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, why) in rows {
        match reasons.iter_mut().find(|(other, _)| other == why) {
            Some((_, names)) => names.push(name),
            None => reasons.push((why, vec![name])),
        }
    }
    let mut out = String::new();
    if !reasons.is_empty() {
        out.push_str("\nWithout a value, of what this is run for:\n");
    }
    for (why, names) in reasons {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "  {}: {why}", names.join(", "));
    }
    out
}

fn describe(ended: Ended) -> &'static str {
    match ended {
        Ended::Well => "",
        Ended::Failed => "FAILED",
        Ended::Overran => "ENDED at its time limit",
        Ended::Skipped => "NOT STARTED",
    }
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_style(TableComponent::HeaderLines, '─');
    table.set_style(TableComponent::MiddleHeaderIntersections, '─');
    table
}

fn plain(out: &mut String, rows: &[&Row]) {
    let mut table = new_table();
    table.set_header(["row", "value", "unit", "middle half", ""]);
    for row in rows {
        if position(&row.name) == Position::Plain(&row.name) {
            let remark = remark(row, 70);
            let unit = if row.unit == "text" { "" } else { &row.unit };
            table.add_row([&row.name, &row.shown(), unit, &row.shown_spread(), &remark]);
        }
    }
    if table.row_count() > 0 {
        let _ = writeln!(out, "{table}");
    }
}

/// What to know about a row: its reason, or its note, cut to fit.
fn remark(row: &Row, width: usize) -> String {
    let text =
        if row.why.is_empty() { row.note.clone() } else { format!("not measured: {}", row.why) };
    let text = if row.verified == Some(false) { format!("WRONG {text}") } else { text };
    let text = if row.simulated { format!("simulated; {text}") } else { text };
    let text = text.trim_end_matches("; ").to_owned();
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

/// What all cells of a matrix of one column say, if they say the same and were found right.
fn unanimous<'a>(matrix: &Matrix<'a>) -> Option<&'a str> {
    let (_, _, first) = matrix.cells.first()?;
    let text = first.text.as_deref()?;
    let same = |row: &Row| row.text.as_deref() == Some(text) && row.verified == Some(true);
    (matrix.columns.len() == 1 && matrix.cells.iter().all(|(_, _, row)| same(row))).then_some(text)
}

fn grid(out: &mut String, matrix: &Matrix) {
    if let Some(text) = unanimous(matrix) {
        let simulated = matrix.cells.iter().any(|(_, _, row)| row.simulated);
        let mark = if simulated { " (simulated)" } else { "" };
        let (name, column) = (matrix.name.replace('_', " "), matrix.columns[0].replace('_', " "));
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name} {column}{mark}: {text}, all {}", matrix.cells.len());
        return;
    }
    let mut table = new_table();
    let heads = matrix.columns.iter().map(|column| column.replace('_', " "));
    let simulated = matrix.cells.iter().any(|(_, _, row)| row.simulated);
    let name = matrix.name.replace('_', " ");
    let name = if simulated { format!("{name} (simulated)") } else { name };
    table.set_header(std::iter::once(name).chain(heads));
    for line in &matrix.lines {
        let cells = matrix.columns.iter().map(|column| match matrix.cell(column, line) {
            Some(row) if row.verified == Some(false) => format!("{} WRONG", row.shown()),
            Some(row) => row.shown(),
            None => String::new(),
        });
        table.add_row(std::iter::once((*line).to_owned()).chain(cells));
    }
    let _ = writeln!(out, "{table}");
    // One remark for all cells that share it.
    let mut told: Vec<String> = Vec::new();
    for (_, line, row) in &matrix.cells {
        let text = remark(row, 160);
        let text = if row.why.is_empty() && row.verified != Some(false) {
            continue;
        } else {
            format!("{line}: {text}")
        };
        if !told.contains(&text) {
            let _ = writeln!(out, "  {text}");
            told.push(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::row::GroupRun;

    #[test]
    fn names_are_positions() {
        assert_eq!(position("context_mib"), Position::Plain("context_mib"));
        let cell = Position::Cell { matrix: "copy", column: "out_1_gb_per_s", line: "64MiB" };
        assert_eq!(position("copy.out_1_gb_per_s@64MiB"), cell);
    }

    #[test]
    fn a_matrix_has_a_line_per_size() {
        let rows = [
            Row::value("g", "m.a@1", "us", 1.0),
            Row::value("g", "m.b@1", "us", 2.0),
            Row::value("g", "m.a@2", "us", 3.0),
            Row::value("g", "plain", "us", 4.0),
        ];
        let matrices = Matrix::all(&rows.iter().collect::<Vec<_>>());
        assert_eq!(matrices.len(), 1);
        let m = &matrices[0];
        assert_eq!((m.name, &m.columns[..], &m.lines[..]), ("m", &["a", "b"][..], &["1", "2"][..]));
        assert_eq!(m.cell("a", "2").unwrap().value, Some(3.0));
        assert!(m.cell("b", "2").is_none());
    }

    #[test]
    fn a_long_list_that_is_right_is_one_line() {
        let case = |name: &str, text: &str| {
            Row::text("contract", &format!("contract.case@{name}"), text).verified(text == "ok")
        };
        let shown = |rows: &[Row]| {
            let mut out = String::new();
            grid(&mut out, &Matrix::all(&rows.iter().collect::<Vec<_>>())[0]);
            out
        };
        let (a, b) = (case("a", "ok"), case("b", "ok"));
        assert_eq!(shown(&[a.clone(), b]), "contract case: ok, all 2\n");
        let wrong = shown(&[a, case("b", "FAILED")]);
        assert!(wrong.contains("FAILED WRONG") && wrong.lines().count() > 2, "{wrong}");
    }

    #[test]
    fn what_has_no_value_is_told_by_reason() {
        let row = |name: &str, why: &str| (name.to_owned(), why.to_owned());
        let told = unanswered(&[row("a", "x"), row("b", "y"), row("c", "x")]);
        assert!(told.ends_with("run for:\n  a, c: x\n  b: y\n"), "{told}");
        assert_eq!(unanswered(&[]), "");
    }

    #[test]
    fn everything_that_matters_is_in_the_table() {
        let results = Results {
            schema: 1,
            simulated: true,
            quick: false,
            date: "2026-01-01 00:00".into(),
            command: "c".into(),
            probe: "0".into(),
            machine: BTreeMap::from([("gpu".into(), "Some GPU".into())]),
            groups: vec![
                GroupRun {
                    name: "hash".into(),
                    ended: Ended::Well,
                    seconds: 1.0,
                    why: String::new(),
                },
                GroupRun {
                    name: "link".into(),
                    ended: Ended::Overran,
                    seconds: 9.0,
                    why: "it hung".into(),
                },
            ],
            rows: vec![
                Row::value("hash", "rate", "GB/s", 123.0),
                Row::missing("hash", "other", "GB/s", "no kernel"),
                Row::text("hash", "checked", "WRONG").verified(false),
                Row::missing("link", "copy.out@64MiB", "GB/s", "no room"),
            ],
            details: BTreeMap::new(),
        };
        let text = render(&results);
        for part in [
            "Some GPU",
            "SIMULATED",
            "123",
            "not measured: no kernel",
            "WRONG",
            "ENDED",
            "it hung",
            "64MiB: not measured: no room",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
