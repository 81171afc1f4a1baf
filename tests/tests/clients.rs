//! Programs that nobody here wrote the driver access of, on software GPUs: alone, and several at a time under
//! the interposer and a user's own assigner.
//!
//! Owns: that each of them computes what is right in every round, that they take turns, and that their memory is moved for each other. Does not own: how they
//! find the driver (interpose.rs). Needs an installation with tests, named by ACB_PREFIX.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use acb_tests::bench::outside::Outside;
use acb_tests::bench::record::Round;
use acb_tests::lab::Prefix;
use anyhow::{Context, Result, ensure};

const GPU: &str = "[[gpu]]\nname = \"Simulated GPU\"\nmemory = \"2GiB\"\n";
/// So small that the memory of one program fits, and that of two does not.
const SMALL: &str =
    "[[gpu]]\nname = \"Simulated GPU\"\nmemory = \"64MiB\"\ncontext_bytes = 1048576\n";
const ROUNDS: usize = 4;
const FEW_BYTES: u64 = 3 << 20;
/// Each program has so much twice: more than half of the small GPU.
const MOST_BYTES: u64 = 24 << 20;
/// Between two looks at the status.
const LOOK: Duration = Duration::from_millis(20);

/// When nothing is expected to come any more.
const PATIENCE: Duration = Duration::from_secs(180);

/// A program and what comes before the options of all of them.
#[derive(Clone)]
struct Client {
    name: &'static str,
    program: PathBuf,
    script: Option<OsString>,
}

impl Client {
    fn rust(prefix: &Prefix) -> Client {
        let program = prefix.test_program("cudarc_rounds");
        Client { name: "cudarc", program, script: None }
    }

    fn python(name: &'static str, script: &str) -> Result<Client> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
        let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
        let made = Command::new(sources.join("python-env")).arg(environment).output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let program = PathBuf::from(String::from_utf8(made.stdout)?.trim());
        Ok(Client { name, program, script: Some(sources.join(script).into()) })
    }

    /// Runs all rounds; its record.
    fn run(&self, command: Command, name: &str, bytes: u64) -> Result<Vec<Round>> {
        let rounds = self.run_until(None, command, name, bytes)?;
        ensure!(rounds.len() == ROUNDS, "{name}: {} rounds", rounds.len());
        Ok(rounds)
    }

    /// Runs all rounds, and further ones until a file is there; its record.
    fn run_until(
        &self,
        until: Option<&Path>,
        mut command: Command,
        name: &str,
        bytes: u64,
    ) -> Result<Vec<Round>> {
        command.args(&self.script);
        command.args(["--rounds", &ROUNDS.to_string(), "--cpu-ms", "20", "--gpu-ms", "10"]);
        command.args([
            "--bytes",
            &bytes.to_string(),
            "--seed",
            &name.len().to_string(),
            "--name",
            name,
        ]);
        if let Some(file) = until {
            command.arg("--until").arg(file);
        }
        let ended =
            command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
        let stdout = String::from_utf8_lossy(&ended.stdout);
        let rounds: Vec<Round> = stdout.lines().filter_map(Round::parse).collect();
        ensure!(ended.status.success(), "{name}: {ended:?}");
        ensure!(rounds.iter().all(|round| round.ok), "{name}: {ended:?}");
        Ok(rounds)
    }

    /// Alone, and then two at a time.
    fn proves_itself(&self) -> Result<()> {
        let prefix = Prefix::from_env()?;
        // A pause inside a GPU phase, on a crowded machine, is not to end the lease; nor is the quantum.
        let options = ["--idle-us", "1000000", "--quantum-ms", "3600000"];
        let outside = Outside::start(&prefix, GPU, &options)?;
        self.run(outside.plain(&self.program), "alone", FEW_BYTES)
            .context("without the interposer")?;
        let names = ["a", "bb"];
        let records = std::thread::scope(|scope| -> Result<Vec<Vec<Round>>> {
            let clients = names.map(|name| {
                scope.spawn(|| self.run(outside.agarun(&[], &self.program), name, FEW_BYTES))
            });
            clients.into_iter().map(|client| client.join().expect("no panic")).collect()
        });
        let records = records.with_context(|| format!("{}\n{}", self.name, outside.log()))?;
        let mut phases: Vec<(u64, u64)> =
            records.iter().flatten().map(|round| (round.gpu_got_ns, round.gpu_done_ns)).collect();
        phases.sort_unstable();
        for pair in phases.windows(2) {
            ensure!(pair[0].1 <= pair[1].0, "{}: two GPU phases at a time: {pair:?}", self.name);
        }
        Ok(())
    }
}

