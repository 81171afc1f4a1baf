//! ACB's `--multinode`: a controller and an executor by `$HOME/.acb/multinode.toml`.
//!
//! Both run on this machine, at two loopback addresses, each in a UTS namespace with the name of
//! its host. That takes root; without, the tests say so.

use std::fs;
use std::net::TcpListener;
use std::process::Output;

use crate::support::{Home, errors, eventually, words};

const CONTROLLER: &str = "acb-one";
const EXECUTOR: &str = "acb-two";

/// Two hosts with one home.
struct Cluster {
    home: Home,
    port: u16,
}

impl Cluster {
    /// `None` where hosts cannot be made up.
    fn new() -> Option<Cluster> {
        let home = Home::new();
        let port = TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap().port();
        let cluster = Cluster { home, port };
        let table = |host: &str, role: &str, address: &str| {
            let file = |kind: &str| cluster.home.path(&format!("{host}.{kind}"));
            format!(
                "[{host}]\ntype = \"{role}\"\nipaddr = \"{address}\"\nport = {port}\nlogfile = {:?}\npidfile = {:?}\n",
                file("log"),
                file("pid"),
            )
        };
        fs::create_dir(cluster.home.path(".acb")).unwrap();
        let tables = [
            table(CONTROLLER, "controller", "127.0.0.1"),
            table(EXECUTOR, "executor", "127.0.0.2"),
        ];
        fs::write(cluster.home.path(".acb/multinode.toml"), tables.concat()).unwrap();
        let possible = cluster.on(CONTROLLER, &["--version"]).status.success();
        if !possible {
            eprintln!("skipped: needs root and unshare, to give a process a host name");
        }
        possible.then_some(cluster)
    }

    /// Runs `gpu_assigner --multinode …` on one of the hosts.
    fn on(&self, host: &str, arguments: &[&str]) -> Output {
        let script = format!("echo {host} > /proc/sys/kernel/hostname && exec \"$@\"");
        let mut command = self.home.command("unshare");
        command.args(["--uts", "sh", "-c", &script, "sh"]);
        command.args([env!("CARGO_BIN_EXE_gpu_assigner"), "--multinode"]).args(arguments);
        command.output().unwrap()
    }

    fn start(&self, host: &str) {
        let output = self.on(host, &["start"]);
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        let at = if host == CONTROLLER { "127.0.0.1" } else { "127.0.0.2" };
        let said = format!("INFO: Successfully started GPU Assigner on {at}:{}\n", self.port);
        assert_eq!(words(&output), said);
    }

    fn status(&self, host: &str) -> serde_json::Value {
        let output = self.on(host, &["status", "--json"]);
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn roles(&self, host: &str) -> Vec<(String, String)> {
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let status = self.status(host);
        let nodes = status["nodes"].as_array().unwrap();
        nodes.iter().map(|node| (text(&node["node"]), text(&node["role"]))).collect()
    }

    fn expect_both(&self) {
        let pair = |host: &str, role: &str| (host.to_owned(), role.to_owned());
        let (one, two) = (pair(CONTROLLER, "controller"), pair(EXECUTOR, "executor"));
        eventually("the controller shows both", || {
            (self.roles(CONTROLLER) == [one.clone(), two.clone()]).then_some(())
        });
        eventually("the executor names its controller", || {
            let status = self.status(EXECUTOR);
            let controller = status["nodes"][0]["controller"].as_str()?.to_owned();
            controller.starts_with(&format!("{CONTROLLER} at ")).then_some(())
        });
        assert_eq!(self.roles(EXECUTOR), [two]);
        let output = self.on(CONTROLLER, &["status"]);
        assert!(words(&output).contains(EXECUTOR), "{}", words(&output));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for host in [CONTROLLER, EXECUTOR] {
            let _ = self.on(host, &["stop"]);
        }
    }
}

#[test]
fn executors_first_as_acb_demands() {
    let Some(cluster) = Cluster::new() else { return };
    cluster.start(EXECUTOR);
    let alone = cluster.status(EXECUTOR);
    assert!(alone["nodes"][0]["notes"].to_string().contains("controller does not answer"));
    cluster.start(CONTROLLER);
    cluster.expect_both();
    let output = cluster.on(EXECUTOR, &["stop"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(cluster.on(EXECUTOR, &["status"]).status.code(), Some(69));
    eventually("the controller says so", || {
        let status = cluster.status(CONTROLLER);
        status["nodes"][1]["notes"].to_string().contains("not connected").then_some(())
    });
}

#[test]
fn the_controller_first() {
    let Some(cluster) = Cluster::new() else { return };
    cluster.start(CONTROLLER);
    cluster.start(EXECUTOR);
    cluster.expect_both();
}

#[test]
fn a_host_that_is_not_in_the_file_is_told() {
    let Some(cluster) = Cluster::new() else { return };
    let output = cluster.on("acb-three", &["start"]);
    assert_eq!(output.status.code(), Some(1));
    let text = errors(&output);
    assert!(text.contains("acb-three") && text.contains("multinode.toml"), "{text}");
}
