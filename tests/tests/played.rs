//! Scenarios of the simulation, played by real programs on software GPUs.

use acb_sim::read::{self, Overrides};
use acb_tests::bench::played::plan::{Plan, Scale};
use acb_tests::bench::played::{self, On, Played};
use acb_tests::lab::Prefix;
use anyhow::{Result, ensure};

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

/// No time is asserted but that measured and simulated runs are of the same work: the simulation is never slower than programs
/// by more than what is noise.
fn is_plausible(played: &Played) -> Result<()> {
    for group in &played.groups {
        let (measured, simulated) = (group.measured.per_hour, group.simulated.per_hour);
        ensure!(measured > 0.0 && measured < 1.1 * simulated, "{played:#?}");
        ensure!(group.measured.latency_p50_s > 0.0, "{played:#?}");
    }
    ensure!(played.share_of_bound > 0.0 && played.share_of_bound < 1.1, "{played:#?}");
    Ok(())
}

#[test]
fn b4_is_measured_and_simulated_from_the_same_file() -> Result<()> {
    let b4 = include_str!("../scenarios/b4.toml");
    let scale = Scale { time: 5.0, memory: 512, rounds: 8 };
    let played = play(b4, &["client.fx.count=4"], scale)?;
    ensure!(played.groups.len() == 1 && played.groups[0].clients == 4, "{played:#?}");
    is_plausible(&played)
}

#[test]
fn b2_swaps_as_in_the_simulation_and_loses_nothing() -> Result<()> {
    let b2 = include_str!("../scenarios/b2.toml");
    let scale = Scale { time: 60.0, memory: 256, rounds: 4 };
    let played = play(b2, &["client.fold.count=3"], scale)?;
    is_plausible(&played)
}