#[test]
fn cudarc_in_rounds() -> Result<()> {
    Client::rust(&Prefix::from_env()?).proves_itself()
}

#[test]
fn numba_in_rounds() -> Result<()> {
    Client::python("numba", "numba_rounds.py")?.proves_itself()
}

#[test]
fn nvidias_bindings_in_rounds() -> Result<()> {
    Client::python("cuda-bindings", "bindings_rounds.py")?.proves_itself()
}

#[test]
fn all_of_them_together() -> Result<()> {
    let prefix = Prefix::from_env()?;
    let outside = Outside::start(&prefix, GPU, &["--idle-us", "100000"])?;
    let clients = [
        Client::rust(&prefix),
        Client::python("numba", "numba_rounds.py")?,
        Client::python("cuda-bindings", "bindings_rounds.py")?,
    ];
    std::thread::scope(|scope| -> Result<()> {
        let running = clients.each_ref().map(|client| {
            scope.spawn(|| client.run(outside.agarun(&[], &client.program), client.name, FEW_BYTES))
        });
        for client in running {
            client.join().expect("no panic").with_context(|| outside.log())?;
        }
        Ok(())
    })
}

/// Programs whose memory does not fit together take turns: what each of them computes is right, and the memory of each was
/// moved out and came back.
fn swap_each_other(clients: &[Client]) -> Result<()> {
    let prefix = Prefix::from_env()?;
    let options = ["--context-mib", "2", "--chunk-mib", "2"];
    let outside = Outside::start(&prefix, SMALL, &options)?;
    let mut paged_in: BTreeMap<u32, u64> = BTreeMap::new();
    let folder = tempfile::tempdir()?;
    let until = folder.path().join("enough");
    std::thread::scope(|scope| -> Result<()> {
        let running: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(at, client)| {
                let (outside, until) = (&outside, &until);
                let name = format!("{}{at}", client.name);
                scope.spawn(move || {
                    let command = outside.agarun(&[], &client.program);
                    client.run_until(Some(until), command, &name, MOST_BYTES)
                })
            })
            .collect();
        // They go on until the memory of all has come back, or one of them has failed.
        let begin = Instant::now();
        while !running.iter().any(|client| client.is_finished()) && begin.elapsed() < PATIENCE {
            let clients_now = outside.status().ok().flatten().map(|status| status.clients);
            for client in clients_now.into_iter().flatten() {
                paged_in.insert(client.pid, client.memory().paged_in);
            }
            if paged_in.len() == clients.len() && paged_in.values().all(|bytes| *bytes > 0) {
                break;
            }
            std::thread::sleep(LOOK);
        }
        std::fs::write(&until, "")?;
        for client in running {
            client.join().expect("no panic").with_context(|| outside.log())?;
        }
        Ok(())
    })?;
    ensure!(paged_in.len() == clients.len(), "{paged_in:?}");
    ensure!(paged_in.values().all(|bytes| *bytes > 0), "some memory never moved: {paged_in:?}");
    Ok(())
}

#[test]
fn cudarc_is_swapped() -> Result<()> {
    let client = Client::rust(&Prefix::from_env()?);
    swap_each_other(&[client.clone(), client])
}

#[test]
fn numba_is_swapped() -> Result<()> {
    let client = Client::python("numba", "numba_rounds.py")?;
    swap_each_other(&[client.clone(), client])
}

#[test]
fn nvidias_bindings_are_swapped() -> Result<()> {
    let client = Client::python("cuda-bindings", "bindings_rounds.py")?;
    swap_each_other(&[client.clone(), client])
}

#[test]
fn all_of_them_swap_each_other() -> Result<()> {
    swap_each_other(&[
        Client::rust(&Prefix::from_env()?),
        Client::python("numba", "numba_rounds.py")?,
        Client::python("cuda-bindings", "bindings_rounds.py")?,
    ])
}
