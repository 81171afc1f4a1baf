//! The figures of the scheduler in virtual time: the scenarios of `tests/scenarios` with the real scheduler.
//!
//! Owns: which scenario gives which figure. Does not own: the simulation ([`acb_sim`]). Nothing here depends on the speed
//! of this machine.

use acb_sim::read::Overrides;
use acb_sim::{Report, Scenario, Watch};
use anyhow::{Context, Result, bail};

use super::figure::Figure;

const B1: &str = include_str!("../../scenarios/b1.toml");
const B1_EVEN: &str = include_str!("../../scenarios/b1_even.toml");
const B4: &str = include_str!("../../scenarios/b4.toml");
const B6: &str = include_str!("../../scenarios/b6.toml");

fn scenario(text: &str, spread: Option<f64>) -> Result<Scenario> {
    Ok(acb_sim::read("scenario", text, Overrides { seed: None, spread })?)
}

/// Plays a scenario; a violated invariant is no figure.
fn report(scenario: &Scenario) -> Result<Report> {
    let outcome = acb_sim::run(scenario, Watch { check: true, ..Watch::default() })?;
    let report = Report::of(scenario, &outcome);
    match report.violations.first() {
        None => Ok(report),
        Some(violation) => bail!("an invariant is violated {violation}"),
    }
}

fn figure(name: &'static str, value: f64, unit: &'static str, how: impl Into<String>) -> Figure {
    Figure { name, value, unit, how: how.into() }
}

/// B1 in steady state: the worse of both forms.
///
/// # Errors
/// A scenario cannot be used, or an invariant is violated.
pub fn b1() -> Result<Vec<Figure>> {
    let both = |spread| -> Result<[Report; 2]> {
        Ok([report(&scenario(B1, Some(spread))?)?, report(&scenario(B1_EVEN, Some(spread))?)?])
    };
    let [coarse, even] = both(0.0)?;
    let constant = [coarse.share_of_bound, even.share_of_bound];
    let random = both(1.0)?.map(|report| report.share_of_exact);
    let [Some(coarse), Some(even)] = random else { bail!("the phases are not exponential") };
    Ok(vec![
        figure(
            "b1_cv0",
            constant[0].min(constant[1]),
            "share",
            format!(
                "share of the bound; c = 487.5 s, g = 112.5 s: {:.4}; c = 525 s, g = 75 s: {:.4}",
                constant[0], constant[1]
            ),
        ),
        figure(
            "b1_cv1",
            coarse.min(even),
            "share",
            format!(
                "share of the finite-source queue's value; c = 487.5 s, g = 112.5 s: {coarse:.4}; c = 525 s, g = 75 s: {even:.4}"
            ),
        ),
    ])
}

/// B4 with eight clients, against one alone.
///
/// # Errors
/// The scenario cannot be used, or an invariant is violated.
pub fn b4() -> Result<Vec<Figure>> {
    let report = report(&scenario(B4, None)?)?;
    let times = report.times_exclusive.context("all clients alternate phases")?;
    let how =
        format!("{:.0} phases/h; GPU busy {:.4}; 2.2222 is possible", report.per_hour, report.busy);
    Ok(vec![figure("b4_8", times, "x", how)])
}

/// B6: the makespan, in strict order and with backfill.
///
/// # Errors
/// The scenario cannot be used, or an invariant is violated.
pub fn b6() -> Result<Vec<Figure>> {
    let mut b6 = scenario(B6, None)?;
    let makespan = |report: Report| report.makespan_s.context("all clients are done");
    let affinity = makespan(report(&b6)?)?;
    for node in &mut b6.nodes {
        node.config.backfill = acb_core::Backfill::Off;
    }
    let fifo = makespan(report(&b6)?)?;
    Ok(vec![
        figure("b6_fifo_s", fifo, "s", "makespan in strict order"),
        figure(
            "b6_affinity_s",
            affinity,
            "s",
            "makespan with gpu-affinity; 175 s if B could run on halves",
        ),
    ])
}
