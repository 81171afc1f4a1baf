//! That checks fire: scenarios with schedulers that do something else than the scenario says.

use acb_core::{Action, Config, Event, Policy, Priority, Scheduler, Time};

use super::{Happening, Watch, World};
use crate::read::Overrides;

/// What is violated first if every node's scheduler is told something else.
fn violated(text: &str, lie: impl Fn(&mut Config)) -> Option<String> {
    let scenario = crate::read("scenario", text, Overrides::default()).expect("it makes sense");
    let mut world =
        World::new(&scenario, Watch { check: true, ..Watch::default() }).expect("so do nodes");
    for node in 0..world.nodes.len() {
        let mut config = scenario.nodes[node].config.clone();
        lie(&mut config);
        world.nodes[node].scheduler = Some(Scheduler::new(config).expect("it makes sense"));
    }
    while world.step() {}
    world.outcome.violations.first().map(|violation| violation.what.clone())
}

const QUOTA: &str = r#"
title = "a guarantee"
stop_s = 60
[[node]]
gpus = 1
memory_gib = 16
[[tenant]]
name = "own"
guarantee = 1
[[client]]
name = "borrower"
gpu_s = 100
memory_gib = 12
kernel_ms = 50
[[client]]
name = "owner"
tenant = "own"
cpu_s = 3
gpu_s = 1
memory_gib = 12
kernel_ms = 5
"#;

#[test]
fn what_is_guaranteed_comes_late_from_a_scheduler_without_guarantees() {
    assert_eq!(violated(QUOTA, |_| {}), None);
    let what = violated(QUOTA, |config| config.tenants.clear()).expect("it is late");
    assert!(what.contains("what its tenant is guaranteed"), "{what}");
}

#[test]
fn a_promise_is_late_where_kernels_are_longer_than_anybody_knew() {
    let text = include_str!("../../../../tests/scenarios/promise.toml");
    let scenario = crate::read("promise", text, Overrides::default()).expect("it makes sense");
    let mut world =
        World::new(&scenario, Watch { check: true, ..Watch::default() }).expect("it makes sense");
    world.nodes[0].kernel = std::time::Duration::ZERO;
    while world.step() {}
    let what = &world.outcome.violations.first().expect("it is late").what;
    assert!(what.contains("what it was promised"), "{what}");
}

const LEVELS: &str = r#"
title = "two levels"
stop_s = 60
[[node]]
gpus = 1
[[queue]]
name = "high"
priority = 50
[[client]]
name = "low"
count = 3
cpu_s = 0.1
gpu_s = 1
kernel_ms = 5
[[client]]
name = "high"
queue = "high"
cpu_s = 2
gpu_s = 1
kernel_ms = 5
"#;

#[test]
fn lower_levels_go_first_in_a_scheduler_that_has_them_the_other_way_round() {
    let wide = LEVELS
        .replace("gpus = 1", "gpus = 2")
        .replace("queue = \"high\"", "gpus = 2\nqueue = \"high\"");
    for text in [LEVELS, &wide] {
        assert_eq!(violated(text, |_| {}), None);
        let lowest = Priority::new(-100).expect("it is one");
        let what = violated(text, |config| config.queues[0].priority = lowest).expect("it waits");
        assert!(what.contains("which waits on a higher level"), "{what}");
    }
}

#[test]
fn who_should_be_alone_is_not_in_a_scheduler_that_shares() {
    let what = violated(LEVELS, |config| config.policy = Policy::GpuSharing).expect("they meet");
    assert!(what.contains("compute on GPU 0 at a time"), "{what}");
}

const RESTART: &str = r#"
title = "a restart"
stop_s = 60
[[node]]
gpus = 1
[[client]]
name = "other"
cpu_s = 1
gpu_s = 20
kernel_ms = 5
[[client]]
name = "holder"
gpu_s = 20
kernel_ms = 5
[[fault]]
at_s = 1.5
restart = "node"
for_s = 1
"#;

