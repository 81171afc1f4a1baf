//! The figures that follow from theory come out of the scenarios that ship, in the forms that they are published in. Time is
//! virtual: these are no measurements.

use std::path::PathBuf;
use std::time::Duration;

use acb_sim::read::{self, Overrides};
use acb_sim::{Report, Scenario, Watch, run};
use anyhow::{Context, Result};

/// A scenario that ships, with a spread for all phases and other values, as in `--set`.
fn with(name: &str, spread: f64, values: &[&str]) -> Result<Scenario> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios").join(name);
    let mut text = std::fs::read_to_string(&file).with_context(|| name.to_owned())?;
    for value in values {
        text = read::set(&text, value)?;
    }
    Ok(acb_sim::read(name, &text, Overrides { seed: None, spread: Some(spread) })?)
}

fn named(name: &str, spread: f64) -> Result<Scenario> {
    with(name, spread, &[])
}

/// Plays a scenario with every check.
fn figures(scenario: &Scenario) -> Result<Report> {
    let outcome = run(scenario, Watch { check: true, ..Watch::default() })?;
    let report = Report::of(scenario, &outcome);
    assert_eq!(report.violations, [""; 0], "{}", scenario.title);
    Ok(report)
}

fn between(value: f64, low: f64, high: f64) {
    assert!((low..=high).contains(&value), "{value} is not from {low} to {high}");
}

#[test]
fn b1_reaches_the_bound_and_with_random_phases_the_exact_value() -> Result<()> {
    for file in ["b1.toml", "b1_even.toml"] {
        let constant = figures(&named(file, 0.0)?)?;
        assert!(constant.share_of_bound >= 0.97, "{file}: {}", constant.share_of_bound);
        let random = figures(&named(file, 1.0)?)?;
        let share = random.share_of_exact.context("all phases are exponential")?;
        // No order of service does better, but for the luck of the sample.
        assert!((0.97..1.03).contains(&share), "{file}: {share}");
    }
    Ok(())
}

#[test]
fn b1_on_a_gpu_that_is_too_small_for_all_loses_next_to_nothing() -> Result<()> {
    for file in ["b1.toml", "b1_even.toml"] {
        let report = figures(&with(file, 0.0, &["node.memory_gib=40", "stop_s=180_000"])?)?;
        assert!(report.bytes_in > 1 << 40, "{}", report.bytes_in);
        assert!(report.share_of_bound >= 0.97, "{file}: {}", report.share_of_bound);
    }
    Ok(())
}

#[test]
fn b2_moves_memory_instead_of_running_out_of_it() -> Result<()> {
    for clients in [4, 8] {
        let count = format!("client.fold.count={clients}");
        let coarse = figures(&with("b2.toml", 0.0, &[&count])?)?;
        assert_eq!(coarse.out_of_memory, 0);
        assert!(coarse.bytes_in > 0 && coarse.bytes_out > 0);
        // 4 of 10 GiB come after the one before has gone, at 25 GB/s.
        between(coarse.switch_s, 0.1717, 0.1719);
        between(coarse.share_of_bound, 0.99, 1.0);
        between(coarse.times_exclusive.context("they alternate")?, 3.2, 60.0 / 18.17);
        // Phases as long as switches: the bound says what can be had.
        let fine = figures(&with("b2_fine.toml", 0.0, &[&count, "stop_s=600"])?)?;
        assert_eq!(fine.out_of_memory, 0);
        between(fine.bound, 0.635, 0.637);
        between(fine.share_of_bound, 0.98, 1.0);
    }
    Ok(())
}

#[test]
fn switching_costs_those_that_always_compute_no_more_than_they_are_told() -> Result<()> {
    for (file, share) in [("b2.toml", 0.1), ("b2_fine.toml", 0.1), ("b2_fine.toml", 0.03)] {
        let share_said = format!("scheduler.switch_share={share}");
        let values = ["client.fold.cpu_s=0", "stop_s=1800", &share_said];
        let report = figures(&with(file, 0.5, &values)?)?;
        assert!(report.preemptions > 10, "{file}: {}", report.preemptions);
        assert_eq!(report.switch_share, share);
        let most = report.switching_of.iter().copied().fold(0.0, f64::max);
        assert!(0.0 < most && most <= share, "{file}: {most} of {share}");
        between(report.busy + report.switching, 0.999, 1.0 + 1e-9);
    }
    Ok(())
}

#[test]
fn b3_loses_a_few_messages_with_each_grant() -> Result<()> {
    let report = figures(&named("b3.toml", 0.0)?)?;
    // Acquire and Grant, or Wanted on the way to the holder and Release back: four messages of 15 us at most.
    between(report.groups[0].wait_p99_s, 30e-6, 60.5e-6);
    between(report.share_of_bound, 0.997, 0.999);
    Ok(())
}

