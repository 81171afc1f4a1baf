//! Plans of steps, as made-up environments have them.

use super::*;
use crate::ready::ReadyGpu;
use acb_cluster_conf::{AcbOption, JobFacts, Key, SiteConfig};
use proptest::prelude::*;

const SITE: &str = "[driver]\ncuda = \"/real/libcuda.so.1\"\nnvml = \"/real/libnvidia-ml.so.1\"\n[environment]\nSITE = \"1\"\n";
const PRELOAD: &str = "/usr/lib/acb/libcuda.so.1";

fn spec(option: &str) -> JobSpec {
    let Ok(AcbOption::On(request)) = AcbOption::parse(option) else { panic!("{option}") };
    let facts = JobFacts {
        job_id: 7,
        node: "n1".into(),
        nodes: vec!["n1".into()],
        uid: 1,
        gid: 1,
        home: None,
        key: Key::new([0; 32]),
        gpus: vec![0, 1],
        slurm_conf: None,
    };
    JobSpec::plan(&SiteConfig::parse("x", SITE).unwrap(), &request, facts).unwrap()
}

fn ready() -> Ready {
    let gpu = |index, uuid: &str| ReadyGpu { index, uuid: uuid.into() };
    let gpus = vec![gpu(0, "GPU-a"), gpu(3, "GPU-b")];
    Ready { gpus, client_socket: "/run/acb/n1/7/client.sock".into() }
}