#[test]
fn a_lease_is_lost_where_the_assigner_has_written_nothing_down() {
    let scenario = crate::read("scenario", RESTART, Overrides::default()).expect("it makes sense");
    for forgets in [false, true] {
        let mut world =
            World::new(&scenario, Watch { check: true, ..Watch::default() }).expect("so do nodes");
        while world.step() {
            if forgets && world.nodes[0].scheduler.is_none() {
                world.nodes[0].writer.written.clients.clear();
            }
        }
        let what = world.outcome.violations.first().map(|violation| violation.what.clone());
        let expected = forgets.then(|| "holder has lost its lease by a restart".to_owned());
        assert_eq!(what, expected);
    }
}

/// What is violated first in a run in which something else happens after every step.
fn violated_if(text: &str, mut happens: impl FnMut(&mut World<'_, '_>)) -> Option<String> {
    let scenario = crate::read("scenario", text, Overrides::default()).expect("it makes sense");
    let mut world =
        World::new(&scenario, Watch { check: true, ..Watch::default() }).expect("so do nodes");
    while world.step() {
        happens(&mut world);
    }
    world.outcome.violations.first().map(|violation| violation.what.clone())
}

/// Takes messages to clients out of a world.
fn lose(world: &mut World<'_, '_>, lost: impl Fn(&Action) -> bool) {
    never(world, |it| matches!(it, Happening::ToClient(.., action) if lost(action)));
}

/// What does not happen.
fn never(world: &mut World<'_, '_>, lost: impl Fn(&Happening) -> bool) {
    world.happenings.retain(|entry| !lost(&entry.0.happening));
}

/// What no assigner hears is counted otherwise, or lost: the violation.
fn unheard(text: &str, lost: impl Fn(&Event) -> bool) -> String {
    let text = format!("{text}[costs]\nmessage_us = 50\n");
    let deaf = |world: &mut World<'_, '_>| {
        never(world, |it| matches!(it, Happening::ToAssigner(.., event) if lost(event)));
    };
    violated_if(&text, deaf).expect("there is one")
}

const IDLE: &str = r#"
title = "a holder that is idle"
stop_s = 60
[[node]]
gpus = 1
memory_gib = 16
host_gib = 32
[scheduler]
quantum_ms = 30000
[[client]]
name = "idle"
cpu_s = 20
gpu_s = 1
idle_us = 2000
memory_gib = 12
kernel_ms = 5
[[client]]
name = "other"
cpu_s = 21.5
gpu_s = 5
memory_gib = 12
kernel_ms = 5
"#;

#[test]
fn a_gpu_is_idle_for_too_long_where_its_holder_is_not_told() {
    assert_eq!(violated_if(IDLE, |_| {}), None);
    let deaf = |world: &mut World<'_, '_>| {
        lose(world, |action| matches!(action, Action::Wanted { .. }));
    };
    let what = violated_if(IDLE, deaf).expect("it is");
    assert_eq!(what, "other waits, and [Gpu(0)] have been idle for too long");
}

#[test]
fn a_gpu_is_lost_with_the_message_that_gives_it_back() {
    let what = unheard(IDLE, |event| matches!(event, Event::Release { .. }));
    assert!(what.contains("GPU 0 is lost: idle does not have"), "{what}");
}

#[test]
fn memory_is_counted_otherwise_where_a_credit_is_lost() {
    let deaf = |world: &mut World<'_, '_>| {
        lose(world, |action| matches!(action, Action::Credit { .. }));
    };
    let what = violated_if(IDLE, deaf).expect("it is");
    assert!(what.contains("is counted"), "{what}");
}

#[test]
fn nobody_knows_a_lease_of_an_assigner_that_forgets() {
    let mut forgets = |world: &mut World<'_, '_>| {
        if world.clients[0].running.is_some() {
            let config = world.scenario.nodes[0].config.clone();
            world.nodes[0].scheduler = Some(Scheduler::new(config).expect("it makes sense"));
        }
    };
    let what = violated_if(QUOTA, &mut forgets).expect("it is");
    assert!(what.contains("and nobody knows"), "{what}");
}

#[test]
fn the_host_has_more_than_its_budget_in_a_scheduler_that_does_not_know_it() {
    let text = IDLE.replace("host_gib = 32", "host_gib = 8");
    assert_eq!(violated(&text, |_| {}), None);
    let what = violated(&text, |config| config.memory.host_budget = u64::MAX).expect("it has");
    assert!(what.contains("bytes are on the host"), "{what}");
}

