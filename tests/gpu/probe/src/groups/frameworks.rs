//! Group `frameworks`: each installed framework's small program alone, under the interposer, and there with a neighbour that has
//! its memory swapped: the same results to the bit, the interposer in place, and which driver functions it was seen to use.
//!
//! The programs are in tests/gpu/frameworks and travel inside this binary.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use serde_json::json;

use crate::assigner::Assigner;
use crate::bench::{Bench, GIB, MIB, about};
use crate::child;
use crate::crowd::{Crowd, Program};
use crate::host;
use crate::moved::{self, gib};
use crate::parts::allowance;
use crate::row::Row;

const SCRIPTS: [(&str, &str); 7] = [
    ("evidence.py", include_str!("../../../frameworks/evidence.py")),
    ("pytorch.py", include_str!("../../../frameworks/pytorch.py")),
    ("jax_program.py", include_str!("../../../frameworks/jax_program.py")),
    ("cupy_program.py", include_str!("../../../frameworks/cupy_program.py")),
    ("triton_program.py", include_str!("../../../frameworks/triton_program.py")),
    ("numba_program.py", include_str!("../../../frameworks/numba_program.py")),
    ("alternating.py", include_str!("../../../frameworks/alternating.py")),
];

/// Name of the row, module that must be there, script, its argument. The most used come first.
pub(crate) const PROGRAMS: [(&str, &str, &str, Option<&str>); 8] = [
    ("pytorch", "torch", "pytorch.py", Some("default")),
    ("pytorch-expandable-segments", "torch", "pytorch.py", Some("expandable")),
    ("pytorch-cuda-graphs", "torch", "pytorch.py", Some("graphs")),
    ("jax", "jax", "jax_program.py", None),
    ("cupy", "cupy", "cupy_program.py", None),
    ("triton", "triton", "triton_program.py", None),
    ("numba", "numba", "numba_program.py", None),
    ("pytorch-compile", "torch", "pytorch.py", Some("compile")),
];

/// Rows of the run in which memory is swapped.
const SWAPPED: [(&str, &str); 3] =
    [("swapped_results", "text"), ("swapped_s", "s"), ("swapped_out_gib", "GiB")];
/// What a program is expected to take, in seconds: most of it goes into importing.
const EXPECTED: f64 = 10.0;
/// Of the group's time, the part that is kept for the runs with forced swaps.
const FOR_SWAPS: f64 = 0.4;
/// Memory that a program and its neighbour fight for.
const REST: u64 = 8 * GIB;
/// What a program may have of it.
const MEMORY: u64 = 6 * GIB;

const COLUMNS: [(&str, &str); 6] = [
    ("results", "text"),
    ("interposer", "text"),
    ("entry_points", "count"),
    ("alone_s", "s"),
    ("interposed_s", "s"),
    ("version", "text"),
];

/// What a program prints.
#[derive(Deserialize)]
struct Evidence {
    version: String,
    digest: String,
    libraries: Vec<String>,
    seconds: f64,
}

/// The Python that has the frameworks.
pub(crate) struct Python {
    pub(crate) path: PathBuf,
    scripts: PathBuf,
}

impl Python {
    /// `ACB_PYTHON`, or python3; the scripts are laid out for it.
    pub(crate) fn find(bench: &Bench) -> anyhow::Result<Self> {
        let path =
            PathBuf::from(std::env::var_os("ACB_PYTHON").unwrap_or_else(|| "python3".into()));
        let scripts = bench.work.join("frameworks");
        std::fs::create_dir_all(&scripts)?;
        for (name, text) in SCRIPTS {
            std::fs::write(scripts.join(name), text).with_context(|| format!("writing {name}"))?;
        }
        let python = Self { path, scripts };
        anyhow::ensure!(
            python.succeeds("pass"),
            "there is no {} (set ACB_PYTHON to the Python that has the frameworks)",
            python.path.display()
        );
        Ok(python)
    }

    pub(crate) fn script(&self, name: &str) -> PathBuf {
        self.scripts.join(name)
    }

    /// Whether a module is installed, without importing it.
    pub(crate) fn has(&self, module: &str) -> bool {
        self.succeeds(&format!(
            "import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)"
        ))
    }

