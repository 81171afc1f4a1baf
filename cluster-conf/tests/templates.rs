//! The batch templates of scripts/: that they are sound shell, that their `--acb` is right, and, with programs that
//! only write down how they were called, that the PJM ones do what they say.
//!
//! Needs bash and shellcheck, which `scripts/test` installs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use acb_cluster_conf::{AcbOption, Multinode};
use tempfile::TempDir;

fn templates(system: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts").join(system);
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn shellcheck_has_nothing_to_say() {
    let output = Command::new("shellcheck")
        .args([templates("slurm"), templates("pjm")].concat())
        .output()
        .expect("shellcheck runs: apt-get install shellcheck, or run scripts/test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn options_of_the_slurm_templates_are_right() {
    for file in templates("slurm") {
        let text = fs::read_to_string(&file).unwrap();
        let option = text.lines().find_map(|line| line.strip_prefix("#SBATCH --acb"));
        let option = option.unwrap_or_else(|| panic!("{}: no --acb", file.display()));
        // As sbatch does, which takes `#` for a comment there.
        let value = option.split('#').next().unwrap_or_default().trim();
        let value = value.strip_prefix('=').unwrap_or(value);
        if let Err(error) = AcbOption::parse(value) {
            panic!("{}: {error}", file.display());
        }
    }
}

/// A folder with programs that write down how they were called.
struct Stage {
    folder: TempDir,
}

impl Stage {
    fn new() -> Self {
        let stage = Stage { folder: tempfile::tempdir().unwrap() };
        stage.program("gpu_assigner", r#"echo "gpu_assigner $*" >>"$STAGE/calls""#);
        stage.program("agarun", r#"echo "agarun $* at $AGA_GPU_ALLOC_SERVER_ADDRESS:$AGA_GPU_ALLOC_SERVER_PORT" >>"$STAGE/calls"; shift; exec "$@""#);
        stage.program("pjrsh", r#"echo "node-$1""#);
        stage.program("hostname", r#"echo "$ON_NODE""#);
        // -machinefile FILE -npernode 1 PROGRAM…
        stage.program("mpiexec", r#"nodes=$2; shift 4; for node in $(sort -u "$nodes"); do ON_NODE=node-$node "$@" & done; wait"#);
        stage
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn program(&self, name: &str, body: &str) {
        let path = self.path().join(name);
        fs::write(&path, format!("#!/bin/bash\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, template: &str, job: &str) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/pjm").join(template);
        let path = format!("{}:{}", self.path().display(), std::env::var("PATH").unwrap());
        Command::new("bash")
            .arg(script.canonicalize().unwrap())
            .current_dir(self.path())
            .env("PATH", path)
            .env("STAGE", self.path())
            .env("PJM_JOBID", job)
            .env("PJM_O_NODEINF", self.path().join("nodes"))
            .env("PJM_O_WORKDIR", self.path())
            .output()
            .unwrap()
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path().join("calls")).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn one_gpu_is_shared_under_pjm() {
    let stage = Stage::new();
    stage.program("predict", "echo part $1");
    assert!(stage.run("share-one-gpu.sh", "77[3]").status.success());
    let calls = stage.calls();
    let assigner = format!(
        "gpu_assigner --port 20077 --pid-file-path {}/assigner-77[3].pid",
        stage.path().display()
    );
    assert_eq!(calls.len(), 4, "{calls:?}");
    assert!(calls[0].starts_with(&format!("{assigner} start")), "{calls:?}");
    let mut runs = calls[1..3].to_vec();
    runs.sort();
    assert_eq!(runs, [1, 2].map(|i| format!("agarun -- ./predict {i} at 127.0.0.1:20077")));
    assert_eq!(calls[3], format!("{assigner} stop"));
}

#[test]
fn the_assigner_is_stopped_when_programs_fail() {
    let stage = Stage::new();
    stage.program("predict", "exit 3");
    assert_eq!(stage.run("share-one-gpu.sh", "5").status.code(), Some(1));
    assert!(stage.calls().last().unwrap().ends_with(" stop"));
}

#[test]
fn the_assigner_is_stopped_at_the_elapse_limit() {
    let stage = Stage::new();
    // The first program sends what PJM sends; the second would run on.
    stage.program("predict", r#"if [[ $1 == 1 ]]; then kill -XCPU "$PPID"; else sleep 600; fi"#);
    assert_eq!(stage.run("share-one-gpu.sh", "5").status.code(), Some(152));
    assert!(stage.calls().last().unwrap().ends_with(" stop"));
}

#[test]
fn every_node_has_an_assigner_under_pjm() {
    let stage = Stage::new();
    stage.program("predict", "echo part $1");
    // Virtual nodes: an address comes twice.
    fs::write(stage.path().join("nodes"), "10.0.0.2\n10.0.0.1\n10.0.0.2\n").unwrap();
    let output = stage.run("multi-node.sh", "4242");
    assert!(output.status.success(), "{output:?}");
    let hosts = Multinode::load(&stage.path().join("acb-4242/.acb/multinode.toml")).unwrap();
    assert_eq!(hosts.controller().name, "node-10.0.0.2");
    assert_eq!(hosts.executors()[0].name, "node-10.0.0.1");
    let calls = stage.calls();
    let count = |end: &str| calls.iter().filter(|call| call.ends_with(end)).count();
    assert_eq!((count(" start"), count(" stop")), (2, 2), "{calls:?}");
    for part in 0..8 {
        let node = if part < 4 { "10.0.0.2" } else { "10.0.0.1" };
        assert_eq!(count(&format!("agarun -- ./predict {part} at {node}:24242")), 1, "{calls:?}");
    }
}