#[test]
fn tenants_are_apart_in_a_scheduler_without_fair_share() {
    let text = include_str!("../../../../tests/scenarios/fair.toml").replace("36_000", "600");
    assert_eq!(violated(&text, |_| {}), None);
    let what = violated(&text, |config| config.fair_share = None).expect("weights do not count");
    assert!(what.contains("of GPU time apart"), "{what}");
}

const TURNS: &str = r#"
title = "turns"
stop_s = 120
[[node]]
gpus = 1
memory_gib = 16
host_gib = 32
[scheduler]
quantum_ms = 1000
[[client]]
name = "busy"
count = 2
gpu_s = 30
memory_gib = 1
kernel_ms = 5
"#;

#[test]
fn somebody_waits_in_vain_where_turns_do_not_end() {
    // With memory for both, for one at a time, and without any.
    let paged = TURNS.replace("memory_gib = 1\n", "memory_gib = 12\n");
    let none = TURNS.replace("memory_gib = 1\n", "");
    for text in [TURNS, &paged, &none] {
        assert_eq!(violated(text, |_| {}), None);
        let longer = std::time::Duration::from_secs(10);
        let what = violated(text, |config| config.quantum = longer).expect("it waits");
        assert!(what.contains("whose holders are not recalled in time"), "{what}");
    }
}

const MISSING: &str = r#"
title = "memory that nobody knows of"
due_s = 60
[[node]]
gpus = 1
memory_gib = 16
chunk_mib = 1024
[[client]]
name = "early"
gpu_s = 1
rounds = 3
memory_gib = 12
kernel_ms = 5
[[client]]
name = "late"
cpu_s = 30
gpu_s = 1
rounds = 1
memory_gib = 12
kernel_ms = 5
[[fault]]
at_s = 0
outside = "node"
memory_gib = 7
for_s = 20
[[fault]]
at_s = 25
outside = "node"
for_s = 3
"#;

#[test]
fn page_ins_that_find_too_little_are_done_when_the_memory_is_there() {
    let scenario = crate::read("scenario", MISSING, Overrides::default()).expect("it makes sense");
    let mut log = String::new();
    let watch = Watch { log: Some(&mut log), check: true, ..Watch::default() };
    let outcome = super::run(&scenario, watch).expect("it makes sense");
    assert_eq!(outcome.violations, []);
    // What nobody has been promised is tried, too; what is taken later is free again before it is needed.
    assert_eq!(outcome.short, 3, "{log}");
    let early = outcome.finished[0].expect("it is done").since(Time(0)).as_secs_f64();
    assert!((23.0..25.0).contains(&early), "{early}");
}

#[test]
fn nobody_is_done_where_nobody_looks_after_what_is_missing() {
    let blind = |world: &mut World<'_, '_>| {
        never(world, |it| matches!(it, Happening::Look(..) | Happening::Watch(..)));
    };
    let what = violated_if(MISSING, blind).expect("its memory never comes");
    assert_eq!(what, "nothing happens any more, but early is not done");
}

#[test]
fn memory_is_counted_otherwise_where_it_is_not_said_that_it_is_missing() {
    let what = unheard(MISSING, |event| matches!(event, Event::Short { .. }));
    assert!(what.contains("is counted"), "{what}");
}

#[test]
fn turns_end_beside_a_gang_on_other_gpus() {
    let text =
        TURNS.replace("gpus = 1", "gpus = 3").replace("memory_gib = 1\n", "eligible = [0]\n");
    let gang = "[[client]]\nname = \"member\"\ncount = 2\ngang = \"g\"\ngpu_s = 1\nrounds = 1000\n";
    let longer = std::time::Duration::from_secs(10);
    for (places, is_seen) in [("eligible = [1, 2]", true), ("bound = false", false)] {
        let text = format!("{text}{gang}{places}\n");
        assert_eq!(violated(&text, |_| {}), None);
        let what = violated(&text, |config| config.quantum = longer);
        assert_eq!(what.is_some(), is_seen, "{what:?}");
    }
}
