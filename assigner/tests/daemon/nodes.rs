//! A controller and an executor of one job, on loopback, with mutual TLS.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use acb_cluster_conf::{JobFacts, JobSpec, Key, Request, SiteConfig};

use crate::support::{Home, errors, eventually};

pub(crate) struct Node {
    pub(crate) folder: PathBuf,
    daemon: Child,
}

impl Drop for Node {
    fn drop(&mut self) {
        let pid = self.daemon.id().to_string();
        let _ = std::process::Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.daemon.wait();
    }
}

pub(crate) fn spec(home: &Home, node: &str, key: u8, port: u16) -> JobSpec {
    let uid = rustix::process::geteuid().as_raw();
    let facts = JobFacts {
        job_id: 7,
        node: node.to_owned(),
        nodes: vec!["n1".to_owned(), "n2".to_owned()],
        uid,
        gid: uid,
        home: None,
        key: Key::new([key; 32]),
        gpus: Vec::new(),
        slurm_conf: None,
    };
    let site = format!("[paths]\nrun_dir = {:?}\n[comment]\nenabled = false\n", home.path("run"));
    let site = SiteConfig::parse("site", &site).unwrap();
    let mut spec = JobSpec::plan(&site, &Request::default(), facts).unwrap();
    let loopback = |name: &str| (name.to_owned(), "127.0.0.1".to_owned());
    spec.addresses = BTreeMap::from([loopback("n1"), loopback("n2")]);
    spec.candidate_ports = vec![port, port + 1];
    spec
}

pub(crate) fn start(home: &Home, spec: &JobSpec) -> Node {
    let folder = spec.run_folder.path().to_owned();
    fs::create_dir_all(&folder).unwrap();
    let file = spec.run_folder.spec();
    fs::write(&file, spec.to_toml()).unwrap();
    let mut command = home.command(env!("CARGO_BIN_EXE_gpu_assigner"));
    command.args(["start", "--foreground", "--spec"]).arg(&file);
    let daemon = command.stdin(Stdio::null()).spawn().unwrap();
    Node { folder, daemon }
}

pub(crate) fn status(home: &Home, folder: &Path) -> Option<serde_json::Value> {
    let mut command = home.command(env!("CARGO_BIN_EXE_gpu_assigner"));
    let output =
        command.arg("--socket-dir").arg(folder).args(["status", "--json"]).output().unwrap();
    output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
}

fn names(status: &serde_json::Value) -> Vec<String> {
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().map(|node| node["node"].as_str().unwrap().to_owned()).collect()
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn an_executor_joins_in_any_order_and_a_stranger_does_not() {
    let home = Home::new();
    let port = free_port();
    // The executor is first.
    let executor = start(&home, &spec(&home, "n2", 1, port));
    eventually("the executor serves", || status(&home, &executor.folder));
    let controller = start(&home, &spec(&home, "n1", 1, port));
    eventually("both are shown", || {
        let status = status(&home, &controller.folder)?;
        (names(&status) == ["n1", "n2"]).then_some(())
    });
    eventually("the executor names its controller", || {
        let status = status(&home, &executor.folder)?;
        let controller = status["nodes"][0]["controller"].as_str()?.to_owned();
        controller.starts_with("n1 at ").then_some(())
    });
    let ready = fs::read_to_string(controller.folder.join("ready.json")).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    assert_eq!(ready["pid"], controller.daemon.id());
    assert_eq!(ready["gpus"].as_array().unwrap().len(), 2);

    // One with another job's key finds the port, but no controller of its own.
    let other = Home::new();
    let stranger = start(&other, &spec(&other, "n2", 2, port));
    let log = stranger.folder.join("assigner.log");
    eventually("the stranger has tried", || {
        fs::read_to_string(&log).ok().filter(|text| text.contains("no controller yet"))
    });
    let alone = status(&other, &stranger.folder).unwrap();
    assert_eq!(alone["nodes"][0]["controller"], "");
    drop(executor);
    eventually("the lost executor is marked", || {
        let status = status(&home, &controller.folder)?;
        let notes = status["nodes"][1]["notes"].to_string();
        notes.contains("not connected").then_some(())
    });
}

#[test]
fn a_spec_that_cannot_be_used_is_told() {
    let home = Home::new();
    let file = home.path("spec.toml");
    fs::write(&file, "job_id = 1\n").unwrap();
    let mut command = home.command(env!("CARGO_BIN_EXE_gpu_assigner"));
    let output = command.args(["start", "--foreground", "--spec"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("spec.toml"), "{}", errors(&output));
}
