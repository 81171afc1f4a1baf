//! A run over groups: each in a process of its own with a time limit, within one limit for all; the
//! results in one file, written after every group.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::assigner::{self, SAID};
use crate::bench::{Depth, NO_TIME};
use crate::catalogue;
use crate::child;
use crate::crowd::Sizes;
use crate::groups::Group;
use crate::host;
use crate::row::{Ended, GroupRun, Line, Results, Row, SCHEMA};
use crate::table::{Position, position};

/// What a run is asked for.
pub(crate) struct Request {
    pub(crate) groups: Vec<Group>,
    pub(crate) depth: Depth,
    pub(crate) simulated: bool,
    pub(crate) prefix: Option<PathBuf>,
    /// For all groups.
    pub(crate) budget: Duration,
    /// Where the results go; None: only the table.
    pub(crate) json: Option<PathBuf>,
    pub(crate) command: String,
}

impl Request {
    /// What the process of a group is told of it.
    fn options(&self, command: &mut Command) {
        if self.depth == Depth::Quick {
            command.arg("--quick");
        }
        if self.simulated {
            command.arg("--sim");
        }
        if let Some(prefix) = &self.prefix {
            command.arg("--prefix").arg(prefix);
        }
    }
}

/// In the environment of a group's processes: which of them it is, by which faults can be told apart.
const ATTEMPT: &str = "ACB_GPU_PROBE_ATTEMPT";
/// With less time nothing is begun.
const LEAST: Duration = Duration::from_secs(3);

/// Measures, and says how it goes on stderr.
pub(crate) fn run(request: &Request) -> anyhow::Result<Results> {
    let begin = Instant::now();
    let work =
        tempfile::Builder::new().prefix("acb-gpu.").tempdir().context("making a private folder")?;
    let folder = work.path().to_owned();
    host::at_termination(move || {
        eprintln!("acb-gpu-probe: ended by a signal; what was measured so far is in the file");
        // Twice, for what was being started meanwhile.
        for _ in 0..2 {
            assigner::end_left_behind(&folder);
        }
        // If it stays, it is in a temporary folder.
        let _ = std::fs::remove_dir_all(&folder);
    })
    .context("preparing for signals")?;
    let mut results = Results {
        schema: SCHEMA,
        simulated: request.simulated,
        quick: request.depth == Depth::Quick,
        date: date(),
        command: request.command.clone(),
        probe: env!("CARGO_PKG_VERSION").into(),
        machine: machine(),
        groups: Vec::new(),
        rows: Vec::new(),
        details: BTreeMap::new(),
    };
    // A file that cannot be written is better known now than after the last group.
    save(request.json.as_deref(), &results)?;
    let sized = request.groups.iter().any(|group| group.is_sized());
    let sizes = sized.then(|| Sizes::find().ok()).flatten();
    if let Some(sizes) = sizes {
        results.machine.insert("link".into(), sizes.told());
    }
    for (at, group) in request.groups.iter().enumerate() {
        let left = request.budget.saturating_sub(begin.elapsed()).as_secs_f64();
        let budget = request.budget.as_secs_f64();
        let share = Group::share_s(&request.groups[at..], left, budget, request.simulated);
        let limit = Duration::from_secs_f64(share);
        if limit < LEAST {
            results.groups.push(GroupRun {
                name: group.name().into(),
                ended: Ended::Skipped,
                seconds: 0.0,
                why: format!("the {} s for all groups were over", request.budget.as_secs()),
            });
        } else {
            eprintln!(
                "[{:3.0} s] {} (at most {} s)",
                begin.elapsed().as_secs_f64(),
                group.name(),
                limit.as_secs()
            );
            measure(*group, request, limit, work.path(), sizes, &mut results)?;
        }
        save(request.json.as_deref(), &results)?;
    }
    eprintln!("[{:3.0} s] done", begin.elapsed().as_secs_f64());
    Ok(results)
}