#[test]
fn b4_serves_eight_clients_like_more_than_two_gpus() -> Result<()> {
    for (clients, low, high) in [(2, 1.99, 2.0), (4, 2.15, 2.223), (8, 2.15, 2.223)] {
        let report = figures(&with("b4.toml", 0.0, &[&format!("client.fx.count={clients}")])?)?;
        assert_eq!((report.clients, report.bytes_in), (clients, 0));
        between(report.times_exclusive.context("all clients alternate phases")?, low, high);
    }
    Ok(())
}

#[test]
fn b5_answers_faster_and_moves_less_the_more_gpus_there_are() -> Result<()> {
    let on =
        |gpus: u32| figures(&with("b5.toml", 0.5, &[&format!("node.gpus={gpus}"), "stop_s=3600"])?);
    let [one, two, four] = [on(1)?, on(2)?, on(4)?];
    let [p50, p99] = [0, 1].map(|p| {
        [&one, &two, &four].map(|report| {
            let group = &report.groups[0];
            if p == 0 { group.latency_p50_s } else { group.latency_p99_s }
        })
    });
    assert!(p50[0] > p50[1] && p50[1] > p50[2], "{p50:?}");
    assert!(p99[0] > p99[1] && p99[1] > p99[2], "{p99:?}");
    // One GPU has work for 97 % of its time, and bursts: that is the load. Two are half idle: the median is a burst's queue and
    // at most one model's way in (0.86 s), beside 0.5 s of computing.
    between(p50[1], 0.5, 3.0);
    between(p50[2], 0.5, 1.5);
    // Ten models of 20 GiB fit on four GPUs of 80: once there, nothing moves. What is only read is never copied out again.
    assert_eq!((four.bytes_in, four.bytes_out), (0, 0));
    for report in [&one, &two] {
        assert!(report.bytes_in > 3 * report.bytes_out, "{report:?}");
        // No request moves more than its model.
        assert!(report.bytes_in <= report.switches * 20 * (1 << 30), "{}", report.bytes_in);
    }
    assert!(one.bytes_in > 2 * two.bytes_in);
    Ok(())
}

#[test]
fn b6_takes_250_s_in_strict_order_and_200_s_with_backfill() -> Result<()> {
    let mut scenario = named("b6.toml", 0.0)?;
    assert_eq!(figures(&scenario)?.makespan_s, Some(200.0));
    scenario.nodes[0].config.backfill = acb_core::Backfill::Off;
    assert_eq!(figures(&scenario)?.makespan_s, Some(250.0));
    Ok(())
}

#[test]
fn b6_keeps_its_promise_when_an_estimate_is_wrong() -> Result<()> {
    let mut scenario = named("b6.toml", 0.0)?;
    // C says that it will be done in 500 ms, takes 500 s, and is asked to stop when B could start.
    scenario.clients[2].expectation = acb_sim::scenario::Expectation::Times(0.001);
    if let acb_sim::scenario::Work::Rounds { gpu, .. } = &mut scenario.clients[2].work {
        gpu.mean = Duration::from_secs(500);
    }
    let report = figures(&scenario)?;
    let b = &report.groups[1];
    assert_eq!((b.wait_p99_s, b.latency_p99_s), (100.0, 150.0));
    assert_eq!(report.promise_late_ms, 0.0);
    Ok(())
}

#[test]
fn b7_lets_requests_through_and_keeps_the_hog_busy() -> Result<()> {
    let mut scenario = named("b7.toml", 0.0)?;
    scenario.stop = Some(Duration::from_secs(2000));
    let shared = figures(&scenario)?;
    scenario.clients.retain(|client| client.group == 0);
    let alone = figures(&scenario)?;
    let kept = shared.groups[1].busy / (1.0 - shared.groups[0].busy);
    assert!(kept >= 0.9, "{kept}");
    // No request waits for more than the kernel that runs when it comes.
    let added = shared.groups[0].latency_p99_s - alone.groups[0].latency_p99_s;
    assert!(added <= 0.0051, "{added}");
    Ok(())
}

#[test]
fn b8_takes_back_what_is_guaranteed_and_kills_nobody() -> Result<()> {
    let report = figures(&named("b8.toml", 1.0)?)?;
    assert!(report.reclaims > 100, "{}", report.reclaims);
    assert_eq!((report.reclaim_beyond_ms, report.kills), (0.0, 0));
    assert!(report.busy > 0.99, "what nobody wants is lent: {}", report.busy);
    Ok(())
}

#[test]
fn promises_hold_with_estimates_a_thousand_times_wrong() -> Result<()> {
    let report = figures(&named("promise.toml", 1.0)?)?;
    assert!(report.promises > 1000 && report.promise_late_ms > 0.0);
    assert_eq!(report.promise_beyond_ms, 0.0);
    Ok(())
}

