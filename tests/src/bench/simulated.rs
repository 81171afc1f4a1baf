//! The figures of the scheduler in virtual time: the scenarios of `tests/scenarios` with the real scheduler.
//!
//! Owns: which scenario gives which figure. Does not own: the simulation ([`acb_sim`]). Nothing here depends on the speed
//! of this machine.

use std::sync::atomic::{AtomicU64, Ordering};

use acb_sim::read::Overrides;
use acb_sim::{Report, Scenario, Watch, soak};
use anyhow::{Context, Result, bail};

use super::figure::Figure;
use super::measure::Effort;

const B1: &str = include_str!("../../scenarios/b1.toml");
const B1_EVEN: &str = include_str!("../../scenarios/b1_even.toml");
const B4: &str = include_str!("../../scenarios/b4.toml");
const B6: &str = include_str!("../../scenarios/b6.toml");
const B7: &str = include_str!("../../scenarios/b7.toml");
const B7_LONG: &str = include_str!("../../scenarios/b7_long.toml");
const B7_MEMORY: &str = include_str!("../../scenarios/b7_memory.toml");
const B8: &str = include_str!("../../scenarios/b8.toml");
const B8_BOUND: &str = include_str!("../../scenarios/b8_bound.toml");
const PROMISE: &str = include_str!("../../scenarios/promise.toml");
const PROMISE_MEMORY: &str = include_str!("../../scenarios/promise_memory.toml");

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

/// B4 with eight clients, against one alone; fewer are told beside them.
///
/// # Errors
/// The scenario cannot be used, or an invariant is violated.
pub fn b4() -> Result<Vec<Figure>> {
    let with = |clients: u32| -> Result<(Report, f64)> {
        let text = acb_sim::read::set(B4, &format!("client.fx.count={clients}"))?;
        let report = report(&scenario(&text, None)?)?;
        let times = report.times_exclusive.context("all clients alternate phases")?;
        Ok((report, times))
    };
    let ((_, two), (_, four), (report, eight)) = (with(2)?, with(4)?, with(8)?);
    let how = format!(
        "{:.0} phases/h; GPU busy {:.4}; 2.2222 is possible; 2 clients {two:.3} of 2, 4 clients {four:.3}",
        report.per_hour, report.busy
    );
    Ok(vec![figure("b4_8", eight, "x", how)])
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

/// B7: the requests' 99th percentile against the same requests alone, and what the hog keeps of the rest. The figures are
/// those of kernels of 5 ms, the worse of programs without memory and with; those of 200 ms are told beside them.
///
/// # Errors
/// A scenario cannot be used, or an invariant is violated.
pub fn b7() -> Result<Vec<Figure>> {
    struct B7 {
        alone_s: f64,
        p99_s: f64,
        kept: f64,
    }
    let measure = |text| -> Result<B7> {
        let mut both = scenario(text, None)?;
        let shared = report(&both)?;
        both.clients.retain(|client| client.group == 0);
        let alone = report(&both)?;
        let (requests, hog) = (&shared.groups[0], &shared.groups[1]);
        Ok(B7 {
            alone_s: alone.groups[0].latency_p99_s,
            p99_s: requests.latency_p99_s,
            kept: hog.busy / (1.0 - requests.busy),
        })
    };
    let (short, long, memory) = (measure(B7)?, measure(B7_LONG)?, measure(B7_MEMORY)?);
    let ratio = |b7: &B7| b7.p99_s / b7.alone_s;
    let how = format!(
        "p99 {:.2} ms, alone {:.2} ms; with memory that fits {:.2} ms, alone {:.2} ms; kernels of 200 ms: {:.2} x, {:.2} ms",
        short.p99_s * 1e3,
        short.alone_s * 1e3,
        memory.p99_s * 1e3,
        memory.alone_s * 1e3,
        ratio(&long),
        long.p99_s * 1e3
    );
    let kept =
        format!("of the GPU's time that no request takes; kernels of 200 ms: {:.4}", long.kept);
    Ok(vec![
        figure("b7_p99_ratio", ratio(&short).max(ratio(&memory)), "x", how),
        figure("b7_hog_kept", short.kept.min(memory.kept), "share", kept),
    ])
}

/// B8: how much later than after the longest kernel and the swap a tenant gets what it is guaranteed; and kills. The worse of
/// clients that any GPU will do for, and of programs with memory that are bound to theirs.
///
/// # Errors
/// A scenario cannot be used, or an invariant is violated.
pub fn b8() -> Result<Vec<Figure>> {
    let (free, bound) = (report(&scenario(B8, None)?)?, report(&scenario(B8_BOUND, None)?)?);
    let how = format!(
        "the slowest of {} requests within a guarantee, and of {} with memory; GPUs busy {:.4}, {:.4}",
        free.reclaims, bound.reclaims, free.busy, bound.busy
    );
    let beyond = free.reclaim_beyond_ms.max(bound.reclaim_beyond_ms);
    let preemptions = free.preemptions + bound.preemptions;
    Ok(vec![
        figure("b8_reclaim_over_bound_ms", beyond, "ms", how),
        figure(
            "b8_kills",
            (free.kills + bound.kills) as f64,
            "clients",
            format!("{preemptions} preemptions"),
        ),
    ])
}

/// The latest start after its promise, beyond longest kernel and swap, with estimates 1000 times too long and too short; the
/// worse of clients without memory and with.
///
/// # Errors
/// A scenario cannot be used, or an invariant is violated.
pub fn promise() -> Result<Vec<Figure>> {
    let both = [report(&scenario(PROMISE, None)?)?, report(&scenario(PROMISE_MEMORY, None)?)?];
    let [free, paged] = &both;
    let how = format!(
        "beyond longest kernel and swap; {:.3} ms with them, {:.3} ms with memory; {} and {} promises",
        free.promise_late_ms, paged.promise_late_ms, free.promises, paged.promises
    );
    let beyond = free.promise_beyond_ms.max(paged.promise_beyond_ms);
    Ok(vec![figure("promise_late_ms", beyond, "ms", how)])
}

/// Random scenarios with every check, on all cores.
///
/// # Errors
/// None.
pub fn seeds(effort: Effort) -> Result<Vec<Figure>> {
    let seeds = u64::from(effort.times(100_000));
    let next = AtomicU64::new(0);
    let play = || -> Vec<u64> {
        std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed))
            .take_while(|seed| *seed < seeds)
            .filter(|seed| !soak::play(&soak::scenario(*seed), 1000).violations.is_empty())
            .collect()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut failed: Vec<u64> = std::thread::scope(|scope| {
        let players: Vec<_> = (0..cores).map(|_| scope.spawn(play)).collect();
        players.into_iter().flat_map(|it| it.join().expect("a player does not panic")).collect()
    });
    failed.sort_unstable();
    let how = format!("of {seeds} seeds of 1000 events; failed: {failed:?}");
    Ok(vec![figure("seeds_violations", failed.len() as f64, "seeds", how)])
}
