//! The `--acb` option: what is read, what is refused and with which words.

use proptest::prelude::*;

use super::*;
use crate::size::ByteSize;

#[track_caller]
fn on(value: &str) -> Request {
    match AcbOption::parse(value) {
        Ok(AcbOption::On(request)) => request,
        other => panic!("{value}: {other:?}"),
    }
}

#[track_caller]
fn refused(value: &str) -> String {
    AcbOption::parse(value).expect_err(value).to_string()
}

fn some(n: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(n)
}

#[test]
fn no_argument_means_the_cluster_file() {
    assert_eq!(on(""), Request::default());
    assert_eq!(on("(null)"), Request::default());
}

#[test]
fn off_is_off() {
    assert_eq!(AcbOption::parse("off"), Ok(AcbOption::Off));
    assert_eq!(
        refused("off,gpus=2"),
        "--acb=off,gpus=2: at character 1: `off` stands alone: nothing can follow it"
    );
    assert_eq!(refused("gpus=2,off"), "--acb=gpus=2,off: at character 8: `off` must stand first");
}

#[test]
fn policy_and_keys() {
    assert_eq!(on("simple").policy, Some(Policy::Simple));
    assert_eq!(
        on("gpu-affinity,gpus=4,quantum=500ms,on_failure=fail,mem=10G,audit=on"),
        Request {
            policy: Some(Policy::GpuAffinity),
            gpus: some(4),
            quantum_ms: some(500),
            on_failure: Some(OnFailure::Fail),
            memory: ByteSize::new(10 << 30),
            audit: Some(true),
            ..Request::default()
        }
    );
    assert_eq!(on("gpus=2").gpus, some(2));
}

#[test]
fn quanta() {
    for (text, ms) in [
        ("500ms", 500),
        ("2s", 2000),
        ("2", 2000),
        ("1.5s", 1500),
        ("0.25", 250),
        ("1m", 60_000),
        ("86400", 86_400_000),
    ] {
        assert_eq!(on(&format!("quantum={text}")).quantum_ms, some(ms), "{text}");
    }
    for text in [
        "0",
        "0s",
        "",
        "s",
        "ms",
        "-1",
        "+1",
        "1e3",
        "inf",
        "1.",
        ".5",
        "0.5ms",
        "0.0001",
        "1h",
        "1 s",
        "86401",
        "9999999999999999999999s",
        "١",
    ] {
        let message = refused(&format!("quantum={text}"));
        assert!(message.contains("at character 9"), "{message}");
        assert!(message.contains("a time like 500ms, 2s or 1m"), "{message}");
    }
}

#[test]
fn mistakes_name_the_place_and_what_is_allowed() {
    assert_eq!(
        refused("simple,gpu=2"),
        "--acb=simple,gpu=2: at character 8: unknown key `gpu` (did you mean `gpus`?); known are gpus, quantum, on_failure, mem, audit, prio, queue, tenant, gang"
    );
    assert_eq!(
        refused("gpu-afinity"),
        "--acb=gpu-afinity: at character 1: `gpu-afinity` is not a policy (did you mean `gpu-affinity`?); \
         allowed are simple, gpu-sharing, gpu-affinity, off, or keys (gpus, quantum, on_failure, mem, audit, prio, queue, tenant, gang)"
    );
    assert_eq!(
        refused("gpus=0"),
        "--acb=gpus=0: at character 6: `0` cannot be the value of `gpus`: allowed is a whole number from 1 to 64"
    );
    assert_eq!(
        refused("gpus"),
        "--acb=gpus: at character 1: `gpus` needs a value, gpus=…: a whole number from 1 to 64"
    );
    assert_eq!(
        refused("gpus=1,gpus=2"),
        "--acb=gpus=1,gpus=2: at character 8: `gpus` is given twice"
    );
    assert_eq!(refused("a#b"), "--acb=a#b: at character 2: `#` cannot stand in the value");
    assert_eq!(
        refused("simple,,gpus=1"),
        "--acb=simple,,gpus=1: at character 8: nothing stands between the commas"
    );
    assert!(refused("ü,ö=1").contains("at character 3: unknown key `ö`"));
}

#[test]
fn every_mistake_is_reported() {
    let error = AcbOption::parse("smple,gpus=x,on_failure=maybe").unwrap_err();
    let places: Vec<_> = error.problems().iter().map(|problem| problem.at).collect();
    assert_eq!(places, [1, 12, 25]);
    assert_eq!(error.to_string().lines().count(), 3);
}

#[test]
fn terminals_are_not_written_to_by_the_value() {
    let message = refused("\u{1b}[2J,gpus=\u{7}");
    assert!(!message.contains(['\u{1b}', '\u{7}']), "{message:?}");
}

