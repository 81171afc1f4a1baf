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
fn memory_is_one_for_all_processes_and_comes_back_from_the_dead() {
    let lab = Lab::new("memory", "memory = '1 GiB'\ncontext_bytes = '64 MiB'");
    let holder = lab.start(&["hold", "600000000"]);
    assert_eq!(lab.run(&["allocate", "600000000"]), "2");
    assert_eq!(lab.run(&["allocate", "200000000"]), "0");
    holder.kill();
    assert_eq!(lab.run(&["allocate", "600000000"]), "0");
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
    // 100 kernels of 2 ms each: 200 ms of work, twice.
    let mut parts: Vec<Part> = (0..2).map(|_| lab.start(&["kernels", "100", "2000000"])).collect();
    for part in &mut parts {
        part.child.stdin.take().expect("stdin is piped").write_all(b"\n").expect("it listens");
    }
    let took: Vec<f64> =
        parts.iter_mut().map(|part| part.line().parse().expect("a time")).collect();
    // Modelled time: no kernel of one ran while one of the other did.
    let longer = took[0].max(took[1]);
    assert!(took.iter().all(|&time| time >= 199.9), "{took:?}");
    assert!(longer >= 300.0, "{took:?}");
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
