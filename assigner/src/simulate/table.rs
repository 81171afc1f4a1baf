//! The table of a simulation.
//!
//! Does not own: the figures.

use std::fmt::Write as _;

use acb_sim::Report;
use acb_sim::report::{Counted, FairnessLag};
use acb_sim::timeline::Look;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, TableComponent, presets};

/// One run: the groups of clients, then what is said of all.
pub(super) fn report(report: &Report, look: Look) -> String {
    let mut text = String::new();
    if !report.title.is_empty() {
        let _ = writeln!(text, "{}\n", bold(&report.title, look));
    }
    let mut groups = table(
        &[
            "clients",
            "number",
            "phases",
            "per hour",
            "GPU time",
            "wait p50",
            "p99",
            "latency p50",
            "p99",
            "Jain",
        ],
        look,
    );
    for group in &report.groups {
        groups.add_row(cells([
            group.name.clone(),
            group.clients.to_string(),
            group.phases.to_string(),
            quantity(group.per_hour),
            percent(group.busy),
            time(group.wait_p50_s),
            time(group.wait_p99_s),
            time(group.latency_p50_s),
            time(group.latency_p99_s),
            format!("{:.3}", group.jain),
        ]));
    }
    let _ = writeln!(text, "{}", trimmed(&groups));
    let _ = write!(text, "{}", trimmed(&figures(report, look)));
    for violation in &report.violations {
        let _ = writeln!(text, "{}", alarm(&format!("VIOLATED {violation}"), look));
    }
    text
}

/// The figures of all clients together: name, value, and what it means.
fn figures(report: &Report, look: Look) -> Table {
    let mut table = table(&["figure", "value", ""], look);
    let mut row = |name: &str, value: String, how: String| {
        table.add_row(vec![
            Cell::new(name),
            Cell::new(value).set_alignment(CellAlignment::Right),
            Cell::new(how),
        ]);
    };
    let counted = match report.counted {
        Counted::AsSaid => "as the scenario says",
        Counted::SteadyState => "steady state: from every client's first GPU phase on",
        Counted::WholeRun => "the whole run",
    };
    let window = format!("{} to {}", time(report.counted_from_s), time(report.counted_to_s));
    row("counted", window, counted.into());
    if let Some(makespan) = report.makespan_s {
        row("makespan", time(makespan), "until all clients were done".into());
    }
    row("GPU phases per hour", quantity(report.per_hour), String::new());
    if let Some(times) = report.times_exclusive {
        let clients = "against one client for each GPU".into();
        row("times exclusive", format!("{times:.3} x"), clients);
    }
    row(
        "GPUs busy",
        percent(report.busy),
        format!("{} on {}", count(report.gpus, "GPU"), count(report.nodes, "node")),
    );
    let rule = match report.counted {
        Counted::WholeRun => "the work over the shortest possible run",
        _ if report.switch_s > 0.0 => "min(N/(c+g), G/(g+s))",
        _ => "min(N/(c+g), G/g)",
    };
    let bound = format!("of at most {}: {rule}", percent(report.bound));
    row("share of the bound", percent(report.share_of_bound), bound);
    if let (Some(exact), Some(share)) = (report.exact, report.share_of_exact) {
        let how = format!("of {}: the finite-source queue of exponential phases", percent(exact));
        row("share of the exact value", percent(share), how);
    }
    if report.switching > 0.0 || report.switch_s > 0.0 {
        row("switching", percent(report.switching), switching(report));
    }
    row(
        "fairness",
        format!("{:.3}", report.jain),
        "Jain's index of GPU time, the worst group".into(),
    );
    for (whose, lag) in
        [("tenants", report.fairness_lag), ("a tenant's clients", report.fairness_lag_within)]
    {
        if let Some(FairnessLag { most_s, bound_s }) = lag {
            let what = format!("of GPU time between {whose} at most; the bound is {bound_s:.3} s");
            row("fairness lag", format!("{most_s:.3} s"), what);
        }
    }
    row(
        "bytes moved",
        bytes(report.bytes_in + report.bytes_out),
        format!("{} in, {} out", bytes(report.bytes_in), bytes(report.bytes_out)),
    );
    row(
        "switches",
        report.switches.to_string(),
        format!("{} leases, {} asked back", report.grants, report.recalls),
    );
    row(
        "preemptions",
        report.preemptions.to_string(),
        "phases interrupted between two kernels".into(),
    );
    row(
        "promises",
        report.promises.to_string(),
        format!(
            "latest start {:.3} ms late; {:.3} ms beyond longest kernel and swap",
            report.promise_late_ms, report.promise_beyond_ms
        ),
    );
    if report.reclaims > 0 {
        let how = format!(
            "the slowest could compute {:.3} ms after longest kernel and swap",
            report.reclaim_beyond_ms
        );
        row("guaranteed requests", report.reclaims.to_string(), how);
    }
    row(
        "out of memory",
        report.out_of_memory.to_string(),
        "clients whose memory was denied".into(),
    );
    row("kills", report.kills.to_string(), "by the scenario alone".into());
    if report.refused > 0 {
        row("refused", report.refused.to_string(), "clients that could never start".into());
    }
    row(
        "violations",
        report.violations.len().to_string(),
        format!("of invariants, checked after {} events", report.events),
    );
    table
}