fn measure(
    group: Group,
    request: &Request,
    limit: Duration,
    work: &Path,
    sizes: Option<Sizes>,
    results: &mut Results,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    let deadline = begin + limit;
    let (mut ended, mut whys) = (Vec::new(), Vec::new());
    let mut worst = Ended::Well;
    // A process that was ended in one part of the group is followed by one for the rest.
    for attempt in 1.. {
        let left = deadline.saturating_duration_since(Instant::now());
        if attempt > 1 && left < LEAST {
            whys.push("then its time was over".to_owned());
            break;
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("group").arg(group.name()).arg("--work").arg(work).env(assigner::MARK, work);
        command.env(ATTEMPT, attempt.to_string());
        command.args(["--limit", &left.as_secs_f64().to_string(), "--ended", &ended.join(",")]);
        if let Some(sizes) = sizes {
            command.arg("--sizes").arg(serde_json::to_string(&sizes)?);
        }
        request.options(&mut command);
        let ran = attend(&mut command, group, deadline, request, results)
            .with_context(|| format!("starting the group {}", group.name()))?;
        host::wait_if_ending();
        assigner::end_left_behind(work);
        ended.extend(ran.ended);
        if ran.how == Ended::Well {
            break;
        }
        worst = ran.how;
        let Some((part, seconds)) = ran.in_part else {
            whys.push(ran.why);
            break;
        };
        let why = match ran.how {
            Ended::Overran => format!("did not end within its {seconds:.0} s"),
            _ => ran.why,
        };
        give_up(group, &part, &why, request.simulated, results);
        whys.push(format!("{part}: {why}"));
        ended.push(part);
    }
    if worst == Ended::Well {
        leave_out(group, request, results);
    }
    let why = whys.join("; ");
    if !why.is_empty() {
        eprintln!("        {}: {why}", group.name());
    }
    results.groups.push(GroupRun {
        name: group.name().into(),
        ended: worst,
        seconds: begin.elapsed().as_secs_f64(),
        why,
    });
    Ok(())
}

/// How one process of a group went.
struct Ran {
    how: Ended,
    /// If it did not end well.
    why: String,
    /// The part in which it was then, and that part's seconds.
    in_part: Option<(String, f64)>,
    /// Parts that it has ended.
    ended: Vec<String>,
}

fn attend(
    command: &mut Command,
    group: Group,
    deadline: Instant,
    request: &Request,
    results: &mut Results,
) -> anyhow::Result<Ran> {
    let until = Cell::new(deadline);
    let mut ran = Ran { how: Ended::Well, why: String::new(), in_part: None, ended: Vec::new() };
    let mut garbled = String::new();
    let ending = child::run_until(command, &until, |line| match serde_json::from_str(line) {
        Ok(Line::Row(row)) => put(results, Row { simulated: request.simulated, ..row }),
        Ok(Line::Machine { key, value }) => {
            results.machine.insert(key, value);
        }
        Ok(Line::Detail { value }) => {
            results.details.insert(group.name().into(), value);
        }
        Ok(Line::Part { name, seconds }) => {
            let most = Instant::now() + Duration::from_secs_f64(seconds.clamp(0.0, 1e6));
            until.set(most.min(deadline));
            ran.in_part = Some((name, seconds));
        }
        Ok(Line::End { name }) => {
            until.set(deadline);
            ran.in_part = None;
            ran.ended.push(name);
        }
        Err(_) => garbled = line.to_owned(),
    })?;
    ran.how = match ending.status {
        None => Ended::Overran,
        Some(status) if status.success() => Ended::Well,
        Some(_) => Ended::Failed,
    };
    if ran.how != Ended::Well {
        ran.why = ending.why();
    }
    if !garbled.is_empty() {
        ran.why = format!("{} (printed '{garbled}')", ran.why);
        ran.how = if ran.how == Ended::Well { Ended::Failed } else { ran.how };
    }
    Ok(ran)
}

/// Adds a row. What a second process of a group gives again does not replace what was measured.
fn put(results: &mut Results, row: Row) {
    let same = |other: &&mut Row| other.group == row.group && other.name == row.name;
    match results.rows.iter_mut().find(same) {
        None => results.rows.push(row),
        Some(before) if row.is_measured() && !before.is_measured() => *before = row,
        Some(_) => {}
    }
}

/// A part that was lost: its cells say why.
fn give_up(group: Group, part: &str, why: &str, simulated: bool, results: &mut Results) {
    let Some((matrix, line)) = part.split_once('@') else { return };
    // A part with the group's name stands for all its matrices, where none of them has that name.
    let all = matrix == group.name() && !catalogue::matrices(group.name()).contains(&matrix);
    for entry in catalogue::ROWS.iter().filter(|entry| entry.group == group.name()) {
        let of = entry.name.split_once('.').map(|(matrix, _)| matrix);
        if of.is_none_or(|of| of != matrix && !all) {
            continue;
        }
        let Some(line) = entry.lines().into_iter().find(|own| *own == line) else { continue };
        let known = |row: &Row| row.group == entry.group && entry.has(Some(line), &row.name);
        if !results.rows.iter().any(known) {
            let row = Row::missing(entry.group, &format!("{}@{line}", entry.name), "", why);
            results.rows.push(Row { simulated, ..row });
        }
    }
}

/// Chunk sizes that a group which has ended well gave no row for: they say why.
fn leave_out(group: Group, request: &Request, results: &mut Results) {
    let why = match request.depth {
        Depth::Quick => "too large for --quick",
        Depth::Full => "too large for the memory of this GPU, or of the host",
    };
    let own = || catalogue::ROWS.iter().filter(|entry| entry.group == group.name());
    for matrix in catalogue::matrices(group.name()) {
        let columns = || own().filter(|entry| entry.name.split('.').next() == Some(matrix));
        for line in columns().flat_map(catalogue::Entry::chunks).collect::<BTreeSet<_>>() {
            let given = |entry: &catalogue::Entry| {
                results
                    .rows
                    .iter()
                    .any(|r| r.group == entry.group && entry.has(Some(line), &r.name))
            };
            if columns().any(given) {
                continue;
            }
            for entry in columns() {
                let row = Row::missing(entry.group, &format!("{}@{line}", entry.name), "", why);
                results.rows.push(Row { simulated: request.simulated, ..row });
            }
        }
    }
}

/// Writes the file anew and puts it in place by a rename.
fn save(json: Option<&Path>, results: &Results) -> anyhow::Result<()> {
    let Some(path) = json else { return Ok(()) };
    let text = serde_json::to_string_pretty(results).context("writing the results as JSON")?;
    let new = path.with_extension("new");
    std::fs::write(&new, text + "\n").with_context(|| format!("writing {}", new.display()))?;
    std::fs::rename(&new, path).with_context(|| format!("writing {}", path.display()))
}

/// What is known of the host.
fn machine() -> BTreeMap<String, String> {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    let mut machine = BTreeMap::new();
    let mut add = |key: &str, value: String| machine.insert(key.to_owned(), value);
    add("cores", host::cores().to_string());
    add(
        "host_memory_available_gib",
        format!("{:.1}", host::available_memory() as f64 / (1u64 << 30) as f64),
    );
    if let Ok(kernel) = read("/proc/sys/kernel/osrelease") {
        add("kernel", kernel);
    }
    if let Ok(info) = read("/proc/cpuinfo")
        && let Some(model) = info.lines().find_map(|line| line.strip_prefix("model name"))
    {
        add("cpu", model.trim_start_matches([' ', '\t', ':']).to_owned());
    }
    if let Ok(release) = read("/etc/os-release")
        && let Some(name) = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))
    {
        add("system", name.trim_matches('"').to_owned());
    }
    machine
}

