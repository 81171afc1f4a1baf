//! Group `paths`: every way in which programs load the driver, with and without the audit library; whether NVML agrees with
//! cuMemGetInfo inside a client; and what the assigner measures a client's context with. All with the programs that are carried along.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use super::frameworks::Python;
use crate::assigner::Assigner;
use crate::bench::{Bench, MIB};
use crate::child;
use crate::crowd::Program;
use crate::driver::device;
use crate::parts::Parts;
use crate::row::Row;

const PROGRAMS: &str = "libexec/acb-tests";
/// What one program may take, context and all.
const LIMIT: Duration = Duration::from_secs(30);

/// The row with the context as the assigner measures it.
const CONTEXT: &str = "context_by_assigner_mib";

/// How a way leads to the driver, which decides what is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lead {
    /// By a name: the interposer answers.
    Name,
    /// By a path: the interposer answers where the audit library is; elsewhere the program is told.
    Path,
    /// By a path into a namespace of its own: the dynamic linker asks nobody, and the program is told.
    HiddenPath,
}

/// Name of the row, program with its arguments (`DRIVER` is the driver's path), how it leads there.
pub(crate) const WAYS: [(&str, &[&str], Lead); 12] = [
    ("linked", &["loads_linked"], Lead::Name),
    ("rpath", &["loads_rpath"], Lead::Name),
    ("runpath", &["loads_runpath"], Lead::Name),
    ("soname", &["loads", "soname"], Lead::Name),
    ("name", &["loads", "name"], Lead::Name),
    ("deepbind", &["loads", "deepbind"], Lead::Name),
    ("namespace-soname", &["loads", "namespace", "libcuda.so.1"], Lead::Name),
    ("namespace-name", &["loads", "namespace", "libcuda.so"], Lead::Name),
    ("static-runtime", &["loads", "runtime"], Lead::Name),
    ("ctypes", &["loads_ctypes.py"], Lead::Name),
    ("path", &["loads", "path", "DRIVER"], Lead::Path),
    ("namespace-path", &["loads", "namespace", "DRIVER"], Lead::HiddenPath),
];

/// Programs that ask NVML and the driver.
pub(crate) const ASKERS: [(&str, &str); 2] =
    [("linked", "nvml_linked"), ("ctypes", "nvml_ctypes.py")];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audit {
    Off,
    On,
}

impl Audit {
    fn column(self) -> &'static str {
        match self {
            Audit::Off => "without_audit",
            Audit::On => "with_audit",
        }
    }
}

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let assigner = Assigner::start(bench).map_err(|error| format!("{error:#}"));
    let names = WAYS.iter().map(|(way, ..)| format!("load_paths@{way}"));
    let names = names.chain(ASKERS.iter().map(|(asker, _)| format!("nvml@{asker}")));
    let parts = Parts::new(bench, names.chain([CONTEXT.to_owned()]).map(|name| (name, 1.0)));
    for (way, words, lead) in WAYS {
        let measured = parts.run(&format!("load_paths@{way}"), |_| {
            [Audit::Off, Audit::On].into_iter().for_each(|audit| {
                let name = format!("load_paths.{}@{way}", audit.column());
                let asked = assigner.as_ref().map_err(|why| anyhow::anyhow!("{why}"));
                match asked.and_then(|assigner| load(bench, assigner, words, audit)) {
                    Ok(answer) => {
                        let expected = expected(lead, audit);
                        let row = Row::text(bench.group, &name, answer.word());
                        let note = format!("answered by {}", answer.loaded.library);
                        bench.row(row.verified(answer == expected).note(note));
                    }
                    Err(error) => bench.missing(&name, "text", format!("{error:#}")),
                }
            });
            Ok(())
        });
        if let Err(error) = measured {
            for audit in [Audit::Off, Audit::On] {
                let name = format!("load_paths.{}@{way}", audit.column());
                bench.missing(&name, "text", format!("{error:#}"));
            }
        }
    }
    for (asker, program) in ASKERS {
        let name = format!("nvml.agrees@{asker}");
        let measured = parts.run(&format!("nvml@{asker}"), |_| {
            let asked = assigner.as_ref().map_err(|why| anyhow::anyhow!("{why}"));
            let (agrees, note) = asked.and_then(|assigner| agreement(bench, assigner, program))?;
            let word = if agrees { "agrees" } else { "DIFFERS" };
            bench.row(Row::text(bench.group, &name, word).verified(agrees).note(note));
            Ok(())
        });
        if let Err(error) = measured {
            bench.missing(&name, "text", format!("{error:#}"));
        }
    }
    let measured = parts.run(CONTEXT, |_| {
        let asked = assigner.as_ref().map_err(|why| anyhow::anyhow!("{why}"));
        let (bytes, note) = asked.and_then(|assigner| context(bench, assigner))?;
        bench.row(Row::value(bench.group, CONTEXT, "MiB", mib(bytes)).note(note));
        Ok(())
    });
    if let Err(error) = measured {
        bench.missing(CONTEXT, "MiB", format!("{error:#}"));
    }
    Ok(())
}

