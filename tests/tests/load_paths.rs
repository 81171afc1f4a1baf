//! Every way in which programs load the CUDA driver, with and without the audit library.
//!
//! Owns: which library answers each way, what the interposer says of it, and that the work is right.
//! Needs an installation with tests, named by ACB_PREFIX.
//!
//! | way | without audit | with audit |
//! | --- | --- | --- |
//! | by a name: linked, `dlopen`, `dlmopen`, ctypes, the static runtime | interposed | interposed |
//! | found by DT_RPATH or DT_RUNPATH | interposed | interposed |
//! | by a path | told, with the path | interposed |
//! | by a path with `dlmopen` | told, with the path | the same: the dynamic linker does not ask |

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use acb_tests::bench::outside::Outside;
use acb_tests::lab::{Prefix, wait_until};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;

const PATIENCE: Duration = Duration::from_secs(180);

const ONE_GPU: &str = "[[gpu]]\nname = \"Simulated GPU\"\nmemory = \"16GiB\"\n";

/// The line that a program prints about the library that answered it.
#[derive(Debug, Deserialize)]
struct Loaded {
    library: std::path::PathBuf,
    interposed: bool,
    result: String,
}

struct Bench {
    prefix: Prefix,
    outside: Outside,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audit {
    Off,
    On,
}

impl Bench {
    fn start() -> Result<Self> {
        let prefix = Prefix::from_env()?;
        let outside = Outside::start(&prefix, ONE_GPU, &[])?;
        Ok(Self { prefix, outside })
    }

    fn program(&self, name: &str) -> String {
        self.prefix.test_program(name).display().to_string()
    }

    fn driver(&self) -> String {
        self.program("sim/libcuda.so.1")
    }

    /// Every way, as words of a command line.
    fn by_name(&self) -> Vec<Vec<String>> {
        let ctypes = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/loads_ctypes.py");
        let loads = |words: &[&str]| {
            let words = words.iter().map(|word| (*word).to_owned());
            std::iter::once(self.program("loads")).chain(words).collect()
        };
        vec![
            vec![self.program("loads_linked")],
            vec![self.program("loads_rpath")],
            vec![self.program("loads_runpath")],
            loads(&["soname"]),
            loads(&["name"]),
            loads(&["deepbind"]),
            loads(&["namespace", "libcuda.so.1"]),
            loads(&["namespace", "libcuda.so"]),
            loads(&["runtime"]),
            vec!["python3".into(), ctypes.display().to_string()],
        ]
    }

    fn by_path(&self, way: &str) -> Vec<String> {
        vec![self.program("loads"), way.into(), self.driver()]
    }

    /// Runs a program under agarun; what it printed, and what the interposer said.
    fn run(&self, words: &[String], audit: Audit) -> Result<(Loaded, String)> {
        let options: &[&str] = if audit == Audit::On { &["--audit"] } else { &[] };
        let mut command: Command = self.outside.agarun(options, &words[0]);
        let output = command
            .args(&words[1..])
            .env("ACB_LOG", "debug")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {words:?}"))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let loaded = serde_json::from_str(&printed).with_context(|| {
            format!("{:?} printed {printed:?}\n{said}\n{}", output.status, self.outside.log())
        })?;
        ensure!(output.status.success(), "{:?}: {loaded:?}\n{said}", output.status);
        Ok((loaded, said))
    }

    /// The interposer answers, says so, and the program's work is right.
    fn expect_interposed(&self, words: &[String], audit: Audit) -> Result<()> {
        let (loaded, said) = self.run(words, audit)?;
        ensure!(loaded.interposed && loaded.result == "ok", "{loaded:?}\n{said}");
        let proof = format!(
            "the interposer {} stands before the driver {}",
            loaded.library.display(),
            self.driver()
        );
        ensure!(said.contains(&proof), "no `{proof}` in\n{said}");
        ensure!(!said.contains("past slurm-acb"), "{said}");
        Ok(())
    }
}

#[test]
fn by_a_name_the_interposer_answers() -> Result<()> {
    let bench = Bench::start()?;
    for words in bench.by_name() {
        bench.expect_interposed(&words, Audit::Off).with_context(|| words.join(" "))?;
    }
    Ok(())
}

