//! `gpu_assigner simulate` as a user runs it: table, JSON, log, pictures, exit codes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn scenario(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios").join(name)
}

fn simulate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpu_assigner"))
        .arg("simulate")
        .args(arguments)
        .env_remove("COLUMNS")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .expect("gpu_assigner runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text is UTF-8")
}

#[test]
fn the_table_says_what_came_out() {
    let file = scenario("b6.toml");
    let output = simulate(&[file.to_str().unwrap(), "--timeline"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for line in
        ["makespan", "200.00 s", "share of the bound", "violations", "GPU 1", "waiting for the GPU"]
    {
        assert!(table.contains(line), "{line} is missing in\n{table}");
    }
    assert!(!table.contains('\x1b'), "no colours in a pipe");
    assert!(table.lines().all(|line| line == line.trim_end()), "{table}");
    let colored = simulate(&[file.to_str().unwrap(), "--timeline", "--color", "always"]);
    assert!(text(&colored.stdout).contains("\x1b["));
    let ascii = simulate(&[file.to_str().unwrap(), "--timeline", "--ascii"]);
    assert!(text(&ascii.stdout).is_ascii());
}

#[test]
fn json_log_and_svg_repeat_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let file = scenario("b6.toml");
    let run = |name: &str| {
        let (log, svg) =
            (folder.path().join(format!("{name}.log")), folder.path().join(format!("{name}.svg")));
        let output = simulate(&[
            file.to_str().unwrap(),
            "--json",
            "--spread=1",
            "--seed=5",
            "--log",
            log.to_str().unwrap(),
            "--svg",
            svg.to_str().unwrap(),
        ]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        (output.stdout, std::fs::read(log).unwrap(), std::fs::read(svg).unwrap())
    };
    let (one, two) = (run("one"), run("two"));
    assert!(one == two);
    let report: serde_json::Value = serde_json::from_slice(&one.0).unwrap();
    assert_eq!(report["seed"], 5);
    assert_eq!(report["violations"], serde_json::json!([]));
    assert!(text(&one.1).contains("Acquire"));
    assert!(text(&one.2).starts_with("<svg"));
}

#[test]
fn many_seeds_are_counted_and_spread() {
    let file = scenario("b6.toml");
    let file = file.to_str().unwrap();
    let output = simulate(&[file, "--seeds", "5", "--spread", "1", "--json"]);
    let reports: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let reports = reports.as_array().unwrap();
    let seeds: Vec<u64> = reports.iter().map(|report| report["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [1, 2, 3, 4, 5]);
    assert_ne!(reports[0]["makespan_s"], reports[1]["makespan_s"]);
    let table = text(&simulate(&[file, "--seeds", "5", "--spread", "1"]).stdout);
    assert!(table.contains("5 seeds") && table.contains("median"), "{table}");
    let output = simulate(&[file, "--seeds", "5", "--timeline"]);
    assert_eq!(output.status.code(), Some(2), "one picture of five runs");
}

#[test]
fn another_value_can_be_set_for_one_run() {
    let file = scenario("b4.toml");
    let file = file.to_str().unwrap();
    let run = |values: &[&str]| {
        let set = values.iter().flat_map(|value| ["--set", value]);
        simulate(&[file, "--json"].into_iter().chain(set).collect::<Vec<_>>())
    };
    let report: serde_json::Value =
        serde_json::from_slice(&run(&["client.fx.count=2", "stop_s=60"]).stdout).unwrap();
    assert_eq!((report["clients"].as_u64(), report["end_s"].as_f64()), (Some(2), Some(60.0)));
    let wrong = run(&["client.fy.count=2"]);
    assert_eq!(wrong.status.code(), Some(2));
    let said = text(&wrong.stderr);
    assert!(said.contains("--set client.fy.count=2") && said.contains("\"fx\""), "{said}");
    let refused = run(&["client.count=0"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("count = 0"), "shown as it was read");
}

#[test]
fn what_cannot_be_used_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, "stop_s = 1\n[[node]]\ngpus = 2\n[[client]]\ngpus = 3\ngpu_s = 1\n")
        .unwrap();
    let output = simulate(&[file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(error.contains("bad.toml:5:8") && error.contains("it could never start"), "{error}");
    assert!(output.stdout.is_empty());
    let missing = simulate(&["/nonexistent/scenario.toml"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("cannot be read"));
    let file = scenario("b6.toml");
    let log = simulate(&[file.to_str().unwrap(), "--log", "/nonexistent/log"]);
    assert_eq!(log.status.code(), Some(2));
    assert!(text(&log.stderr).contains("cannot be written"));
}