#[test]
fn a_gang_over_two_nodes_survives_what_b9_does_to_them() -> Result<()> {
    let mut log = String::new();
    let scenario = named("b9.toml", 1.0)?;
    let outcome = run(&scenario, Watch { check: true, log: Some(&mut log), ..Watch::default() })?;
    assert_eq!(outcome.violations, []);
    let ring: Vec<usize> = (0..scenario.clients.len())
        .filter(|client| scenario.clients[*client].gang.is_some())
        .collect();
    let done_after = |at: u64| {
        let later = |done: &&acb_sim::world::Done| done.done.0 > at * 1_000_000_000;
        outcome.done.iter().filter(later).filter(|done| ring.contains(&done.client)).count()
    };
    // While one of the nodes is cut off, 150 s to 170 s, no round begins; afterwards they go on.
    let during = done_after(153) - done_after(168);
    assert!(during <= 2 && done_after(180) > 20, "{during}, {}", done_after(180));
    Ok(())
}

#[test]
fn queues_have_their_policies_limits_and_order() -> Result<()> {
    let report = figures(&named("queues.toml", 0.5)?)?;
    let [train, notebook, batch] = &report.groups[..] else { panic!("{:?}", report.groups) };
    assert_eq!((report.refused, report.out_of_memory), (0, 0));
    // The first queue waits for the longest kernel of the others, and nothing else.
    between(train.wait_p99_s, 0.0, 0.0501);
    assert!(notebook.wait_p50_s < batch.wait_p50_s, "{report:?}");
    // A third of two GPUs at most is theirs, and half of them what batch may have.
    assert!(batch.busy > 0.2 && batch.busy <= 0.5, "{}", batch.busy);
    Ok(())
}

#[test]
fn tenants_get_gpu_time_by_weight_and_their_clients_the_same() -> Result<()> {
    for spread in [0.0, 0.5, 1.0] {
        let report = figures(&named("fair.toml", spread)?)?;
        let shares: Vec<f64> = report.groups.iter().map(|group| group.busy).collect();
        for (share, fair) in shares.iter().zip([0.25, 0.25, 0.5]) {
            between(*share, fair - 0.005, fair + 0.005);
        }
        between(report.jain, 0.999, 1.0);
        between(report.busy, 0.999, 1.0);
        let lags = [report.fairness_lag, report.fairness_lag_within];
        for lag in lags.map(|lag| lag.expect("all of them always want the GPU")) {
            assert!(lag.most_s > 1.0 && lag.most_s <= lag.bound_s, "{lag:?}");
        }
    }
    Ok(())
}

#[test]
fn clients_are_spread_over_gpus_and_links_and_their_memory_fits_the_host() -> Result<()> {
    let report = figures(&with("links.toml", 0.5, &["stop_s=600"])?)?;
    assert_eq!((report.out_of_memory, report.refused), (0, 0));
    let (least, most) = report
        .switching_of
        .iter()
        .fold((f64::MAX, 0f64), |(least, most), s| (least.min(*s), most.max(*s)));
    assert!(most < 1.2 * least, "all GPUs have two clients each: {:?}", report.switching_of);
    // With a link for each, switching takes less; with one for all four, more.
    let on = |links: &str| figures(&with("links.toml", 0.5, &[links, "stop_s=600"])?);
    let (own, one) = (on("node.links=[0, 1, 2, 3]")?, on("node.links=[0, 0, 0, 0]")?);
    let all = [own.switching, report.switching, one.switching];
    assert!(1.05 * all[0] < all[1] && 1.05 * all[1] < all[2], "{all:?}");
    // A ninth has no place on the host.
    let nine = figures(&with("links.toml", 0.5, &["client.swap.count=9", "stop_s=60"])?)?;
    assert_eq!((nine.out_of_memory, nine.refused), (1, 1));
    Ok(())
}

#[test]
fn programs_that_share_a_gpu_do_so_while_they_fit() -> Result<()> {
    let report = figures(&named("sharing.toml", 0.5)?)?;
    assert_eq!(report.out_of_memory, 0);
    // Five that want it half of the time: 2.5 of 3 places at best.
    between(report.bound, 2.4, 2.6);
    between(report.busy, 1.9, 2.6);
    let alone = figures(&with("sharing.toml", 0.5, &["scheduler.policy=gpu-affinity"])?)?;
    assert!(alone.busy <= 1.0 && report.per_hour > 2.0 * alone.per_hour);
    // Three at a time: never a fourth.
    let wide = figures(&with("sharing.toml", 0.0, &["client.share.cpu_s=0", "stop_s=600"])?)?;
    between(wide.busy, 1.0, 3.0);
    Ok(())
}
