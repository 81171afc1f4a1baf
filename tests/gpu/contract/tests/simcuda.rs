//! The contract, kept by the software GPU; and what its processes share.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// The software GPU's library, built as the test is.
fn library() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let exe = std::env::current_exe().expect("a test has a path");
            // target/PROFILE/deps/TEST
            let folder = exe.parent().and_then(|deps| deps.parent()).expect("cargo's layout");
            let profile = match folder.file_name().and_then(|name| name.to_str()) {
                Some("debug") | None => "dev",
                Some(profile) => profile,
            };
            let status = Command::new(env!("CARGO"))
                .args(["build", "--quiet", "--package", "simcuda", "--profile", profile])
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status()
                .expect("cargo can be run");
            assert!(status.success(), "the software GPU does not build");
            folder.join("libsimcuda.so")
        })
        .clone()
}

/// A GPU of a test's own; its state goes with it.
struct Lab {
    folder: tempfile::TempDir,
    state: String,
}

impl Lab {
    fn new(name: &str, config: &str) -> Lab {
        let state = format!("contract-{}-{name}", std::process::id());
        let folder = tempfile::tempdir().expect("a folder");
        let text = format!("state = \"{state}\"\n{config}");
        std::fs::write(folder.path().join("gpu.toml"), text).expect("a file");
        Lab { folder, state }
    }