/// The line that a program prints about the library that answered it.
#[derive(Debug, Deserialize)]
struct Loaded {
    library: String,
    interposed: bool,
    result: String,
}

/// What a program got, and what the interposer said of it.
#[derive(Debug)]
struct Answer {
    loaded: Loaded,
    /// Whether the program was told that it went past the interposer.
    told: bool,
}

/// What should be: who answers, and whether the program is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expected {
    interposed: bool,
}

fn expected(lead: Lead, audit: Audit) -> Expected {
    let interposed = match lead {
        Lead::Name => true,
        Lead::Path => audit == Audit::On,
        Lead::HiddenPath => false,
    };
    Expected { interposed }
}

impl Answer {
    fn word(&self) -> String {
        match (self.loaded.result.as_str(), self.loaded.interposed, self.told) {
            ("ok", true, false) => "interposed".into(),
            ("ok", false, true) => "past it, and told".into(),
            ("ok", interposed, told) => format!("WRONG: interposed {interposed}, told {told}"),
            (result, ..) => format!("FAILED: {result}"),
        }
    }
}

impl PartialEq<Expected> for Answer {
    fn eq(&self, expected: &Expected) -> bool {
        // Whoever goes past it is told, and nobody else is.
        self.loaded.result == "ok"
            && self.loaded.interposed == expected.interposed
            && self.told != expected.interposed
    }
}

fn load(
    bench: &Bench,
    assigner: &Assigner,
    words: &[&str],
    audit: Audit,
) -> anyhow::Result<Answer> {
    let (driver, log) = (device::driver()?.path(), bench.work.join("load-path.log"));
    let driver = driver.context("where the driver is is not known")?.display().to_string();
    let mut command = match audit {
        Audit::Off => carried(bench, words[0], |program| assigner.run(program))?,
        Audit::On => carried(bench, words[0], |program| assigner.run_audited(program))?,
    };
    command.args(words[1..].iter().map(|word| if *word == "DRIVER" { &driver } else { *word }));
    // If there is none yet, there is nothing to remove.
    let _ = std::fs::remove_file(&log);
    command.env("ACB_LOG", "debug").env("ACB_LOG_FILE", &log);
    let loaded = answer(&mut command)?;
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    let told = said.contains("has opened the CUDA driver") && said.contains("by its path");
    Ok(Answer { loaded, told })
}

/// A program that is carried along, alone or for Python.
fn carried(bench: &Bench, name: &str, run: impl Fn(PathBuf) -> Command) -> anyhow::Result<Command> {
    let file = format!("{PROGRAMS}/{name}");
    let file =
        bench.installed(&file).with_context(|| format!("there is no {file} under --prefix"))?;
    if !name.ends_with(".py") {
        return Ok(run(file));
    }
    let mut command = run(Python::find(bench)?.path);
    command.arg(file).env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(command)
}

