//! The job spec: how it follows, how it is written and read, and that the key stays where it belongs.

use proptest::prelude::*;

use super::*;
use crate::option::AcbOption;

const SECRET: &str = "abababababababababababababababababababababababababababababababab";

fn facts(node: &str) -> JobFacts {
    JobFacts {
        job_id: 4242,
        node: node.to_owned(),
        nodes: vec!["n3".to_owned(), "n4".to_owned(), "n5".to_owned()],
        uid: 1000,
        gid: 100,
        home: Some("/home/u".into()),
        key: Key::new([0xab; 32]),
        gpus: vec![0, 2],
        slurm_conf: Some("/etc/slurm/slurm.conf".into()),
    }
}

fn site(text: &str) -> SiteConfig {
    SiteConfig::parse("cluster.toml", text).unwrap_or_else(|error| panic!("{error}"))
}

fn request(value: &str) -> Request {
    match AcbOption::parse(value) {
        Ok(AcbOption::On(request)) => request,
        other => panic!("{other:?}"),
    }
}

fn spec() -> JobSpec {
    let site = site(
        "[environment]\nA = \"x = \\\"y\\\"\"\n[driver]\ncuda = \"/opt/libcuda.so.1\"\n[[node]]\nname = \"n[1-9]\"\naddress = \"%n-ib\"\n",
    );
    JobSpec::plan(&site, &request("gpus=2,quantum=5s"), facts("n4")).unwrap()
}

#[test]
fn the_option_goes_before_the_cluster_file() {
    let site = site("[scheduler]\nquantum_ms = 700\n[failure]\non_failure = \"fail\"\n");
    let spec = JobSpec::plan(&site, &request("simple"), facts("n3")).unwrap();
    assert_eq!((spec.policy, spec.quantum_ms.get()), (Policy::Simple, 700));
    assert_eq!(spec.on_failure, OnFailure::Fail);
    assert_eq!(spec.gpus_per_client, None);
    let spec = JobSpec::plan(&site, &request("quantum=3s,on_failure=open"), facts("n3")).unwrap();
    assert_eq!((spec.policy, spec.quantum_ms.get()), (Policy::GpuAffinity, 3000));
    assert_eq!(spec.on_failure, OnFailure::Open);
}

#[test]
fn all_nodes_agree_on_the_controller() {
    for (text, controller) in [
        ("", "n3"),
        ("[controller]\nnode = \"n5\"\n", "n5"),
        ("[controller]\nnode = \"n9\"\n", "n3"),
    ] {
        let specs: Vec<_> = ["n3", "n4", "n5"]
            .into_iter()
            .map(|node| JobSpec::plan(&site(text), &Request::default(), facts(node)).unwrap())
            .collect();
        for (index, spec) in specs.iter().enumerate() {
            assert_eq!(spec.node_index as usize, index);
            assert_eq!(spec.controller, controller);
            assert_eq!(spec.candidate_ports, specs[0].candidate_ports);
        }
        assert_eq!(specs.iter().filter(|spec| spec.is_controller()).count(), 1);
    }
    assert_eq!(spec().controller_address(), "n3-ib");
}

#[test]
fn files_lie_where_the_architecture_says() {
    let spec = spec();
    assert_eq!(spec.run_folder.path(), std::path::Path::new("/run/acb/n4/4242"));
    assert_eq!(spec.run_folder.client_socket(), PathBuf::from("/run/acb/n4/4242/client.sock"));
    assert_eq!(
        crate::folder::spec_file(std::path::Path::new("/run/acb"), "n4", 4242),
        PathBuf::from("/run/acb/n4/spec/4242.toml")
    );
}