/// What is said of the time that switching takes.
fn switching(report: &Report) -> String {
    let allowed = format!("of at most {} for who always computes", percent(report.switch_share));
    let least = format!("; s = {} at least", time(report.switch_s));
    let mut gpus: Vec<f64> = report.switching_of.clone();
    gpus.sort_by(f64::total_cmp);
    match gpus[..] {
        [least_busy, .., most] => {
            format!("{allowed}{least}; {} to {} of a GPU", percent(least_busy), percent(most))
        }
        _ => allowed + &least,
    }
}

/// Many seeds: each figure's smallest, middle and largest value.
pub(super) fn seeds(reports: &[Report], look: Look) -> String {
    let mut text = String::new();
    if let Some(first) = reports.first().filter(|first| !first.title.is_empty()) {
        let _ = writeln!(text, "{}\n", bold(&first.title, look));
    }
    let mut table = table(&["figure", "least", "median", "most"], look);
    type Row = (&'static str, fn(&Report) -> Option<f64>, fn(f64) -> String);
    let rows: [Row; 10] = [
        ("GPU phases per hour", |r| Some(r.per_hour), quantity),
        ("GPUs busy", |r| Some(r.busy), percent),
        ("share of the bound", |r| Some(r.share_of_bound), percent),
        ("share of the exact value", |r| r.share_of_exact, percent),
        ("switching", |r| Some(r.switching), percent),
        ("makespan", |r| r.makespan_s, time),
        ("fairness", |r| Some(r.jain), |jain| format!("{jain:.3}")),
        ("preemptions", |r| Some(r.preemptions as f64), |n| format!("{n:.0}")),
        ("promise late", |r| Some(r.promise_late_ms), |ms| format!("{ms:.3} ms")),
        ("violations", |r| Some(r.violations.len() as f64), |n| format!("{n:.0}")),
    ];
    for (name, value, show) in rows {
        let mut values: Vec<f64> = reports.iter().filter_map(value).collect();
        values.sort_by(f64::total_cmp);
        if let (Some(least), Some(most)) = (values.first(), values.last()) {
            let median = values[values.len() / 2];
            table.add_row(cells([name.to_owned(), show(*least), show(median), show(*most)]));
        }
    }
    let _ = writeln!(text, "{}\n{} seeds", trimmed(&table), reports.len());
    for report in reports {
        for violation in &report.violations {
            let line = format!("VIOLATED with --seed {} {violation}", report.seed);
            let _ = writeln!(text, "{}", alarm(&line, look));
        }
    }
    text
}

fn table(header: &[&str], look: Look) -> Table {
    let line = if look.unicode { '─' } else { '-' };
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_style(TableComponent::HeaderLines, line)
        .set_style(TableComponent::MiddleHeaderIntersections, line)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(cells(header.iter().map(|name| (*name).to_owned())));
    table
}

/// The first one to the left, numbers to the right.
fn cells(texts: impl IntoIterator<Item = String>) -> Vec<Cell> {
    let cell = |(column, text): (usize, String)| match column {
        0 => Cell::new(text),
        _ => Cell::new(text).set_alignment(CellAlignment::Right),
    };
    texts.into_iter().enumerate().map(cell).collect()
}

fn bold(text: &str, look: Look) -> String {
    if look.color { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

fn alarm(text: &str, look: Look) -> String {
    if look.color { format!("\x1b[1;31m{text}\x1b[0m") } else { text.to_owned() }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The table's lines, without spaces at their ends.
fn trimmed(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

fn quantity(number: f64) -> String {
    if number < 100.0 { format!("{number:.2}") } else { format!("{number:.0}") }
}

/// A time in the unit that suits it.
fn time(seconds: f64) -> String {
    match seconds {
        0.0 => "0".to_owned(),
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s if s < 1000.0 => format!("{s:.2} s"),
        s => format!("{s:.0} s"),
    }
}

fn bytes(count: u64) -> String {
    match count as f64 {
        b if b < 1e9 => format!("{:.0} MB", b / 1e6),
        b if b < 1e12 => format!("{:.2} GB", b / 1e9),
        b => format!("{:.2} TB", b / 1e12),
    }
}