    fn contract(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_contract"));
        command
            .arg("--driver")
            .arg(library())
            .args(arguments)
            .env("SIMCUDA_CONFIG", self.folder.path().join("gpu.toml"))
            .env_remove("CUDA_VISIBLE_DEVICES")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// Runs calls by name, in a program whose environment holds `variable`.
    fn codes(&self, variable: &str, calls: &[&str]) -> String {
        let mut command = self.contract(&["--act", "calls"]);
        let (name, value) = variable.split_once('=').expect("a name and a value");
        let output = command.args(calls).env(name, value).output().expect("the part runs");
        assert!(output.status.success(), "{calls:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().replace('\n', ", ")
    }

    /// Starts a part and waits until it says `ready`.
    fn start(&self, part: &[&str]) -> Part {
        let mut arguments = vec!["--act"];
        arguments.extend(part);
        let mut child = self.contract(&arguments).spawn().expect("the part starts");
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut part = Part { child, output };
        assert_eq!(part.line(), "ready");
        part
    }

    /// Runs a part to its end.
    fn run(&self, part: &[&str]) -> String {
        let mut arguments = vec!["--act"];
        arguments.extend(part);
        let output = self.contract(&arguments).output().expect("the part runs");
        assert!(output.status.success(), "{part:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with(&self.state) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

struct Part {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Part {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the part speaks");
        line.trim().to_owned()
    }

    fn kill(mut self) {
        self.child.kill().expect("the part lives");
        self.child.wait().expect("the part ends");
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_software_gpu_keeps_the_contract() {
    let lab = Lab::new("all", "memory = '4 GiB'");
    let output = lab.contract(&[]).output().expect("the contract runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn copies_between_gpus_keep_it_whether_or_not_these_reach_each_other() {
    for peers in [true, false] {
        let lab = Lab::new(&format!("peers-{peers}"), &format!("gpus = 2\npeers = {peers}"));
        for case in [
            "plain_memory_is_copied_without_access",
            "mapped_memory_is_copied_between_contexts_alone",
            "mapped_memory_that_is_open_is_copied",
        ] {
            let output = lab.contract(&["--only", &format!("peers::{case}")]).output();
            let output = output.expect("the contract runs");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "peers = {peers}: {case}: {said}");
        }
    }
}

#[test]
fn memory_is_one_for_all_processes_and_comes_back_from_the_dead() {
    let lab = Lab::new("memory", "memory = '1 GiB'\ncontext_bytes = '64 MiB'");
    let holder = lab.start(&["hold", "600000000"]);
    assert_eq!(lab.run(&["allocate", "600000000"]), "2");
    assert_eq!(lab.run(&["allocate", "200000000"]), "0");
    holder.kill();
    assert_eq!(lab.run(&["allocate", "600000000"]), "0");
}

#[test]
fn the_driver_takes_memory_that_no_call_asks_for() {
    let sizes = "memory = '64 MiB'\ncontext_bytes = '1 MiB'\n";
    let lab = Lab::new("grow", &format!("{sizes}function_bytes = '4 MiB'\ngraph_bytes = '2 MiB'"));
    let said = lab.run(&["grow"]);
    let steps: Vec<&str> = said.lines().collect();
    let expected = [
        "begin 0 63",
        // Once for each function.
        "launch 0 59",
        "again 0 59",
        "fill 0 2",
        // No room for the code: the launch has not run, and the context is sound.
        "other 2 2",
        "again 0 2",
        "graph 0 0",
        "graph 2 0",
        "gone 0 2",
        "wait 0 2",
    ];
    assert_eq!(steps, expected);
    // Elsewhere nothing of it is seen.
    let said = Lab::new("grow-not", sizes).run(&["grow"]);
    assert!(
        said.ends_with("fill 0 2\nother 0 2\nagain 0 2\ngraph 0 2\ngraph 0 2\ngone 0 2\nwait 0 2"),
        "{said}"
    );
}

#[test]
fn a_process_killed_in_mid_kernel_leaves_the_engine() {
    let lab = Lab::new("kernel", "time_slice_ns = 3600000000000");
    let busy = lab.start(&["compute"]);
    let mut next = lab.start(&["kernels", "1", "1000000"]);
    next.child.stdin.take().expect("stdin is piped").write_all(b"\n").expect("it listens");
    busy.kill();
    let took: f64 = next.line().parse().expect("a time");
    assert!(took >= 1.0, "{took}");
}

#[test]
fn a_process_killed_in_mid_copy_leaves_the_link() {
    let lab = Lab::new("copy", "time_slice_ns = 3600000000000\nlink_in = 1000");
    let busy = lab.start(&["copy", "8000000"]);
    drop(busy);
    let lab = Lab { state: lab.state.clone(), folder: rewrite(&lab) };
    assert_eq!(lab.run(&["short-copy"]), "done");
    // And its memory: all of the GPU but a context.
    assert_eq!(lab.run(&["allocate", "16642998272"]), "0");
}

/// The same state, with a link of the usual speed.
fn rewrite(lab: &Lab) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!("state = \"{}\"\n", lab.state);
    std::fs::write(folder.path().join("gpu.toml"), text).expect("a file");
    folder
}

#[test]
fn two_processes_share_the_engine() {
    let lab = Lab::new("share", "");
    // One that computes all the while, and 100 kernels of 2 ms each beside it.
    let _busy = lab.start(&["compute"]);
    let mut part = lab.start(&["kernels", "100", "2000000"]);
    part.child.stdin.take().expect("stdin is piped").write_all(b"\n").expect("it listens");
    let took: f64 = part.line().parse().expect("a time");
    // Modelled time: no kernel of one ran while one of the other did, and they take turns.
    assert!(took >= 300.0, "{took}");
}

#[test]
fn modelled_times_are_what_was_asked_for() {
    let lab = Lab::new("times", "launch_ns = 5000");
    let mut part = lab.start(&["kernels", "500", "95000"]);
    part.child.stdin.take().expect("stdin is piped").write_all(b"\n").expect("it listens");
    let took: f64 = part.line().parse().expect("a time");
    // 500 kernels of 0.1 ms, one behind the other without a gap.
    assert!((took - 50.0).abs() < 0.001, "{took}");
}

#[test]
fn a_link_carries_both_ways_at_once_or_one() {
    let both_ways = |duplex: bool| {
        let name = if duplex { "duplex" } else { "simplex" };
        let config = format!("link_out = 1000000000\nlink_in = 500000000\nduplex = {duplex}");
        let said = Lab::new(name, &config).run(&["both-ways", "8000000"]);
        let times: Vec<f64> = said.split(' ').map(|time| time.parse().expect("a time")).collect();
        assert!((times[0] - 8.0).abs() < 0.001, "out: {said}");
        assert!((times[1] - 16.0).abs() < 0.001, "in: {said}");
        times[2]
    };
    assert!((both_ways(true) - 16.0).abs() < 0.001, "{}", both_ways(true));
    assert!((both_ways(false) - 24.0).abs() < 0.001, "{}", both_ways(false));
}

#[test]
fn what_mapping_and_pinning_cost_is_waited_and_not_worked() {
    let lab = Lab::new(
        "costs",
        "map_ns = 1000000\nmap_ns_per_mib = 500000\naccess_ns = 2000000\naccess_ns_per_mib = 500000\n\
         unmap_ns = 3000000\nunmap_ns_per_mib = 500000\npin_ns_per_mib = 1000000",
    );
    // 20 parts of 2 MiB: (1 + 1) ms, (2 + 1) ms and (3 + 1) ms each, and 40 ms.
    let said = lab.run(&["costs", "20", "2097152"]);
    let times: Vec<f64> = said.split(' ').map(|time| time.parse().expect("a time")).collect();
    for (time, modelled) in times.iter().zip([40.0, 60.0, 80.0, 40.0]) {
        // What one sleep took too long the next one makes up for, but for the last.
        assert!(*time >= modelled - 2.1, "{said}");
    }
    assert!(times[4] < 110.0, "half of it on a processor: {said}");
}

#[test]
fn unknown_kernels_take_their_time_write_nothing_and_are_named_once() {
    let lab = Lab::new("stranger", "unknown_kernel_ns = 3000000\nlaunch_ns = 1000");
    let output = lab
        .contract(&["--act", "stranger"])
        .stderr(Stdio::piped())
        .output()
        .expect("the part runs");
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (word, time) = said.split_once(' ').expect("a word and a time");
    assert_eq!(word, "4711");
    let time: f64 = time.parse().expect("a time");
    // Four of them.
    assert!((time - 12.004_f64).abs() < 0.001, "{said}");
    let named = String::from_utf8_lossy(&output.stderr).into_owned();
    for name in ["stranger", "another"] {
        assert_eq!(named.matches(&format!("kernel {name} is not known")).count(), 1, "{named}");
    }
}

#[test]
fn faults_strike_the_call_that_was_scripted() {
    let fault = |kind: &str, rest: &str| {
        Lab::new(&format!("fault-{kind}"), &format!("[[fault]]\nkind = '{kind}'\n{rest}"))
    };
    let lab = fault("out_of_memory", "at = 2\ntimes = 2");
    let calls = ["allocate", "create", "allocate-later", "allocate"];
    assert_eq!(lab.codes("A=1", &calls), "allocate 0, create 2, allocate-later 2, allocate 0");
    // The n-th call of its kind, and no other kind of call.
    let lab = fault("create_fails", "at = 3");
    let calls = ["create", "allocate", "create", "create", "allocate", "create"];
    assert_eq!(
        lab.codes("A=1", &calls),
        "create 0, allocate 0, create 0, create 2, allocate 0, create 0"
    );
    let lab = fault("map_fails", "at = 2\ntimes = 0");
    assert_eq!(lab.codes("A=1", &["map", "map", "map"]), "map 0, map 2, map 2");
    let lab = fault("pin_fails", "at = 2\ntimes = 2");
    let calls = ["pin", "register", "pin", "register"];
    assert_eq!(lab.codes("A=1", &calls), "pin 0, register 2, pin 2, register 0");
    // These break the context: what failed is said by whatever waits for it.
    let lab = fault("copy_fails", "at = 2");
    let calls = ["copy", "copy", "allocate"];
    assert_eq!(lab.codes("A=1", &calls), "copy 0, copy 700, allocate 700");
    let lab = fault("launch_fails", "kernel = 'acb_spin'");
    let calls = ["launch", "wait", "spin", "wait", "allocate"];
    assert_eq!(lab.codes("A=1", &calls), "launch 0, wait 0, spin 0, wait 719, allocate 719");
    let lab = fault("endless", "kernel = 'acb_spin'");
    assert_eq!(lab.codes("A=1", &["spin", "query", "query"]), "spin 0, query 600, query 600");
}

#[test]
fn faults_strike_the_programs_that_they_name() {
    let lab = Lab::new("fault-env", "[[fault]]\nkind = 'out_of_memory'\nenv = 'RANK=3'");
    assert_eq!(lab.codes("RANK=2", &["allocate"]), "allocate 0");
    assert_eq!(lab.codes("RANK=3", &["allocate", "allocate"]), "allocate 2, allocate 0");
    // Each process counts for itself.
    assert_eq!(lab.codes("RANK=3", &["allocate"]), "allocate 2");
    for (program, code) in [("contract", 2), ("phases", 0)] {
        let rule = format!("[[fault]]\nkind = 'out_of_memory'\nprogram = '{program}'");
        let lab = Lab::new(&format!("fault-{program}"), &rule);
        assert_eq!(lab.codes("A=1", &["allocate"]), format!("allocate {code}"));
    }
}
