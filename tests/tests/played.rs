//! Scenarios of the simulation, played by real programs on software GPUs.

use std::process::Command;

use acb_sim::read::{self, Overrides};
use acb_tests::bench::played::plan::{Plan, Scale};
use acb_tests::bench::played::{self, On, Played};
use acb_tests::lab::Prefix;
use anyhow::{Result, ensure};
use tempfile::TempDir;

fn play(text: &str, values: &[&str], scale: Scale) -> Result<Played> {
    let mut text = text.to_owned();
    for value in values {
        text = read::set(&text, value)?;
    }
    let scenario = acb_sim::read("scenario", &text, Overrides::default())?;
    let played = played::play(&Prefix::from_env()?, &Plan::new(scenario, scale)?, On::Software)?;
    // All data is right whatever was moved.
    ensure!(played.wrong == 0 && played.checked > 0, "{played:#?}");
    Ok(played)
}

/// No time is asserted but bounds that nothing can exceed: phases are never shorter than the scenario says, and memory that does
/// not fit is never copied faster than the link. So measured throughput is at most the bound of those lengths, beyond which only the
/// phases count that the window cuts.
fn is_plausible(played: &Played, rounds: u64) -> Result<()> {
    for group in &played.groups {
        let (measured, simulated) = (group.measured.per_hour, group.simulated.per_hour);
        ensure!(measured > 0.0 && measured < 1.1 * simulated, "{played:#?}");
        ensure!(group.measured.latency_p50_s > 0.0, "{played:#?}");
    }
    ensure!(played.share_of_bound > 0.0, "{played:#?}");
    ensure!(played.share_of_stated_bound > 0.0, "{played:#?}");
    ensure!(played.share_of_stated_bound <= 1.0 + 0.5 / rounds as f64, "{played:#?}");
    Ok(())
}

#[test]
fn b4_is_measured_and_simulated_from_the_same_file() -> Result<()> {
    let b4 = include_str!("../scenarios/b4.toml");
    let scale = Scale { time: 5.0, memory: 512, rounds: 8 };
    let played = play(b4, &["client.fx.count=4"], scale)?;
    ensure!(played.groups.len() == 1 && played.groups[0].clients == 4, "{played:#?}");
    is_plausible(&played, scale.rounds)
}

/// Of 10 GiB each on 16, every change of the holder moves 4 at least.
fn least_switch_s(scale: Scale) -> f64 {
    let (moved, link) = ((4u64 << 30) as f64 / scale.memory as f64, 25e9 / scale.memory as f64);
    moved / (link * scale.time)
}

#[test]
fn b2_swaps_as_in_the_simulation_and_loses_nothing() -> Result<()> {
    let b2 = include_str!("../scenarios/b2.toml");
    let scale = Scale { time: 60.0, memory: 256, rounds: 4 };
    let played = play(b2, &["client.fold.count=3"], scale)?;
    is_plausible(&played, scale.rounds)?;
    // Each of three comes back in each of its further rounds, and at most one at a time finds all of its memory there.
    ensure!(played.simulated_switching > 0.0, "{played:#?}");
    ensure!(played.switch_s >= 3.0 * least_switch_s(scale), "{played:#?}");
    Ok(())
}

#[test]
fn programs_keep_within_their_limits_when_they_share_a_gpu() -> Result<()> {
    let sharing = include_str!("../scenarios/sharing.toml");
    let scale = Scale { time: 5.0, memory: 512, rounds: 4 };
    let played = play(sharing, &[], scale)?;
    ensure!(played.groups.iter().all(|group| group.measured.per_hour > 0.0), "{played:#?}");
    Ok(())
}

/// Three programs of 40 MiB on a GPU of 64 MiB: of a bigger one, the rest is taken.
const SMALL: &str = r#"
title = "three on one"
stop_s = 60

[scheduler]
quantum_ms = 300

[[node]]
gpus = 1
memory_gib = 0.0625

[[client]]
name = "fold"
count = 3
cpu_s = 0.3
gpu_s = 0.1
memory_gib = 0.0390625
kernel_ms = 5
"#;

/// `acb-bench --scenario FILE --real` in a folder of its own.
struct Real {
    folder: TempDir,
    prefix: Prefix,
}

