//! `tests/gpu/run --sim` from start to end: every group runs, every row has a value or a reason, nothing
//! that was checked is wrong, and no simulated number passes for a measured one.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

const PROBE: &str = env!("CARGO_BIN_EXE_acb-gpu-probe");
const GROUPS: [&str; 13] = [
    "driver",
    "memory",
    "pinned",
    "link",
    "hash",
    "kernels",
    "calls",
    "swap",
    "contract",
    "paths",
    "sharing",
    "frameworks",
    "checkpoint",
];

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../run")
}

/// The installed prefix, or one made of what lies in the target folder.
fn prefix(scratch: &Path) -> PathBuf {
    if let Some(prefix) = std::env::var_os("ACB_PREFIX").map(PathBuf::from)
        && prefix.join("libexec/acb-tests/sim/libcuda.so.1").exists()
    {
        return prefix;
    }
    let target = Path::new(PROBE).parent().unwrap();
    if !target.join("libsimcuda.so").exists() || !target.join("libsimnvml.so").exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--locked", "-p", "simcuda", "-p", "simcuda-nvml"]);
        build.env("CARGO_TARGET_DIR", target.parent().unwrap());
        assert!(build.status().unwrap().success(), "the software GPU does not build");
    }
    let prefix = scratch.join("prefix");
    let place = |from: &str, to: &str| {
        let (from, to) = (target.join(from), prefix.join(to));
        if from.exists() {
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            // A copy, for programs find the rest of the prefix by their own place.
            std::fs::copy(from, to).unwrap();
        }
    };
    // A link, as in an installation: under both names it is one library, and not two in one process.
    let link = |folder: &str, name: &str| {
        if prefix.join(folder).join(format!("{name}.1")).exists() {
            std::os::unix::fs::symlink(format!("{name}.1"), prefix.join(folder).join(name))
                .unwrap();
        }
    };
    place("acb-gpu-probe", "libexec/acb-tests/acb-gpu-probe");
    place("libsimcuda.so", "libexec/acb-tests/sim/libcuda.so.1");
    place("libsimnvml.so", "libexec/acb-tests/sim/libnvidia-ml.so.1");
    link("libexec/acb-tests/sim", "libcuda.so");
    place("gpu_assigner", "bin/gpu_assigner");
    place("agarun", "bin/agarun");
    place("libacb_cuda.so", "lib/acb/libcuda.so.1");
    place("libacb_nvml.so", "lib/acb/libnvidia-ml.so.1");
    link("lib/acb", "libcuda.so");
    link("lib/acb", "libnvidia-ml.so");
    place("libacb_audit.so", "lib/acb/libacb-audit.so");
    place("contract", "libexec/acb-tests/contract");
    for program in ["loads", "loads_linked", "loads_rpath", "loads_runpath", "nvml_linked"] {
        place(program, &format!("libexec/acb-tests/{program}"));
    }
    let workloads = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../workloads");
    for file in ["loads_ctypes.py", "nvml_ctypes.py", "reference.py", "kernels.ptx"] {
        place(workloads.join(file).to_str().unwrap(), &format!("libexec/acb-tests/{file}"));
    }
    prefix
}

fn run(arguments: &[&str]) -> Output {
    Command::new(script()).args(arguments).env_remove("ACB_PREFIX").output().unwrap()
}