/// The JSON that a program prints. One that fails says what failed in its last line.
fn answer<T: serde::de::DeserializeOwned>(command: &mut Command) -> anyhow::Result<T> {
    let mut printed = String::new();
    let ending = child::run(command, LIMIT, |line| printed = line.to_owned())?;
    serde_json::from_str(&printed)
        .with_context(|| format!("{} (printed '{printed}')", ending.why()))
}

/// What `nvml_linked` and `nvml_ctypes.py` print.
#[derive(Deserialize)]
struct Memory {
    own: String,
    cuda: [u64; 2],
    after: Vec<Told>,
}

#[derive(Deserialize)]
struct Told {
    uuid: String,
    v1: [u64; 3],
    v2: Option<[u64; 3]>,
}

fn agreement(bench: &Bench, assigner: &Assigner, program: &str) -> anyhow::Result<(bool, String)> {
    let memory: Memory = answer(&mut carried(bench, program, |program| assigner.run(program))?)?;
    let own = memory.after.iter().find(|gpu| gpu.uuid == memory.own);
    let own = own.with_context(|| format!("NVML knows no {}", memory.own))?;
    let [free, total] = memory.cuda;
    let right = [free, total, total - free];
    let agrees = own.v1 == right && own.v2.is_none_or(|v2| v2 == right);
    let [nvml_free, nvml_total, _] = own.v1.map(mib);
    let note = format!(
        "free and total: cuMemGetInfo {:.0} and {:.0} MiB, NVML {nvml_free:.0} and {nvml_total:.0} MiB",
        mib(free),
        mib(total)
    );
    Ok((agrees, note))
}

/// Bytes that status has for the context of a small program, beside what a second process sees it take.
fn context(bench: &Bench, assigner: &Assigner) -> anyhow::Result<(u64, String)> {
    let sizes = bench.sizes()?;
    let mut command = assigner.run(std::env::current_exe()?);
    command.args(["swapped", &(2 * MIB).to_string(), "1"]);
    let mut program = Program::swapped(command)?;
    program.touch()?;
    let status = assigner.status()?;
    let clients = status["nodes"][0]["clients"].as_array().into_iter().flatten();
    let own = clients.filter(|client| client["pid"].as_u64() == Some(program.pid().into()));
    let memory = own.flat_map(|client| client["memory"].as_array()).flatten();
    let fixed = memory.flat_map(|memory| memory["fixed"].as_array()).flatten();
    let contexts = fixed.filter(|fixed| fixed["kind"] == "contexts");
    let bytes: u64 = contexts.filter_map(|fixed| fixed["bytes"].as_u64()).sum();
    anyhow::ensure!(bytes > 0, "status has no context of the program: {status}");
    let seen = mib(sizes.context);
    Ok((
        bytes,
        format!(
            "with what the pager needs; seen from outside, a context with kernels takes {seen:.0} MiB"
        ),
    ))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(result: &str, interposed: bool, told: bool) -> Answer {
        let loaded = Loaded { library: String::new(), interposed, result: result.into() };
        Answer { loaded, told }
    }

    #[test]
    fn who_goes_past_it_must_be_told_and_nobody_else() {
        for (lead, audit, interposed) in [
            (Lead::Name, Audit::Off, true),
            (Lead::Name, Audit::On, true),
            (Lead::Path, Audit::Off, false),
            (Lead::Path, Audit::On, true),
            (Lead::HiddenPath, Audit::On, false),
        ] {
            let expected = expected(lead, audit);
            assert!(answered("ok", interposed, !interposed) == expected, "{lead:?} {audit:?}");
            assert!(answered("ok", interposed, interposed) != expected, "{lead:?} {audit:?}");
            assert!(answered("ok", !interposed, interposed) != expected, "{lead:?} {audit:?}");
            assert!(answered("wrong data", interposed, !interposed) != expected);
        }
    }
}
