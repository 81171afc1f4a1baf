//! The scenarios that ship: each is read and played, with every invariant checked after every event. Does not own: the figures
//! that come out (`figures.rs`).

use std::path::PathBuf;

use acb_sim::read::Overrides;
use acb_sim::{Report, Scenario, Watch, run};
use anyhow::{Context, Result};

/// All that ship, so that none gets lost.
const FILES: [&str; 21] = [
    "b1.toml",
    "b1_even.toml",
    "b2.toml",
    "b2_fine.toml",
    "b3.toml",
    "b4.toml",
    "b5.toml",
    "b6.toml",
    "b7.toml",
    "b7_long.toml",
    "b7_memory.toml",
    "b8.toml",
    "b8_bound.toml",
    "b9.toml",
    "fair.toml",
    "gangs.toml",
    "links.toml",
    "promise.toml",
    "promise_memory.toml",
    "queues.toml",
    "sharing.toml",
];

fn files() -> Result<Vec<PathBuf>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    assert_eq!(names, FILES);
    Ok(names.iter().map(|name| folder.join(name)).collect())
}

fn scenario(file: &PathBuf, overrides: Overrides) -> Result<Scenario> {
    let text = std::fs::read_to_string(file)?;
    Ok(acb_sim::read(&file.display().to_string(), &text, overrides)?)
}

fn named(name: &str, spread: f64) -> Result<Scenario> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios").join(name);
    scenario(&file, Overrides { seed: None, spread: Some(spread) })
}

fn play(scenario: &Scenario) -> Result<(Report, String)> {
    let mut log = String::new();
    let watch = Watch { log: Some(&mut log), spans: true, check: true, events: 20_000 };
    let outcome = run(scenario, watch)?;
    Ok((Report::of(scenario, &outcome), log))
}

#[test]
fn every_scenario_runs_without_a_violation() -> Result<()> {
    for file in files()? {
        for spread in [None, Some(0.0), Some(0.5), Some(1.0)] {
            let scenario = scenario(&file, Overrides { seed: None, spread })?;
            let (report, _) = play(&scenario)?;
            assert!(report.violations.is_empty(), "{}: {:?}", file.display(), report.violations);
            assert!(report.events > 0, "{}", file.display());
            assert_eq!(report.promise_beyond_ms, 0.0, "{}", file.display());
        }
    }
    Ok(())
}

#[test]
fn the_same_seed_gives_the_same_log_and_another_one_another() -> Result<()> {
    for file in files()? {
        let with = |seed| scenario(&file, Overrides { seed: Some(seed), spread: Some(1.0) });
        let (one, two, other) = (play(&with(7)?)?, play(&with(7)?)?, play(&with(8)?)?);
        assert_eq!(one.1, two.1, "{}", file.display());
        assert_eq!(one.0, two.0, "{}", file.display());
        assert_ne!(one.1, other.1, "{}", file.display());
    }
    Ok(())
}

#[test]
fn who_slept_through_a_restart_moves_nothing_before_it_is_let_in_again() -> Result<()> {
    for tenth in 100..200 {
        let text = format!(
            r#"
title = "a stop, and a restart meanwhile"
stop_s = 90
[costs]
message_us = 50
[[node]]
name = "n"
memory_gib = 4
link_gb_s = 1
chunk_mib = 512
[[client]]
name = "a"
cpu_s = 0.3
gpu_s = 1
memory_gib = 3
read_only_gib = 3
[[client]]
name = "b"
cpu_s = 0.5
gpu_s = 1
memory_gib = 3
read_only_gib = 3
[[fault]]
at_s = {}
stop = "a"
for_s = 30
[[fault]]
at_s = 30
restart = "n"
for_s = 1
"#,
            f64::from(tenth) / 10.0
        );
        let scenario = acb_sim::read("restart", &text, Overrides::default())?;
        let (report, _) = play(&scenario)?;
        assert_eq!(report.violations.len(), 0, "stopped at {tenth}: {:?}", report.violations);
    }
    Ok(())
}

#[test]
fn gangs_over_nodes_are_served_whatever_goes_wrong_between_them() -> Result<()> {
    let scenario = named("gangs.toml", 1.0)?;
    let outcome = run(&scenario, Watch { check: true, ..Watch::default() })?;
    assert_eq!(outcome.violations, []);
    let done = outcome.finished.iter().flatten().count();
    assert_eq!(done + outcome.kills as usize, scenario.clients.len(), "{:?}", outcome.refused);
    assert!(outcome.kills > 0);
    Ok(())
}