#[test]
fn the_whole_script_runs_on_the_software_gpu() {
    let scratch = tempfile::tempdir().unwrap();
    let prefix = prefix(scratch.path());
    let json = scratch.path().join("results.json");
    let output = run(&[
        "--sim",
        "--quick",
        "--prefix",
        prefix.to_str().unwrap(),
        // Of which a busy machine may need a large part.
        "--budget",
        "5200",
        "--json",
        json.to_str().unwrap(),
    ]);
    let told = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{told}");
    let results: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(results["schema"], 1);
    assert_eq!(results["simulated"], true);

    let groups = results["groups"].as_array().unwrap();
    let names: Vec<&str> = groups.iter().map(|group| group["name"].as_str().unwrap()).collect();
    assert_eq!(names, GROUPS);
    for group in groups {
        assert_eq!(group["ended"], "well", "{group}\n{told}");
    }
    let rows = results["rows"].as_array().unwrap();
    for group in GROUPS {
        assert!(rows.iter().any(|row| row["group"] == group), "no row of {group}\n{told}");
    }
    for row in rows {
        let measured = row.get("value").is_some() || row.get("text").is_some();
        let why = row.get("why").and_then(Value::as_str).is_some_and(|why| !why.is_empty());
        assert!(measured != why, "{row}");
        assert_ne!(row["verified"], false, "{row}");
    }
    // What needs neither an unknown kernel nor a framework must have been measured.
    for name in [
        "context_mib",
        "mapped_idle.cycle_us@2MiB",
        "mapped_busy.cycle_us@2MiB",
        "copy.out_1_gb_per_s@2MiB",
        "copied_bytes",
        "pipeline_best_gb_per_s",
        "device_copy_gb_per_s",
        "launch_direct_ns",
        "swap.switch_gb_per_s@2MiB-128MiB",
        "swap.moved_gib@2MiB-128MiB",
        "swap.data@2MiB-128MiB",
        "swap_most.data@64MiB-256MiB",
        "sharing.shared_over_serial@driver-api-95-64MiB",
        "sharing.swapped_gib@driver-api-95-64MiB",
        "sharing.swapped_gib@driver-api-95-most-128MiB",
        "contract.case@memory::pitched_copies",
        "interposed.result@starting::a_forked_child_has_no_driver",
        "interposed.moved_gib@virtual_memory::memory_is_exported_with_its_content",
        "load_paths.with_audit@path",
        "load_paths.without_audit@rpath",
        "nvml.agrees@linked",
        "nvml.agrees@ctypes",
        "context_by_assigner_mib",
        "listed_but_not_exported",
    ] {
        let row = rows.iter().find(|row| row["name"] == name);
        assert!(
            row.is_some_and(|row| row.get("value").or(row.get("text")).is_some()),
            "{name}: {row:?}"
        );
    }
    assert!(told.contains("SIMULATED"), "{told}");
    // Frameworks cannot run here; that is said once more at the end.
    let end = told.split("Without a value, of what this is run for:").nth(1).unwrap();
    let end = end.split("Results:").next().unwrap();
    assert!(end.contains("frameworks@pytorch, "), "{told}");
    assert!(!end.contains("sharing@driver-api") && !end.contains("contract"), "{told}");

    let page = Command::new(PROBE).arg("report").arg(&json).output().unwrap();
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(
        page.contains("**Simulated:") && !page.lines().any(|line| line.ends_with("| yes |")),
        "{page}"
    );
}