impl Real {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("acb-real-").tempdir_in("/tmp")?;
        std::fs::write(folder.path().join("small.toml"), SMALL)?;
        let state = folder.path().file_name().unwrap_or_default().to_string_lossy();
        let gpu = "[[gpu]]\nname = \"T\"\nmemory = \"2GiB\"\n".repeat(2);
        let link = "link_in = 400000000\nlink_out = 400000000\n";
        let simcuda = format!("state = \"{state}\"\ncontext_bytes = 1048576\n{link}{gpu}");
        std::fs::write(folder.path().join("simcuda.toml"), simcuda)?;
        Ok(Real { prefix: Prefix::from_env()?, folder })
    }

    /// The software GPU's libraries are those of the system: nothing else says that they are no real ones.
    fn bench(&self) -> Command {
        let mut command = Command::new(self.prefix.test_program("acb-bench"));
        let of_the_system = |name: &str| self.prefix.test_program("sim").join(name);
        command
            .current_dir(self.folder.path())
            .args(["--scenario", "small.toml", "--real", "--rounds", "4", "--json", "played.json"])
            .env("ACB_PREFIX", self.prefix.root())
            .env("ACB_DRIVER", of_the_system("libcuda.so.1"))
            .env("ACB_NVML", of_the_system("libnvidia-ml.so.1"))
            .env("SIMCUDA_CONFIG", self.folder.path().join("simcuda.toml"))
            .env_remove("CUDA_VISIBLE_DEVICES");
        command
    }

    fn refused(&self, change: impl FnOnce(&mut Command)) -> Result<String> {
        let mut command = self.bench();
        change(&mut command);
        let output = command.output()?;
        ensure!(!output.status.success(), "{output:?}");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let state = self.folder.path().file_name().unwrap_or_default().to_string_lossy();
        for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("simcuda-") && name.ends_with(&format!("-{state}")) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

#[test]
fn the_same_file_is_played_on_the_gpus_of_a_machine() -> Result<()> {
    let real = Real::new()?;
    let output = real.bench().output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said.contains("switching") && said.contains(" 0 bytes wrong"), "{said}");
    let json = std::fs::read_to_string(real.folder.path().join("played.json"))?;
    let played: Played = serde_json::from_str(&json)?;
    is_plausible(&played, 4)?;
    ensure!(played.wrong == 0 && played.checked > 0, "{played:#?}");
    // They fit into the GPU of 2 GiB that is there, but not into the one of the scenario: 16 MiB at least move with each change
    // of the holder, over the machine's own link.
    let least_s = f64::from(16 << 20) / 4e8;
    ensure!(played.simulated_switching > 0.0 && played.switch_s >= 3.0 * least_s, "{played:#?}");
    Ok(())
}

#[test]
fn what_a_machine_lacks_is_named() -> Result<()> {
    let real = Real::new()?;
    let nowhere = |variable: &'static str, name: &str| {
        let path = format!("/nowhere/{name}");
        real.refused(|command| {
            command.env(variable, path);
        })
    };
    for (variable, name) in [("ACB_NVML", "libnvidia-ml.so.1"), ("ACB_DRIVER", "libcuda.so.1")] {
        let said = nowhere(variable, name)?;
        ensure!(said.contains(&format!("{variable}=/nowhere/{name} is not there")), "{said}");
    }
    // A library that is no driver, as where it was not installed.
    let said = real.refused(|command| {
        command.env("ACB_NVML", real.prefix.library().join("libacb-audit.so"));
    })?;
    ensure!(said.contains("--real plays on 1 of this machine's GPUs"), "{said}");
    let said = real.refused(|command| {
        command.args(["--set", "node.gpus=3"]);
    })?;
    ensure!(said.contains("GPU 2 is not on this node"), "{said}");
    let said = real.refused(|command| {
        command.args(["--set", "node.gpus=2"]).env("CUDA_VISIBLE_DEVICES", "1");
    })?;
    ensure!(said.contains("CUDA_VISIBLE_DEVICES=1 are 1 GPUs, but the scenario has 2"), "{said}");
    let said = real.refused(|command| {
        let more = ["--set", "node.memory_gib=4", "--set", "client.fold.memory_gib=3"];
        command.args(more);
    })?;
    ensure!(said.contains("\"fold-0\" has 3072 MiB"), "{said}");
    Ok(())
}
