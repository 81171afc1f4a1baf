//! Builds what the tests need, and starts clients.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Nothing that works takes this long, even on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The software GPU's driver, built.
pub(crate) fn software_gpu() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| build("simcuda").join("debug/libsimcuda.so"))
}

/// Builds a package whose library is no dependency of the tests; the target folder.
fn build(package: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("this program has a path");
    // TARGET/debug/deps/interposer-1234
    let target = exe.ancestors().nth(3).expect("tests run from a target folder");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["build", "--quiet", "--locked", "--package", package, "--target-dir"])
        .arg(target)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "{package} does not build");
    target.to_owned()
}

/// The interposer, built; or the one that `ACB_TEST_INTERPOSER` names.
pub(crate) fn interposer() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(path) = std::env::var_os("ACB_TEST_INTERPOSER") {
            return path.into();
        }
        // `cargo test` builds no cdylib for the tests of its own package.
        build("acb-preload").join("debug/libacb_cuda.so")
    })
}

/// The driver for tests, compiled.
pub(crate) fn driver() -> &'static Path {
    static DRIVER: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = DRIVER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("libcuda.so.1");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interposer/driver.c");
        let status = Command::new("cc")
            .args([
                "-shared",
                "-fPIC",
                "-O1",
                "-w",
                "-Wl,-Bsymbolic",
                "-Wl,-soname,libcuda.so.1",
                "-o",
            ])
            .args([&path, &source])
            .arg("-lpthread")
            .status()
            .expect("a C compiler is installed");
        assert!(status.success(), "the test driver does not compile");
        (folder, path)
    });
    path
}