    fn succeeds(&self, code: &str) -> bool {
        let mut command = Command::new(&self.path);
        command.args(["-c", code]);
        child::run(&mut command, Duration::from_secs(20), |_| {})
            .is_ok_and(|ending| ending.is_success())
    }
}

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let refuse_all = |why: &str| {
        for (name, ..) in PROGRAMS {
            refuse(bench, name, why);
        }
    };
    if bench.simulated {
        refuse_all("the software GPU does not run a framework's kernels");
        return Ok(());
    }
    let python = match Python::find(bench) {
        Ok(python) => python,
        Err(error) => {
            refuse_all(&format!("{error:#}"));
            return Ok(());
        }
    };
    let assigner = Assigner::start(bench).map_err(|error| format!("{error:#}"));
    let next = Mutex::new(PROGRAMS.iter().enumerate());
    let all = bench.seconds_left();
    let details = Mutex::new(serde_json::Map::new());
    // Digests of the runs alone.
    let digests = Mutex::new(BTreeMap::new());
    // Importing takes most of the time and one core: several at a time.
    let workers = (host::cores() / 4).clamp(1, 3);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let program = next.lock().ok().and_then(|mut next| next.next());
                    let Some((at, (name, module, script, argument))) = program else { return };
                    if !python.has(module) {
                        refuse(bench, name, &format!("{module} is not installed"));
                        continue;
                    }
                    let runner = Runner {
                        bench,
                        python: &python,
                        script: python.script(script),
                        argument: *argument,
                        limit: || {
                            let left = bench.seconds_left() - FOR_SWAPS * all;
                            // Each runs twice.
                            allowance(left, 2 * (PROGRAMS.len() - at) - 1, workers, EXPECTED)
                        },
                    };
                    let (detail, digest) = runner.compare(name, assigner.as_ref());
                    if let Some((mut digests, digest)) = digests.lock().ok().zip(digest) {
                        digests.insert(*name, digest);
                    }
                    if let Ok(mut details) = details.lock() {
                        details.insert((*name).to_owned(), detail);
                    }
                }
            });
        }
    });
    bench.detail(serde_json::Value::Object(details.into_inner().unwrap_or_default()));
    drop(assigner);
    swap_all(bench, &python, &digests.into_inner().unwrap_or_default());
    Ok(())
}

fn place(column: &str, program: &str) -> String {
    format!("frameworks.{column}@{program}")
}

fn refuse(bench: &Bench, program: &str, why: &str) {
    for (column, unit) in COLUMNS.into_iter().chain(SWAPPED) {
        bench.missing(&place(column, program), unit, why);
    }
}