#[test]
fn a_path_goes_past_it_and_is_told() -> Result<()> {
    let bench = Bench::start()?;
    let ways = [("path", Audit::Off), ("namespace", Audit::Off), ("namespace", Audit::On)];
    for (way, audit) in ways {
        let (loaded, said) = bench.run(&bench.by_path(way), audit)?;
        let words = format!("{way}, audit {audit:?}");
        ensure!(!loaded.interposed && loaded.result == "ok", "{words}: {loaded:?}\n{said}");
        ensure!(loaded.library == Path::new(&bench.driver()), "{words}: {loaded:?}");
        let told = format!("has opened the CUDA driver {} by its path", bench.driver());
        ensure!(said.contains(&told), "{words}: {said}");
        ensure!(said.contains("agarun --audit") == (audit == Audit::Off), "{words}: {said}");
    }
    Ok(())
}

/// The program uses the interposer, but some part of it has another copy of the driver.
#[test]
fn a_second_driver_beside_the_interposer_is_told() -> Result<()> {
    let bench = Bench::start()?;
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("libcuda.so.570.1");
    std::fs::copy(bench.driver(), &copy)?;
    let mut command = bench.outside.agarun(&[], bench.program("loads"));
    let output = command.arg("soname").env("LD_PRELOAD", &copy).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let told = format!("has opened the CUDA driver {} by its path", copy.display());
    ensure!(output.status.success() && said.contains(&told), "{:?}: {said}", output.status);
    Ok(())
}

/// While it runs: a program that is killed, or ends by _exit, says nothing at its end.
#[test]
fn a_driver_opened_later_is_told_before_the_program_ends() -> Result<()> {
    let bench = Bench::start()?;
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("libcuda.so.570.1");
    std::fs::copy(bench.driver(), &copy)?;
    let log = folder.path().join("log");
    let mut command = bench.outside.agarun(&[], bench.program("loads"));
    command.arg("after").arg(&copy).env("ACB_LOG_FILE", &log);
    let mut program = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let told = format!("has opened the CUDA driver {} by its path", copy.display());
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let outcome = wait_until("the program is told", PATIENCE, || Ok(said().contains(&told)));
    let _ = program.kill(); // it may have ended
    program.wait()?;
    outcome.with_context(said)
}

/// A program that never comes to the interposer, and lives on: the assigner hears of it from NVML.
#[test]
fn a_process_past_the_interposer_is_told_by_the_assigner() -> Result<()> {
    let bench = Bench::start()?;
    let client = bench.outside.on_request()?;
    // The second one is told of after another look, at which the first one was still there.
    let mut strangers = Vec::new();
    for _ in 0..2 {
        let mut command = bench.outside.plain(bench.program("on_request"));
        let program = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let told = format!("process {} (on_request) uses ", program.id());
        strangers.push((Killed(program), told.clone()));
        wait_until("the assigner tells of it", PATIENCE, || {
            Ok(bench.outside.log().contains(&told))
        })
        .with_context(|| bench.outside.log())?;
    }
    let log = bench.outside.log();
    for (_, told) in &strangers {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(told.as_str())).collect();
        ensure!(lines.len() == 1, "{lines:?}");
        let driver = format!("the CUDA driver that it has opened is {}", bench.driver());
        ensure!(lines[0].contains(&driver) && lines[0].contains("agarun --audit"), "{lines:?}");
    }
    ensure!(!log.contains(&format!("process {} ", client.pid())), "{log}");
    Ok(())
}

/// Ends with the test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn with_the_audit_library_the_interposer_answers_paths_too() -> Result<()> {
    let bench = Bench::start()?;
    for words in bench.by_name().into_iter().chain([bench.by_path("path")]) {
        bench.expect_interposed(&words, Audit::On).with_context(|| words.join(" "))?;
    }
    Ok(())
}

/// What is not a client's is not audited: the library takes itself out.
#[test]
fn a_program_without_an_assigner_is_left_alone() -> Result<()> {
    let bench = Bench::start()?;
    let mut command = bench.outside.plain(bench.program("loads"));
    let output = command
        .args(["path", &bench.driver()])
        .env("LD_AUDIT", bench.prefix.library().join("libacb-audit.so"))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let loaded: Loaded =
        serde_json::from_slice(&output.stdout).with_context(|| said.to_string())?;
    ensure!(loaded.result == "ok" && loaded.library == Path::new(&bench.driver()), "{loaded:?}");
    ensure!(said.is_empty(), "{said}");
    Ok(())
}