/// A folder for one test, and how its client is started.
pub(crate) struct Lab {
    pub(crate) folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let variables = vec![
            ("ACB_SOCKET".to_owned(), path("client.sock")),
            ("ACB_DRIVER".to_owned(), driver().display().to_string()),
            ("ACB_GRACE_MS".to_owned(), "20000".to_owned()),
            ("ACB_LOG".to_owned(), "debug".to_owned()),
            ("DUMMY_LOG".to_owned(), path("driver.log")),
            ("CUDA_VISIBLE_DEVICES".to_owned(), "0".to_owned()),
        ];
        Lab { folder, variables }
    }

    /// On the software GPU: 16 GiB, a link of 2 GB/s, and what `config` says besides.
    pub(crate) fn on_software_gpu(config: &str) -> Self {
        let lab = Lab::new();
        let path = lab.folder.path().join("gpu.toml");
        // The GPU's shared state has the folder's name, and goes with it.
        let state = lab.state();
        let text =
            format!("state = \"{state}\"\nlink_out = \"2 GB\"\nlink_in = \"2 GB\"\n{config}\n");
        std::fs::write(&path, text).expect("the folder is writable");
        lab.with("ACB_DRIVER", software_gpu().display()).with("SIMCUDA_CONFIG", path.display())
    }

    /// For a program on the same software GPU that knows of no assigner.
    pub(crate) fn outside(&self) -> Self {
        let config = self.folder.path().join("gpu.toml");
        let lab = Lab::new().with("ACB_SOCKET", "").with("ACB_DRIVER", software_gpu().display());
        lab.with("SIMCUDA_CONFIG", config.display())
    }

    fn state(&self) -> String {
        let name = self.folder.path().file_name().expect("the folder has a name");
        name.to_string_lossy().into_owned()
    }

    /// A library of this name, built from C.
    pub(crate) fn library(&self, name: &str, code: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let source = path.with_extension("c");
        std::fs::write(&source, code).expect("the folder is writable");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&path, &source])
            .arg(format!("-Wl,-soname,{name}"))
            .status();
        assert!(built.expect("a C compiler is installed").success(), "{name} does not build");
        path
    }

    /// With one more library in the client from its start: an empty one, of this name.
    pub(crate) fn with_library(self, name: &str) -> Self {
        let all = format!("{}:{}", interposer().display(), self.library(name, "").display());
        self.with("LD_PRELOAD", all)
    }

    /// With a variable for the client; an empty value unsets it.
    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.variables.retain(|(n, _)| n != name);
        self.variables.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("client.sock")
    }

    pub(crate) fn start(&self, scenario: &str) -> Client {
        let exe = std::env::current_exe().expect("this program has a path");
        self.start_program(
            Command::new(exe).args(["client_entry", "--exact", "--nocapture", "--test-threads=1"]),
            scenario,
        )
    }

    pub(crate) fn start_program(&self, command: &mut Command, scenario: &str) -> Client {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ACB_")) {
            command.env_remove(name);
        }
        command.env("ACB_TEST_SCENARIO", scenario).env("LD_PRELOAD", interposer());
        for (name, value) in &self.variables {
            match value.is_empty() {
                true => command.env_remove(name),
                false => command.env(name, value),
            };
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Client { child: Some(command.spawn().expect("the client starts")) }
    }

    /// What the driver has been asked, line by line.
    pub(crate) fn driver_calls(&self) -> Vec<String> {
        let log =
            std::fs::read_to_string(self.folder.path().join("driver.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    pub(crate) fn count(&self, call: &str) -> usize {
        self.driver_calls().iter().filter(|line| line.starts_with(call)).count()
    }
}

/// A running client; killed when the test fails.
pub(crate) struct Client {
    child: Option<Child>,
}

impl Client {
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Lets a client that waits for a word go on.
    pub(crate) fn tell(&mut self, word: &str) {
        use std::io::Write;
        let stdin =
            self.child.as_mut().and_then(|child| child.stdin.as_mut()).expect("stdin is a pipe");
        writeln!(stdin, "{word}").expect("the client reads");
    }

    /// Stops it, as a debugger or a shell does.
    pub(crate) fn stop(&self) {
        signal(self.pid(), "STOP");
        let stat = format!("/proc/{}/stat", self.pid());
        let is_stopped = || std::fs::read_to_string(&stat).is_ok_and(|it| it.contains(") T "));
        wait_until("the client is stopped", is_stopped);
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        signal(self.pid(), "CONT");
    }

    /// Waits for its end; whatever it waits for on stdin does not come.
    pub(crate) fn end_of_input(mut self) -> Ended {
        drop(self.child.as_mut().and_then(|child| child.stdin.take()));
        self.end()
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        let child = self.child.take().expect("it runs");
        let pid = child.id();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        let Ok(output) = receiver.recv_timeout(PATIENCE) else {
            kill(pid);
            let output = receiver.recv().expect("it was killed").expect("its output");
            panic!("the client hangs:\n{}", Ended { output }.text());
        };
        Ended { output: output.expect("its output") }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let state = format!("-{}", self.state());
        for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("simcuda-") && name.ends_with(&state) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn kill(pid: u32) {
    signal(pid, "KILL");
}

fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
}

/// A client that has ended.
pub(crate) struct Ended {
    pub(crate) output: Output,
}

impl Ended {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    pub(crate) fn text(&self) -> String {
        format!("{}\nstdout:\n{}\nstderr:\n{}", self.output.status, self.stdout(), self.stderr())
    }

    /// The client came to its end and nothing in it panicked.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert!(self.output.status.success(), "{}", self.text());
        self
    }

    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.stderr().contains(text), "no `{text}` in\n{}", self.text());
        self
    }

    #[track_caller]
    pub(crate) fn prints(self, text: &str) -> Self {
        assert!(self.stdout().contains(text), "no `{text}` in\n{}", self.text());
        self
    }

    /// It prints that so often, neither more nor less.
    #[track_caller]
    pub(crate) fn prints_times(self, times: usize, text: &str) -> Self {
        assert_eq!(self.stdout().matches(text).count(), times, "`{text}` in\n{}", self.text());
        self
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