#[test]
fn impossible_jobs_have_no_spec() {
    let plan = |site: &SiteConfig, option: &str, facts| {
        JobSpec::plan(site, &request(option), facts).unwrap_err().to_string()
    };
    assert_eq!(
        plan(&site(""), "", facts("m1")),
        "node `m1` is not in the node list of job 4242 (n[3-5])"
    );
    assert!(plan(&site(""), "simple,gpus=2", facts("n3")).contains("gpus=2 is not possible"));
    let long = JobFacts { node: "n".repeat(90), nodes: vec!["n".repeat(90)], ..facts("n3") };
    let message = plan(&site(""), "", long);
    assert!(message.contains("shorten `paths.run_dir`"), "{message}");
}

#[test]
fn what_is_written_reads_back() {
    let spec = spec();
    assert_eq!(JobSpec::parse(&spec.to_toml()), Ok(spec));
    let bare = JobFacts { home: None, gpus: vec![], slurm_conf: None, ..facts("n3") };
    let bare = JobSpec::plan(&site(""), &Request::default(), bare).unwrap();
    assert_eq!(JobSpec::parse(&bare.to_toml()), Ok(bare));
}

#[test]
fn the_key_is_written_by_to_toml_alone() {
    let spec = spec();
    assert!(spec.to_toml().contains(SECRET));
    assert!(!format!("{spec:?}").contains("abab"));
    assert!(!toml::to_string(&spec).unwrap().contains("abab"));
}

#[test]
fn errors_have_their_place_and_never_the_key() {
    let good = spec().to_toml();
    for (bad, message) in [
        (good.replace(SECRET, &SECRET[1..]), "the key is not 64 hexadecimal digits"),
        (
            good.replace(&format!("\"{SECRET}\""), "0xabababababab"),
            "the key is not 64 hexadecimal digits",
        ),
        (good.replace(&format!("{SECRET}\""), SECRET), "invalid basic string"),
        (good.replace("job_id", "jobid"), "unknown field `jobid`"),
        (good.replace("quantum_ms = 5000", "quantum_ms = 0"), "nonzero"),
        (good.replace("run_folder = ", "folder = "), "unknown field `folder`"),
        (good.replace("A = ", "LD_AUDIT = "), "environment variable `LD_AUDIT`"),
        (good.replace("node_index = 1", "node_index = 7"), "node_index 7"),
        (good.replace("controller = \"n3\"", "controller = \"n7\""), "the controller `n7`"),
        (good.replace("n5 = ", "n6 = "), "`addresses` has none for `n5`"),
    ] {
        assert_ne!(bad, good, "{message}");
        let error = JobSpec::parse(&bad).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert!(!error.contains("abab"), "{error}");
    }
}

proptest! {
    #[test]
    fn a_damaged_spec_is_read_or_refused(at in 0usize..2000, with in "\\PC{0,3}", cut in 0usize..20) {
        let mut text = spec().to_toml();
        let at = (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        let end = (at + cut).min(text.len());
        text.replace_range(at..end, &with);
        if let Err(error) = JobSpec::parse(&text) {
            prop_assert!(error.line >= 1 && error.column >= 1);
        }
    }
}

#[test]
fn a_client_counts_for_whom_its_step_its_job_or_slurm_names() {
    let site = site("[[tenant]]\nname = \"physics\"\nshare = 0.5\n[[tenant]]\nname = \"anna\"\n");
    let spec = |option| JobSpec::plan(&site, &request(option), facts("n3")).unwrap();
    let of = |job, step, people: &[&str]| {
        spec(job).tenant_of(&request(step), people).map(|name| name.to_string())
    };
    assert_eq!(of("", "", &["physics", "anna"]).as_deref(), Some("physics"));
    assert_eq!(of("", "", &["chemistry", "anna"]).as_deref(), Some("anna"));
    assert_eq!(of("", "", &["chemistry", "bob"]), None);
    assert_eq!(of("tenant=anna", "", &["physics"]).as_deref(), Some("anna"));
    assert_eq!(of("tenant=anna", "tenant=physics", &[]).as_deref(), Some("physics"));
    assert!(spec("").knows(&request("tenant=bob")).is_err());
    let written = spec("prio=7,tenant=anna");
    assert_eq!(JobSpec::parse(&written.to_toml()), Ok(written));
}