#[test]
fn several_gpus_need_the_policy_that_gives_them() {
    let site =
        |policy| SiteConfig::parse("t", &format!("[scheduler]\npolicy = \"{policy}\"")).unwrap();
    let settled = Settings::settle(&site("simple"), &on("gpu-affinity,gpus=2")).unwrap();
    assert_eq!((settled.policy, settled.gpus), (Policy::GpuAffinity, some(2)));
    assert_eq!(Settings::settle(&site("simple"), &on("")).unwrap().policy, Policy::Simple);
    assert_eq!(
        Settings::settle(&site("simple"), &on("gpus=2")).unwrap_err().to_string(),
        "--acb: gpus=2 is not possible with policy simple of the cluster file, which gives one GPU to each client; \
         use --acb=gpu-affinity,gpus=2"
    );
    assert!(Settings::settle(&site("gpu-affinity"), &on("gpu-sharing,gpus=2")).is_err());
    assert!(Settings::settle(&site("simple"), &on("gpus=1")).is_ok());
}

#[test]
fn priorities_queues_and_tenants() {
    let request = on("prio=latency,queue=urgent,tenant=physics");
    assert_eq!(request.priority.map(Priority::number), Some(100));
    assert_eq!(request.queue, Name::new("urgent").ok());
    assert_eq!(AcbOption::On(request).to_string(), "prio=100,queue=urgent,tenant=physics");
    assert_eq!(on("prio=-7").priority.map(Priority::number), Some(-7));
    assert!(refused("prio=101").contains("at character 6: `101` cannot be the value of `prio`"));
    assert!(refused("queue=a b").contains("cannot be the value of `queue`"));
}

#[test]
fn names_are_those_of_the_cluster_file() {
    let site = SiteConfig::parse(
        "t",
        "[[queue]]\nname = \"one\"\npolicy = \"simple\"\n[[queue]]\nname = \"few\"\nmax_gpus = 2\n\
         [[tenant]]\nname = \"a\"\nmax_gpus = 3\n",
    );
    let site = site.unwrap();
    let refused = |value| Settings::settle(&site, &on(value)).unwrap_err().to_string();
    assert!(Settings::settle(&site, &on("queue=few,tenant=a,gpus=2")).is_ok());
    assert_eq!(
        refused("queue=man"),
        "--acb: there is no queue `man` in the cluster file; there are one, few"
    );
    assert_eq!(
        refused("tenant=b"),
        "--acb: there is no tenant `b` in the cluster file; there are a"
    );
    assert_eq!(
        refused("queue=few,gpus=3"),
        "--acb: gpus=3, but queue `few` of the cluster file holds 2 at most"
    );
    assert_eq!(
        refused("tenant=a,gpus=4"),
        "--acb: gpus=4, but tenant `a` of the cluster file holds 3 at most"
    );
    assert!(refused("queue=one,gpus=2").contains("policy simple of the cluster file"));
    // A file without tenants takes any name.
    assert!(Settings::settle(&SiteConfig::default(), &on("tenant=b")).is_ok());
    assert_eq!(
        Settings::settle(&SiteConfig::default(), &on("queue=q")).unwrap_err().to_string(),
        "--acb: there is no queue `q` in the cluster file; there is none"
    );
}

fn requests() -> impl Strategy<Value = Request> {
    (
        prop::option::of(prop::sample::select(Policy::ALL.to_vec())),
        prop::option::of(1u32..=64),
        prop::option::of(1u32..=MAX_QUANTUM_MS),
        prop::option::of(prop::sample::select(OnFailure::ALL.to_vec())),
        prop::option::of(1..u64::MAX >> 12),
        prop::option::of(any::<bool>()),
        prop::option::of(-100..=100),
        prop::option::of("[a-z0-9_.@-]{1,64}"),
        prop::option::of("[A-Za-z0-9]{1,8}"),
        prop::option::of("step|[a-z0-9_.@-]{1,64}:[1-9][0-9]{0,3}"),
    )
        .prop_map(
            |(policy, gpus, quantum, on_failure, memory, audit, priority, queue, tenant, gang)| {
                Request {
                    policy,
                    gpus: gpus.and_then(NonZeroU32::new),
                    quantum_ms: quantum.and_then(NonZeroU32::new),
                    on_failure,
                    memory: memory.and_then(ByteSize::new),
                    audit,
                    priority: priority.and_then(|number| Priority::try_from(number).ok()),
                    queue: queue.and_then(|name| Name::new(name).ok()),
                    tenant: tenant.and_then(|name| Name::new(name).ok()),
                    gang: gang.and_then(|gang| gang.parse().ok()),
                }
            },
        )
}

proptest! {
    #[test]
    fn the_canonical_form_reads_back(request in requests()) {
        let option = AcbOption::On(request);
        prop_assert_eq!(AcbOption::parse(&option.to_string()), Ok(option));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,60}|[a-z_,=#0-9.]{0,40}") {
        if let Err(error) = AcbOption::parse(&text) {
            prop_assert!(!error.problems().is_empty());
            for problem in error.problems() {
                prop_assert!(problem.at <= text.chars().count() + 1);
            }
        }
    }
}

#[test]
fn memory_is_counted_as_slurm_counts() {
    assert_eq!(on("mem=512").memory, ByteSize::new(512 << 20));
    assert_eq!(on("simple,mem=1.5G").memory, ByteSize::new(3 << 29));
    let message = refused("mem=10GB");
    assert!(message.contains("at character 5") && message.contains("10G, 512M"), "{message}");
}