/// Every program that ran alone once more, one after the other, with a neighbour that wants the memory.
fn swap_all(bench: &Bench, python: &Python, digests: &BTreeMap<&str, String>) {
    let refuse = |name: &str, why: &str| {
        for (column, unit) in SWAPPED {
            bench.missing(&place(column, name), unit, why);
        }
    };
    let crowd = bench.sizes().and_then(|sizes| Crowd::gather(bench, sizes, REST, 2, 64 * MIB));
    for (at, (name, _, script, argument)) in PROGRAMS.into_iter().enumerate() {
        let Some(digest) = digests.get(name) else { continue };
        let limit = || allowance(bench.seconds_left(), PROGRAMS.len() - at - 1, 1, EXPECTED);
        let runner = Runner { bench, python, script: python.script(script), argument, limit };
        let swapped = match &crowd {
            Ok(crowd) => runner.swap(name, crowd, digest),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        if let Err(error) = swapped {
            refuse(name, &format!("with forced swaps: {error:#}"));
        }
    }
}

/// Takes turns until it is told to stop.
fn disturb(mut neighbour: Program, stop: &AtomicBool) -> anyhow::Result<Program> {
    while !stop.load(Ordering::Relaxed) {
        neighbour.touch()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(neighbour)
}

/// What a run with forced swaps has shown: nothing, if nothing was swapped.
fn verdict(same: bool, neighbours: bool, out: u64) -> (&'static str, bool) {
    match (same, neighbours) {
        (false, _) => ("DIFFERENT", false),
        (true, false) => ("the neighbour's data is WRONG", false),
        (true, true) if out == 0 => ("same, but NOTHING WAS SWAPPED", false),
        (true, true) => ("same to the bit", true),
    }
}

/// One program, both ways.
struct Runner<'a, L: Fn() -> f64> {
    bench: &'a Bench,
    python: &'a Python,
    script: PathBuf,
    argument: Option<&'static str>,
    /// Seconds that a run may take from now on.
    limit: L,
}

impl<L: Fn() -> f64> Runner<'_, L> {
    /// Beside a neighbour that needs nearly all of the memory again and again.
    fn swap(&self, name: &str, crowd: &Crowd, digest: &str) -> anyhow::Result<()> {
        let bench = self.bench;
        bench.time_for(15.0)?;
        let neighbour = crowd.partner(crowd.each, 3)?;
        let pid = neighbour.pid();
        let stop = AtomicBool::new(false);
        let ((ran, right), moved) = moved::while_watched(&crowd.assigner, || {
            std::thread::scope(|scope| {
                let disturbed = scope.spawn(|| disturb(neighbour, &stop));
                let bytes = MEMORY.min(crowd.each);
                let ran = self.evidence(crowd.assigner.run_within(bytes, &self.python.path));
                stop.store(true, Ordering::Relaxed);
                let neighbour =
                    disturbed.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked"));
                (ran, neighbour.and_then(|mut neighbour| neighbour.is_right()))
            })
        });
        let out = moved.but(pid);
        // The size that they fought for is part of the line's name.
        let name = &format!("{name}-{}", about(crowd.rest));
        let ran = match ran {
            Ok(ran) => ran,
            Err(error) => {
                let why = format!("with forced swaps: {error:#}");
                let row = Row::missing(bench.group, &place("swapped_results", name), "text", &why);
                bench.row(row.verified(false));
                for (column, unit) in SWAPPED.into_iter().skip(1) {
                    bench.missing(&place(column, name), unit, &why);
                }
                return Ok(());
            }
        };
        let same = ran.digest == digest;
        let neighbours = right.as_ref().is_ok_and(|right| *right);
        let (word, passed) = verdict(same, neighbours, out);
        let row = Row::text(bench.group, &place("swapped_results", name), word);
        let fought = format!("for {} with a neighbour that has 95 % of it", about(crowd.rest));
        bench.row(row.verified(passed).note(fought));
        bench.value(&place("swapped_s", name), "s", ran.seconds);
        let row = Row::value(bench.group, &place("swapped_out_gib", name), "GiB", gib(out));
        let note = "moved out of the program's own memory, as status said last";
        bench.row(row.verified(out > 0).note(note));
        Ok(())
    }

    fn compare(
        &self,
        name: &str,
        assigner: Result<&Assigner, &String>,
    ) -> (serde_json::Value, Option<String>) {
        let bench = self.bench;
        let alone = match self.evidence(Command::new(&self.python.path)) {
            Ok(alone) => alone,
            Err(error) => {
                refuse(bench, name, &format!("alone, without the interposer: {error:#}"));
                return (json!({ "alone": format!("{error:#}") }), None);
            }
        };
        bench.text(&place("version", name), &alone.version);
        bench.value(&place("alone_s", name), "s", alone.seconds);
        let log = bench.work.join(format!("interposer-{name}.log"));
        let interposed = assigner.map_err(|why| anyhow::anyhow!("{why}")).and_then(|assigner| {
            let mut command = assigner.run(&self.python.path);
            command.env("ACB_LOG", "debug").env("ACB_LOG_FILE", &log);
            self.evidence(command)
        });
        let group = bench.group;
        let interposed = match interposed {
            Ok(interposed) => interposed,
            Err(error) => {
                let row =
                    Row::missing(group, &place("results", name), "text", format!("{error:#}"));
                bench.row(if assigner.is_ok() { row.verified(false) } else { row });
                for (column, unit) in
                    [("interposer", "text"), ("entry_points", "count"), ("interposed_s", "s")]
                {
                    bench.missing(
                        &place(column, name),
                        unit,
                        format!("under the interposer: {error:#}"),
                    );
                }
                let error = format!("{error:#}");
                let detail = json!({ "alone": alone.libraries, "interposed": error });
                return (detail, Some(alone.digest));
            }
        };
        let same = alone.digest == interposed.digest;
        let word = if same { "same to the bit" } else { "DIFFERENT" };
        bench.row(Row::text(group, &place("results", name), word).verified(same));
        let shim = bench.prefix.as_ref().map(|prefix| prefix.join("lib/acb"));
        let verdict = in_place(&interposed.libraries, shim.as_deref());
        bench.row(
            Row::text(group, &place("interposer", name), verdict.0)
                .verified(verdict.1)
                .note(interposed.libraries.join(" ")),
        );
        bench.value(&place("interposed_s", name), "s", interposed.seconds);
        let seen = entry_points(&std::fs::read_to_string(&log).unwrap_or_default());
        if seen.is_empty() {
            bench.missing(
                &place("entry_points", name),
                "count",
                "the interposer's debug log has no line 'first use of …'",
            );
        } else {
            bench.value(&place("entry_points", name), "count", seen.len() as f64);
        }
        let detail = json!({
            "alone": alone.libraries, "interposed": interposed.libraries, "entry_points": seen
        });
        (detail, Some(alone.digest))
    }

    fn evidence(&self, mut command: Command) -> anyhow::Result<Evidence> {
        command.arg(&self.script);
        command.args(self.argument);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let limit = (self.limit)().clamp(1.0, 75.0);
        let mut printed = String::new();
        let ending = child::run(&mut command, Duration::from_secs_f64(limit), |line| {
            if line.starts_with('{') {
                printed = line.to_owned();
            }
        })?;
        anyhow::ensure!(ending.is_success(), "{}", ending.why());
        serde_json::from_str(&printed).with_context(|| format!("it printed '{printed}'"))
    }
}