/// Today, UTC, `2026-11-21 01:02`.
fn date() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = since.map_or(0, |elapsed| elapsed.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60)
}

/// Year, month and day of a day since 1970 (Gregorian).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let of_era = z % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Several runs on one machine as one: groups of later runs replace those of earlier ones.
pub(crate) fn merge(runs: Vec<Results>) -> anyhow::Result<Option<Results>> {
    let mut runs = runs.into_iter();
    let Some(mut all) = runs.next() else { return Ok(None) };
    for run in runs {
        for key in ["gpu", "driver"] {
            if let (Some(one), Some(other)) = (all.machine.get(key), run.machine.get(key)) {
                anyhow::ensure!(
                    one == other,
                    "results of different machines: {key} is {one}, and {other}"
                );
            }
        }
        anyhow::ensure!(
            all.simulated == run.simulated,
            "simulated and measured results do not mix"
        );
        let again: Vec<String> = run.groups.iter().map(|group| group.name.clone()).collect();
        all.rows.retain(|row| !again.contains(&row.group));
        all.groups.retain(|group| !again.contains(&group.name));
        all.rows.extend(run.rows);
        all.groups.extend(run.groups);
        all.details.extend(run.details);
        all.machine.extend(run.machine);
        all.quick |= run.quick;
        all.date = format!("{}, {}", all.date, run.date);
        all.command = format!("{}; {}", all.command, run.command);
    }
    Ok(Some(all))
}