#[test]
fn a_group_that_fails_does_not_stop_the_others() {
    // No driver at all: every group says so, and the file is still written.
    let scratch = tempfile::tempdir().unwrap();
    let json = scratch.path().join("results.json");
    let output = Command::new(PROBE)
        .args(["some", "driver,hash", "--quick", "--json"])
        .arg(&json)
        .env("LD_LIBRARY_PATH", scratch.path())
        .output()
        .unwrap();
    let results: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let groups = results["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 2);
    if groups[0]["ended"] == "failed" {
        assert_eq!(output.status.code(), Some(1));
        assert!(groups[1]["why"].as_str().unwrap().contains("no CUDA driver"), "{groups:?}");
    }
}

/// A run of one group on a software GPU of its own with a fault, and what it said.
fn with_fault(prefix: &Path, scratch: &Path, group: &str, fault: &str) -> (Output, Value) {
    let budget = if group == "swap" { "100" } else { "30" };
    let json = scratch.join(format!("{group}.json"));
    let configuration = scratch.join(format!("{group}.toml"));
    let state = format!("gpu-probe-{group}-{}", std::process::id());
    let gpu = "gpus = 1\nmemory = 1073741824\ncontext_bytes = 16777216\n";
    std::fs::write(&configuration, format!("state = \"{state}\"\n{gpu}\n{fault}")).unwrap();
    let sim = prefix.join("libexec/acb-tests/sim");
    let output = Command::new(prefix.join("libexec/acb-tests/acb-gpu-probe"))
        .args(["some", group, "--sim", "--quick", "--budget", budget, "--prefix"])
        .arg(prefix)
        .arg("--json")
        .arg(&json)
        .env("SIMCUDA_CONFIG", &configuration)
        .env("ACB_NVML", sim.join("libnvidia-ml.so.1"))
        .env("LD_LIBRARY_PATH", &sim)
        .output()
        .unwrap();
    for entry in std::fs::read_dir("/dev/shm").unwrap().flatten() {
        if entry.file_name().to_string_lossy().contains(&state) {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let results = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    (output, results)
}

/// Only the first process of a group meets it.
fn endless(kernel: &str, at: u32) -> String {
    format!(
        "[[fault]]\nkind = \"endless\"\nenv = \"ACB_GPU_PROBE_ATTEMPT=1\"\nkernel = \"{kernel}\"\nat = {at}\n"
    )
}

/// Of the rows of a column: those with a value, and those without one, with the reason.
fn column(results: &Value, name: &str) -> (Vec<String>, Vec<(String, String)>) {
    let rows = results["rows"].as_array().unwrap().iter();
    let (mut measured, mut missing) = (Vec::new(), Vec::new());
    for row in rows.filter(|row| row["name"].as_str().unwrap().starts_with(name)) {
        let name = row["name"].as_str().unwrap().to_owned();
        match row["why"].as_str() {
            None => measured.push(name),
            Some(why) => missing.push((name, why.to_owned())),
        }
    }
    (measured, missing)
}

/// One line was lost at its own limit, is named, and the others have their values.
fn one_line_is_lost(ran: &(Output, Value), name: &str, part: &str, others: usize) {
    let (output, results) = ran;
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let (measured, missing) = column(results, name);
    assert_eq!(measured.len(), others, "{measured:?} {missing:?}\n{told}");
    let lost: Vec<_> = missing.iter().filter(|(_, why)| why.contains("did not end")).collect();
    let line = part.split_once('@').unwrap().1;
    assert!(lost.len() == 1 && lost[0].0.ends_with(&format!("@{line}")), "{missing:?}\n{told}");
    let group = &results["groups"][0];
    assert!(group["why"].as_str().unwrap().contains(&format!("{part}: did not end")), "{group}");
    assert_eq!(group["ended"], "overran");
    assert!(told.contains(part), "{told}");
}

#[test]
fn a_line_that_hangs_loses_itself_alone() {
    // Had it kept more than its own limit, none would be left for those after it.
    let scratch = tempfile::tempdir().unwrap();
    let prefix = prefix(scratch.path());
    // Three launches before the first line, which has five.
    let ran = with_fault(&prefix, scratch.path(), "hash", &endless("acb_hash128", 9));
    one_line_is_lost(&ran, "hash.gb_per_s", "hash@8MiB", 3);
    // Those of several processes, too: each program's first step hangs.
    let ran = with_fault(&prefix, scratch.path(), "swap", &endless("acb_step", 1));
    one_line_is_lost(&ran, "swap.data", "swap@2MiB", 3);
    let (most, _) = column(&ran.1, "swap_most.data");
    assert_eq!(most, ["swap_most.data@64MiB-256MiB"]);
}

/// Of the probe, and of the script with all that is in its process group, as Ctrl-C ends it.
#[test]
fn a_run_that_is_ended_leaves_no_process_behind() {
    for (program, group) in [(PathBuf::from(PROBE), false), (script(), true)] {
        ended_while_it_runs(&program, group);
    }
}

fn ended_while_it_runs(program: &Path, group: bool) {
    let scratch = tempfile::tempdir().unwrap();
    // A "driver" that never answers, in place of the real one: its constructor sleeps.
    let source = scratch.path().join("sleeps.c");
    std::fs::write(
        &source,
        "unsigned sleep(unsigned);\n__attribute__((constructor)) void f(void) { sleep(1000); }\n",
    )
    .unwrap();
    let library = scratch.path().join("libcuda.so.1");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(built.unwrap().success());
    let json = scratch.path().join("results.json");
    let mut run = Command::new(program);
    match group {
        false => run.args(["some", "hash"]),
        true => run.args(["--groups", "hash", "--prefix"]).arg(prefix(scratch.path())),
    };
    run.arg("--json").arg(&json).process_group(0);
    run.env("LD_LIBRARY_PATH", scratch.path()).env("TMPDIR", scratch.path());
    let mut run = run.spawn().unwrap();
    let ours = format!("ACB_GPU_PROBE_RUN={}", scratch.path().display());
    let marked = || {
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter(|entry| {
                let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
                environment.split(|byte| *byte == 0).any(|part| part.starts_with(ours.as_bytes()))
            })
            .count()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while marked() == 0 {
        assert!(Instant::now() < deadline, "the group never started");
        std::thread::yield_now();
    }
    let of = format!("{}{}", if group { "-" } else { "" }, run.id());
    let killed = Command::new("kill").args(["-TERM", "--", &of]).status();
    assert!(killed.unwrap().success());
    let ended = loop {
        if let Some(status) = run.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "{} goes on", program.display());
        std::thread::yield_now();
    };
    assert!(group && !ended.success() || ended.code() == Some(128 + 15), "{ended}");
    while marked() > 0 {
        assert!(Instant::now() < deadline, "a process outlived the run");
        std::thread::yield_now();
    }
}

#[test]
fn wrong_options_are_named_and_end_with_2() {
    for (arguments, named) in [
        (&["--nonsense"][..], "--nonsense"),
        (&["--json"], "--json"),
        (&["--budget", "soon"], "soon"),
        (&["--prefix", "/nowhere"], "/nowhere"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains(named) && told.starts_with("run: "), "{arguments:?}: {told}");
    }
    let output = Command::new(PROBE).args(["some", "memory,astrology"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("astrology"));
}

#[test]
fn a_file_that_is_no_result_is_refused_with_its_name() {
    let scratch = tempfile::tempdir().unwrap();
    for (name, text) in [("empty", ""), ("other", "{\"a\": 1}"), ("list", "[]")] {
        let file = scratch.path().join(name);
        std::fs::write(&file, text).unwrap();
        let output = Command::new(PROBE).arg("report").arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains(name));
    }
}
