//! Hostlists against Slurm's own reading of them: `scontrol show hostnames` over generated lists.
//!
//! Needs scontrol, which `scripts/test` installs; it runs without a controller.

use std::fs;
use std::process::Command;

use acb_cluster_conf::{compress, expand};
use proptest::prelude::*;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

struct Scontrol {
    folder: TempDir,
}

impl Scontrol {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder under /tmp");
        fs::write(folder.path().join("slurm.conf"), "ClusterName=none\nSlurmctldHost=localhost\n")
            .expect("slurm.conf is written");
        Scontrol { folder }
    }

    fn show(&self, what: &str, list: &str) -> Vec<String> {
        let output = Command::new("scontrol")
            .args(["show", what, list])
            .env("SLURM_CONF", self.folder.path().join("slurm.conf"))
            .output()
            .expect("scontrol runs: install Slurm's client programs (Debian: slurm-client), or run scripts/test");
        assert!(output.status.success(), "scontrol show {what} {list}: {output:?}");
        String::from_utf8(output.stdout)
            .expect("names are text")
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

/// A range as an administrator may write it: with or without zeros, or a single number.
fn range() -> impl Strategy<Value = String> {
    (0u32..120, 0u32..12, 0usize..4).prop_map(|(low, more, width)| match more {
        0 => format!("{low:0width$}"),
        _ => format!("{low:0width$}-{high:0width$}", high = low + more),
    })
}

fn brackets() -> impl Strategy<Value = String> {
    prop::collection::vec(range(), 1..4).prop_map(|ranges| format!("[{}]", ranges.join(",")))
}

/// Slurm takes nothing behind the last brackets, so a name with brackets ends with them.
fn name() -> impl Strategy<Value = String> {
    let part = ("[a-z]{1,4}-?", brackets()).prop_map(|(text, brackets)| text + &brackets);
    prop_oneof![
        1 => "[a-z]{1,6}[0-9]{0,3}",
        4 => prop::collection::vec(part, 1..3).prop_map(|parts| parts.concat()),
        1 => prop::collection::vec(("[a-z]", "\\[[0-9]-9\\]").prop_map(|(a, b)| a + &b), 3..4)
            .prop_map(|parts| parts.concat()),
    ]
}

#[test]
fn lists_expand_as_slurm_expands_them() {
    let scontrol = Scontrol::new();
    let mut runner =
        TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    runner
        .run(&prop::collection::vec(name(), 1..4).prop_map(|names| names.join(",")), |list| {
            prop_assert_eq!(
                expand(&list).expect("a list that Slurm takes"),
                scontrol.show("hostnames", &list)
            );
            Ok(())
        })
        .unwrap();
}

#[test]
fn slurm_reads_what_we_compress() {
    let scontrol = Scontrol::new();
    let mut runner =
        TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    runner
        .run(&prop::collection::vec("[ab]{1,2}[0-9]{1,3}", 1..30), |names| {
            prop_assert_eq!(scontrol.show("hostnames", &compress(&names)), names);
            Ok(())
        })
        .unwrap();
}
