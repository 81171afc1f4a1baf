//! The table of a scenario that was played: measured beside simulated.
//!
//! Does not own: the figures.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, TableComponent, presets};

use super::Played;

/// Groups first, then what is said of all.
pub fn table(played: &Played) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_style(TableComponent::HeaderLines, '─')
        .set_style(TableComponent::MiddleHeaderIntersections, '─')
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(vec!["", "measured", "simulated", "measured / simulated"]);
    let mut row = |name: String, measured: f64, simulated: f64, show: fn(f64) -> String| {
        let ratio = format!("{:.3}", measured / simulated);
        let numbers = [show(measured), show(simulated), ratio];
        let cells = numbers.map(|text| Cell::new(text).set_alignment(CellAlignment::Right));
        table.add_row([Cell::new(name)].into_iter().chain(cells));
    };
    for group in &played.groups {
        let (measured, simulated) = (group.measured, group.simulated);
        let name = |what| format!("{} ({}): {what}", group.name, group.clients);
        row(name("GPU phases per hour"), measured.per_hour, simulated.per_hour, count);
        row(name("latency p50"), measured.latency_p50_s, simulated.latency_p50_s, milliseconds);
        row(name("latency p99"), measured.latency_p99_s, simulated.latency_p99_s, milliseconds);
    }
    let (share, simulated) = (played.share_of_bound, played.simulated_share_of_bound);
    row("share of the bound".to_owned(), share, simulated, percent);
    if played.simulated_switching > 0.0 {
        row("switching".to_owned(), played.switching, played.simulated_switching, percent);
    }
    if let Some(simulated) = played.simulated_times_exclusive {
        row("times exclusive".to_owned(), played.times_exclusive, simulated, times);
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    format!(
        "{}\n\n{}\n{} MiB checked, {} bytes wrong",
        played.title,
        lines.join("\n"),
        played.checked >> 20,
        played.wrong
    )
}

fn count(number: f64) -> String {
    format!("{number:.0}")
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.2} ms", seconds * 1e3)
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

fn times(number: f64) -> String {
    format!("{number:.3} x")
}