/// The environment after the changes, and the variables that were removed.
fn joined(
    job: &str,
    step: &str,
    environment: &[(&'static str, &str)],
) -> Result<BTreeMap<String, String>, TaskError> {
    joined_with(Devices::OfTheJob, job, step, environment)
}

fn joined_with(
    devices: Devices,
    job: &str,
    step: &str,
    environment: &[(&'static str, &str)],
) -> Result<BTreeMap<String, String>, TaskError> {
    let Ok(AcbOption::On(request)) = AcbOption::parse(step) else { panic!("{step}") };
    let environment = environment.iter().map(|(n, v)| (*n, (*v).to_owned())).collect();
    let (spec, ready) = (spec(job), ready());
    let facts = TaskFacts {
        spec: &spec,
        ready: &ready,
        devices,
        request: &request,
        step: "0".into(),
        rank: 3,
        environment: &environment,
    };
    join(&facts).map(|changes| apply(&environment, &changes))
}

fn apply(
    environment: &BTreeMap<&'static str, String>,
    changes: &[Change],
) -> BTreeMap<String, String> {
    let mut after: BTreeMap<_, _> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    for change in changes {
        match change {
            Change::Set(name, value) => after.insert(name.clone(), value.clone()),
            Change::Unset(name) => after.remove(name),
        };
    }
    after
}

#[test]
fn a_task_gets_the_contract() {
    let after = joined("", "", &[("SLURM_GPUS_PER_TASK", "2")]).unwrap();
    for (name, value) in [
        ("LD_PRELOAD", PRELOAD),
        ("LD_LIBRARY_PATH", "/usr/lib/acb"),
        ("ACB_SOCKET", "/run/acb/n1/7/client.sock"),
        ("ACB_GPUS", "2"),
        ("ACB_DRIVER", "/real/libcuda.so.1"),
        ("ACB_NVML", "/real/libnvidia-ml.so.1"),
        ("ACB_ON_FAILURE", "open"),
        ("ACB_GRACE_MS", "10000"),
        ("ACB_STEP", "0"),
        ("ACB_RANK", "3"),
        ("ACB_PRIORITY", "0"),
        ("CUDA_VISIBLE_DEVICES", "0,1"),
        ("ACB_UUIDS", "GPU-a,GPU-b"),
        ("NCCL_GRAPH_REGISTER", "0"),
        ("SITE", "1"),
    ] {
        assert_eq!(after.get(name).map(String::as_str), Some(value), "{name}");
    }
}

#[test]
fn the_users_own_is_kept() {
    let after = joined(
        "",
        "",
        &[
            ("LD_PRELOAD", "/a.so /b.so"),
            ("LD_LIBRARY_PATH", "/x:/y"),
            ("NCCL_GRAPH_REGISTER", "1"),
        ],
    )
    .unwrap();
    assert_eq!(after["LD_PRELOAD"], format!("{PRELOAD}:/a.so /b.so"));
    assert_eq!(after["LD_LIBRARY_PATH"], "/usr/lib/acb:/x:/y");
    assert_eq!(after["NCCL_GRAPH_REGISTER"], "1");
}

#[test]
fn gpus_are_the_steps_then_the_jobs_then_slurms_then_one() {
    let gpus = |job, step, slurm: &'static str| {
        let environment: &[_] =
            if slurm.is_empty() { &[] } else { &[("SLURM_GPUS_PER_TASK", slurm)] };
        joined(job, step, environment).map(|after| after["ACB_GPUS"].clone())
    };
    assert_eq!(gpus("gpus=2", "gpus=1", "2").unwrap(), "1");
    assert_eq!(gpus("gpus=2", "", "1").unwrap(), "2");
    assert_eq!(gpus("", "", "a100:2").unwrap(), "2");
    assert_eq!(gpus("", "", "").unwrap(), "1");
    let bind = |value| joined("", "", &[("SLURMD_TRES_BIND", value)]).unwrap()["ACB_GPUS"].clone();
    assert_eq!(bind("gpu:per_task:2"), "2");
    assert_eq!(bind("gpu:single:2"), "1");
    let tres = joined("", "", &[("SLURM_TRES_PER_TASK", "gres/gpu=2")]).unwrap();
    assert_eq!(tres["ACB_GPUS"], "2");
    assert!(matches!(gpus("", "gpus=3", ""), Err(TaskError::TooManyGpus { wanted: 3, .. })));
    assert!(matches!(gpus("simple", "", "2"), Err(TaskError::PolicyGivesOne { .. })));
    for wrong in ["x", "a100:", "0", "-1", "4294967296", "4294967295,3", "2,"] {
        assert!(matches!(gpus("", "", wrong), Err(TaskError::GpusPerTask(_))), "{wrong}");
    }
}

#[test]
fn a_constrained_step_stays_on_its_own_gpus() {
    let after = |devices, step: &'static str, own: &'static str| {
        joined_with(devices, "", step, &[("SLURM_STEP_GPUS", own)])
    };
    let constrained = after(Devices::OfTheStep, "", "3").unwrap();
    assert_eq!(constrained["ACB_ELIGIBLE"], "GPU-b");
    assert_eq!(constrained["CUDA_VISIBLE_DEVICES"], "0");
    assert_eq!(constrained["ACB_UUIDS"], "GPU-b");
    assert!(matches!(
        after(Devices::OfTheStep, "gpus=2", "3"),
        Err(TaskError::TooManyGpus { there: 1, .. })
    ));
    for (devices, own) in
        [(Devices::OfTheJob, "3"), (Devices::OfTheStep, "0,3"), (Devices::OfTheStep, "?")]
    {
        let free = after(devices, "gpus=2", own).unwrap();
        assert!(!free.contains_key("ACB_ELIGIBLE"));
        assert_eq!(free["CUDA_VISIBLE_DEVICES"], "0,1");
        assert_eq!(free["ACB_UUIDS"], "GPU-a,GPU-b");
    }
}

#[test]
fn paths_of_the_driver_are_audited_where_that_is_asked_for() {
    let audit = |job, step, had: &'static str| {
        let environment: &[_] = if had.is_empty() { &[] } else { &[("LD_AUDIT", had)] };
        joined(job, step, environment).unwrap().get("LD_AUDIT").cloned()
    };
    let ours = "/usr/lib/acb/libacb-audit.so";
    assert_eq!(audit("", "", ""), None);
    assert_eq!(audit("", "", "/a.so").as_deref(), Some("/a.so"));
    assert_eq!(audit("audit=on", "", "").as_deref(), Some(ours));
    assert_eq!(audit("", "audit=on", "/a.so"), Some(format!("{ours}:/a.so")));
    assert_eq!(
        audit("audit=on", "audit=off", "/usr/lib/acb/libacb-audit.so:/a.so").as_deref(),
        Some("/a.so")
    );
    assert_eq!(audit("audit=on", "audit=off", "/usr/lib/acb/libacb-audit.so"), None);
}

#[test]
fn a_step_cannot_change_what_is_the_jobs() {
    for step in ["simple", "quantum=1s"] {
        let error = joined("", step, &[]).unwrap_err();
        assert!(matches!(error, TaskError::PolicyIsTheJobs { .. }), "{step}");
    }
    // What srun inherits from sbatch is the job's own.
    assert!(joined("simple,quantum=1s", "simple,quantum=1s", &[]).is_ok());
    assert_eq!(joined("", "on_failure=fail", &[]).unwrap()["ACB_ON_FAILURE"], "fail");
}

#[test]
fn a_task_may_have_so_much_memory() {
    let limit = |job, step| joined(job, step, &[]).unwrap().get("ACB_MEMORY").cloned();
    assert_eq!(limit("", ""), None);
    assert_eq!(limit("", "mem=10G").as_deref(), Some("10737418240"));
    assert_eq!(limit("simple,mem=10G", "").as_deref(), Some("10737418240"));
    // The step's own goes before the job's.
    assert_eq!(limit("mem=10G", "mem=512M").as_deref(), Some("536870912"));
}

#[test]
fn priority_queue_and_tenant_are_the_steps_then_the_jobs() {
    let of = |job, step| {
        let after = joined(job, step, &[("SLURM_JOB_ACCOUNT", "physics")]).unwrap();
        let value = |name: &str| after.get(name).cloned().unwrap_or_default();
        (value("ACB_PRIORITY"), value("ACB_TENANT"))
    };
    assert_eq!(of("prio=5,tenant=a", ""), ("5".into(), "a".into()));
    assert_eq!(of("prio=5,tenant=a", "prio=latency,tenant=b"), ("100".into(), "b".into()));
    // An account is a tenant where the cluster file lists it.
    assert_eq!(of("", ""), ("0".into(), String::new()));
    let error = joined("", "queue=fast", &[]).unwrap_err();
    assert!(error.to_string().contains("there is no queue `fast`"), "{error}");
}

#[test]
fn a_gang_is_the_steps_then_the_jobs() {
    let of = |job, step| {
        let after = joined(job, step, &[("SLURM_STEP_NUM_TASKS", "4")]).unwrap();
        let value = |name: &str| after.get(name).cloned().unwrap_or_default();
        (value("ACB_GANG"), value("ACB_GANG_SIZE"))
    };
    assert_eq!(of("", ""), (String::new(), String::new()));
    assert_eq!(of("gang=train:8", ""), ("train".into(), "8".into()));
    let (name, size) = of("gang=train:8", "gang=step");
    assert!(name.starts_with("step/") && size == "4", "{name} {size}");
    let error = joined("", "gang=step", &[]).unwrap_err().to_string();
    assert!(error.contains("gang=NAME:SIZE"), "{error}");
}

#[test]
fn the_job_key_goes() {
    let spec = spec("");
    let gone = Change::Unset("SLURM_SPANK_ACB_KEY".into());
    assert!(leave(&spec, &BTreeMap::new()).contains(&gone));
    assert!(!joined("", "", &[]).unwrap().contains_key("SLURM_SPANK_ACB_KEY"));
}

#[test]
fn off_gives_back_slurms_devices() {
    let spec = spec("");
    let visible = |value: &str, more: &[(&'static str, &str)]| {
        let mut environment = BTreeMap::from([
            ("ACB_SOCKET", "/s".to_owned()),
            ("CUDA_VISIBLE_DEVICES", value.to_owned()),
            ("SLURM_JOB_GPUS", "4,5".to_owned()),
        ]);
        environment.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        apply(&environment, &leave(&spec, &environment))["CUDA_VISIBLE_DEVICES"].clone()
    };
    assert_eq!(visible("0", &[]), "4,5", "inherited from the batch step");
    assert_eq!(visible("4", &[]), "4", "the step's own");
    assert_eq!(visible("0", &[("SLURM_STEP_GPUS", "5")]), "0", "likewise, of constrained devices");
    assert_eq!(visible("0,1", &[("GPU_DEVICE_ORDINAL", "1")]), "1", "as Slurm says elsewhere");
}

proptest! {
    /// srun inside a batch step: what joins twice stands once, and `off` takes it away again.
    #[test]
    fn joining_is_idempotent_and_off_undoes_it(
        preload in proptest::option::of("[a-z/.]{1,9}(:[a-z/.]{1,9}){0,2}"),
        search in proptest::option::of("[a-z/]{1,9}(:[a-z/]{1,9}){0,2}"),
        audit in proptest::option::of("[a-z/]{1,9}(:[a-z/]{1,9}){0,2}"),
        nccl in proptest::option::of("[01]"),
        audited in any::<bool>(),
    ) {
        let (spec, ready) = (spec(if audited { "audit=on" } else { "" }), ready());
        let mut before = BTreeMap::new();
        before.extend(preload.map(|value| ("LD_PRELOAD", value)));
        before.extend(search.map(|value| ("LD_LIBRARY_PATH", value)));
        before.extend(audit.map(|value| ("LD_AUDIT", value)));
        before.extend(nccl.map(|value| (NCCL, value)));
        let join_once = |environment: &BTreeMap<&'static str, String>| {
            let facts = TaskFacts {
                spec: &spec,
                ready: &ready,
                devices: Devices::OfTheJob,
                request: &Request::default(),
                step: "0".into(),
                rank: 0,
                environment,
            };
            let after = apply(environment, &join(&facts).unwrap());
            READS
                .into_iter()
                .filter_map(|name| Some((name, after.get(name)?.clone())))
                .collect::<BTreeMap<_, _>>()
        };
        let once = join_once(&before);
        prop_assert_eq!(&join_once(&once), &once);
        let left = apply(&once, &leave(&spec, &once));
        let names =
            ["LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "ACB_SOCKET", "ACB_ADDED", NCCL];
        for name in names {
            prop_assert_eq!(left.get(name), before.get(name));
        }
    }
}
