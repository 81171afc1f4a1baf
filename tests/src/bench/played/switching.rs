//! The figure `switch_time_share`: what of a GPU's time is lost to moving memory where several programs always want it.
//!
//! Owns: the scenario, and what is asked of it. Does not own: how it is played ([`super::play`]).

use anyhow::{Context, Result, ensure};

use super::plan::{Plan, Scale};
use super::{On, play};
use crate::bench::figure::Figure;
use crate::bench::measure::Effort;
use crate::lab::Prefix;

const B2_FINE: &str = include_str!("../../../scenarios/b2_fine.toml");
/// Programs that are back before their lease counts as idle, and a quantum so short that only the rule for switches makes a lease last.
const CONTENDED: [&str; 2] = ["client.fold.cpu_s=0.001", "scheduler.quantum_ms=10"];

/// B2's fine form, by programs that always want the GPU.
///
/// # Errors
/// A program fails, or finds wrong data.
pub fn switch_time_share(prefix: &Prefix, effort: Effort) -> Result<Vec<Figure>> {
    let mut text = B2_FINE.to_owned();
    for value in CONTENDED {
        text = acb_sim::read::set(&text, value).with_context(|| value.to_owned())?;
    }
    let scenario = acb_sim::read("b2_fine", &text, acb_sim::read::Overrides::default())?;
    let rounds = if effort == Effort::Quick { 150 } else { 400 };
    let plan = Plan::new(scenario, Scale { time: 10.0, memory: 128, rounds })?;
    let asked = plan.node().config.switch_share;
    let played = play(prefix, &plan, On::Software)?;
    ensure!(played.wrong == 0, "{} of {} bytes were wrong", played.wrong, played.checked);
    Ok(vec![Figure {
        name: "switch_time_share",
        value: played.switching,
        unit: "share",
        how: format!(
            "{} programs of B2's fine form without CPU phases, quantum 10 ms: time from grants until all memory is there, of all \
             time in the steady state; at most {asked} is asked (switch_share); simulated {:.3}",
            plan.scenario.clients.len(),
            played.simulated_switching
        ),
    }])
}