/// What failed: a check of what was measured, programs under the interposer, a group that should have ended well, or what there was no
/// time for.
pub(crate) fn wrong(results: &Results) -> Vec<String> {
    let unlucky = results
        .groups
        .iter()
        .filter(|group| group.ended != Ended::Well)
        .map(|group| format!("group {}: {}", group.name, group.why));
    let is_wrong = |row: &&Row| row.verified == Some(false);
    let wrong = results.rows.iter().filter(is_wrong);
    let late = results.rows.iter().filter(|row| !row.is_measured() && row.why.ends_with(NO_TIME));
    let failed = results.rows.iter().filter(|row| !row.is_measured() && row.why.contains(SAID));
    let mut failed: Vec<(String, &str)> =
        failed.map(|row| (line_of(&row.group, &row.name), row.why.as_str())).collect();
    failed.dedup();
    let late: BTreeSet<String> = late.map(|row| line_of(&row.group, &row.name)).collect();
    unlucky
        .chain(late.into_iter().map(|line| format!("{line}: {NO_TIME}")))
        .chain(failed.into_iter().map(|(line, why)| format!("{line}: {why}")))
        .chain(wrong.map(|row| format!("{} {}: wrong. {}", row.group, row.name, row.note)))
        .collect()
}

/// What a run is made for and has no value, each with the reason: rows of the groups that were asked for, a line of a matrix once.
pub(crate) fn unanswered(results: &Results) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for entry in catalogue::ROWS.iter().filter(|entry| catalogue::is_asked(entry)) {
        let Some(run) = results.groups.iter().find(|run| run.name == entry.group) else { continue };
        for line in entry.cells() {
            let rows = || results.rows.iter().filter(|row| row.group == entry.group);
            let mut own = rows().filter(|row| entry.has(line, &row.name));
            if own.clone().any(Row::is_measured) {
                continue;
            }
            let why = own.next().map_or(run.why.as_str(), |row| row.why.as_str());
            let why = if why.is_empty() { "it was not given" } else { why };
            let name = match line {
                None => entry.name.to_owned(),
                Some(line) => line_of(entry.group, &format!("{}@{line}", entry.name)),
            };
            let told = (name, why.to_owned());
            if !found.contains(&told) {
                found.push(told);
            }
        }
    }
    found
}