/// Whether the interposer is mapped, and before the real driver.
fn in_place(libraries: &[String], shim: Option<&Path>) -> (&'static str, bool) {
    let Some(shim) = shim else { return ("no --prefix", false) };
    let shim = std::fs::canonicalize(shim).unwrap_or_else(|_| shim.to_owned());
    let is_shim = |path: &&String| Path::new(path).starts_with(&shim);
    match (
        libraries.iter().any(|path| is_shim(&path)),
        libraries.iter().any(|path| !is_shim(&path)),
    ) {
        (true, true) => ("in place", true),
        (true, false) => ("in place, no driver behind it", false),
        (false, _) => ("NOT IN PLACE", false),
    }
}

/// Driver functions that the interposer's log says were used, each in a line `… first use of SYMBOL`.
fn entry_points(log: &str) -> BTreeSet<String> {
    log.lines()
        .filter_map(|line| line.split_once("first use of "))
        .filter_map(|(_, rest)| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next())
        .filter(|symbol| acb_cuda_abi::find(symbol).is_some())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interposer_must_be_mapped_with_a_driver_behind_it() {
        let shim = Some(Path::new("/opt/acb/lib/acb"));
        let paths = |list: &[&str]| list.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
        let (ours, real) = ("/opt/acb/lib/acb/libcuda.so.1", "/usr/lib/libcuda.so.580");
        assert!(in_place(&paths(&[ours, real]), shim).1);
        assert!(!in_place(&paths(&[ours]), shim).1);
        assert!(!in_place(&paths(&[real]), shim).1);
        assert!(!in_place(&paths(&[]), shim).1);
        assert!(!in_place(&paths(&[ours, real]), None).1);
    }

    #[test]
    fn entry_points_are_found_in_a_log() {
        let log = "acb[1]: first use of cuMemAlloc_v2\nacb[1]: cuMemFree is not in the driver\n\
            acb[1]: first use of cuLaunchKernel, at once\nacb[1]: first use of cuBlasThing\n";
        let seen: Vec<String> = entry_points(log).into_iter().collect();
        assert_eq!(seen, ["cuLaunchKernel", "cuMemAlloc_v2"]);
    }

    #[test]
    fn without_a_swap_the_same_result_shows_nothing() {
        assert!(verdict(true, true, 1).1);
        assert!(!verdict(true, true, 0).1);
        assert!(!verdict(false, true, 1).1 && !verdict(true, false, 1).1);
    }

    #[test]
    fn every_program_has_its_script() {
        for (name, _, script, _) in PROGRAMS {
            assert!(SCRIPTS.iter().any(|(file, _)| *file == script), "{name}");
        }
    }
}