/// A row's matrix and line, or its name.
fn line_of(group: &str, row: &str) -> String {
    match position(row) {
        Position::Plain(name) => format!("{group} {name}"),
        Position::Cell { matrix, line, .. } => format!("{matrix}@{line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(gpu: &str, group: &str, value: f64) -> Results {
        Results {
            schema: SCHEMA,
            simulated: false,
            quick: false,
            date: "d".into(),
            command: "c".into(),
            probe: "0".into(),
            machine: BTreeMap::from([("gpu".into(), gpu.into())]),
            groups: vec![GroupRun {
                name: group.into(),
                ended: Ended::Well,
                seconds: 1.0,
                why: String::new(),
            }],
            rows: vec![Row::value(group, "x", "us", value)],
            details: BTreeMap::new(),
        }
    }

    #[test]
    fn later_runs_replace_their_groups() {
        let runs =
            vec![results("a", "hash", 1.0), results("a", "link", 2.0), results("a", "hash", 3.0)];
        let all = merge(runs).unwrap().unwrap();
        let mut values: Vec<_> =
            all.rows.iter().map(|row| (row.group.as_str(), row.value)).collect();
        values.sort_by_key(|(group, _)| *group);
        assert_eq!(values, [("hash", Some(3.0)), ("link", Some(2.0))]);
        assert_eq!(all.groups.len(), 2);
    }

    #[test]
    fn what_fails_under_the_interposer_makes_the_run_fail_and_what_cannot_be_does_not() {
        let mut all = results("a", "swap", 1.0);
        let missing = |name: &str, why: &str| Row::missing("swap", name, "us", why);
        all.rows.push(missing("swap.first_gb_per_s@8MiB", "too large for --quick"));
        assert!(wrong(&all).is_empty());
        let why = format!("cuMemAlloc_v2 failed{SAID}no memory");
        all.rows.push(missing("swap.first_gb_per_s@2MiB", &why));
        all.rows.push(missing("swap.moved_gib@2MiB", &why));
        assert_eq!(wrong(&all), [format!("swap@2MiB: {why}")]);
    }

    #[test]
    fn runs_of_different_gpus_do_not_mix() {
        assert!(merge(vec![results("a", "hash", 1.0), results("b", "link", 2.0)]).is_err());
        assert!(merge(vec![]).unwrap().is_none());
    }

    #[test]
    fn what_has_no_value_is_named_with_its_reason() {
        let mut run = results("a", "swap", 1.0);
        run.rows = vec![
            Row::value("swap", "swap.switch_gb_per_s@2MiB-4GiB", "GB/s", 20.0),
            Row::missing("swap", "swap.switch_gb_per_s@8MiB", "GB/s", NO_TIME),
            Row::missing("swap", "swap.share_of_copy@8MiB", "ratio", NO_TIME),
        ];
        let told = unanswered(&run);
        assert!(told.contains(&("swap@8MiB".into(), NO_TIME.into())), "{told:?}");
        assert!(told.contains(&("swap@1GiB".into(), "it was not given".into())), "{told:?}");
        assert!(!told.iter().any(|(name, _)| name.starts_with("swap.switch")), "{told:?}");
        // Of groups that nobody asked for nothing is missing.
        assert!(told.iter().all(|(name, _)| name.starts_with("swap")), "{told:?}");
        assert_eq!(wrong(&run), [format!("swap@8MiB: {NO_TIME}")]);
    }

    fn request(depth: Depth) -> Request {
        Request {
            groups: vec![],
            depth,
            simulated: true,
            prefix: None,
            budget: Duration::from_secs(1),
            json: None,
            command: String::new(),
        }
    }

    fn missing(results: &Results) -> Vec<(&str, &str)> {
        let missing = results.rows.iter().filter(|row| !row.is_measured());
        missing.map(|row| (row.name.as_str(), row.why.as_str())).collect()
    }

    #[test]
    fn a_line_that_is_lost_takes_no_other_table_with_it() {
        let mut run = results("a", "swap", 1.0);
        give_up(Group::Swap, "swap@64MiB", "late", false, &mut run);
        assert!(missing(&run).contains(&("swap.data@64MiB", "late")));
        assert!(!missing(&run).iter().any(|(name, _)| name.starts_with("swap_most")), "{run:?}");
        // Where no table has the group's name the part stands for all.
        give_up(Group::Memory, "memory@8MiB", "late", false, &mut run);
        for name in ["mapped_idle.map_us@8MiB", "mapped_busy.map_us@8MiB", "plain.free_us@8MiB"] {
            assert!(missing(&run).contains(&(name, "late")), "{name}");
        }
    }

    #[test]
    fn sizes_that_were_left_out_say_so() {
        let mut run = results("a", "hash", 1.0);
        run.rows = vec![Row::value("hash", "hash.gb_per_s@2MiB", "GB/s", 1.0)];
        leave_out(Group::Hash, &request(Depth::Quick), &mut run);
        assert_eq!(missing(&run).len(), 2 * 5);
        assert!(missing(&run).contains(&("hash.gb_per_s@1GiB", "too large for --quick")));
        // What has no chunks has nothing to leave out.
        leave_out(Group::Contract, &request(Depth::Full), &mut run);
        assert_eq!(missing(&run).len(), 2 * 5);
    }

    #[test]
    fn days_are_dates() {
        let cases = [
            (0, (1970, 1, 1)),
            (11_016, (2000, 2, 29)),
            (20_778, (2026, 11, 21)),
            (19_722, (2023, 12, 31)),
        ];
        for (day, date) in cases {
            assert_eq!(civil(day), date);
        }
    }
}
