//! A daemon of a test's own, and a client that speaks the wire by hand.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use acb_wire::frame::{self, Decoder};
use acb_wire::v1::{self, assigner_message, client_message};
use tempfile::TempDir;

/// How long anything may take before a test has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// A home folder with a port, and the daemon in it, if one was started.
pub(crate) struct Home {
    pub(crate) folder: TempDir,
    pub(crate) port: u16,
}

impl Home {
    pub(crate) fn new() -> Home {
        Home::with("gpus = 2\n")
    }

    /// A home with other GPUs than two that are alike.
    pub(crate) fn with(gpus: &str) -> Home {
        // Free now; nobody else takes ports from this range in between.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::Builder::new().prefix("acb").tempdir_in("/tmp").unwrap();
        let home = Home { folder, port };
        home.configure(&format!("memory = \"1GiB\"\nreserved = \"70MiB\"\n{gpus}"));
        home
    }

    /// Lays down what the GPUs are like; their shared state has the folder's name, and goes with it.
    pub(crate) fn configure(&self, text: &str) {
        let text = format!("state = \"{}\"\n{text}", self.state());
        std::fs::write(self.path("sim.toml"), text).unwrap();
    }

    fn state(&self) -> String {
        self.folder.path().file_name().unwrap().to_string_lossy().into_owned()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command with this home.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("HOME", self.folder.path())
            .env("SIMCUDA_CONFIG", self.path("sim.toml"))
            .env("ACB_NVML", simulated_nvml())
            .env("AGA_GPU_ALLOC_SERVER_PORT", self.port.to_string())
            .env_remove("ACB_SOCKET")
            .env_remove("ACB_GPUS");
        command
    }

    /// `gpu_assigner --port PORT …`
    pub(crate) fn assigner(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(env!("CARGO_BIN_EXE_gpu_assigner"));
        command.args(["--port", &self.port.to_string()]).args(arguments).output().unwrap()
    }

    pub(crate) fn start(&self, options: &[&str]) {
        let output = self.assigner(&[&["start"], options].concat());
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        let output = self.assigner(&["status", "--json"]);
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        PathBuf::from(self.status()["nodes"][0]["client_socket"].as_str().unwrap())
    }

    /// The supervisor's pid.
    pub(crate) fn pid(&self) -> u32 {
        self.status()["nodes"][0]["pid"].as_u64().unwrap() as u32
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = self.assigner(&["stop"]);
        let state = self.state();
        for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("simcuda-") && name.ends_with(&format!("-{state}")) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

pub(crate) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The software GPU's NVML, built beside this test.
pub(crate) fn simulated_nvml() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let profile = test.parent().and_then(Path::parent).unwrap();
        let target = profile.parent().unwrap();
        let mut command = Command::new(env!("CARGO"));
        command.args(["build", "--quiet", "--package", "simcuda-nvml", "--target-dir"]).arg(target);
        if profile.file_name().is_some_and(|name| name == "release") {
            command.arg("--release");
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", errors(&output));
        profile.join("libsimnvml.so")
    })
}

/// Waits for a condition.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A client by hand.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    decoder: Decoder,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> Client {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Client { stream, decoder: Decoder::new() }
    }

    /// Connects and is welcomed.
    pub(crate) fn join(socket: &Path, held: Option<v1::Held>) -> (Client, u64) {
        let mut client = Client::connect(socket);
        client.hello(held);
        let assigner_message::Kind::Welcome(welcome) = client.next() else {
            panic!("no Welcome");
        };
        (client, welcome.client)
    }

    /// Connects and is welcomed, with more to say in Hello.
    pub(crate) fn join_with(socket: &Path, say: impl FnOnce(&mut v1::Hello)) -> Client {
        let mut client = Client::connect(socket);
        let mut hello = v1::Hello {
            protocol: acb_wire::PROTOCOL,
            program: "test".to_owned(),
            gpus: 1,
            ..v1::Hello::default()
        };
        say(&mut hello);
        client.send(client_message::Kind::Hello(hello));
        match client.next() {
            assigner_message::Kind::Welcome(_) => client,
            other => panic!("no Welcome, but {other:?}"),
        }
    }

    pub(crate) fn hello(&mut self, held: Option<v1::Held>) {
        self.send(client_message::Kind::Hello(v1::Hello {
            protocol: acb_wire::PROTOCOL,
            program: "test".to_owned(),
            gpus: 1,
            held,
            ..v1::Hello::default()
        }));
    }

    pub(crate) fn send(&mut self, kind: client_message::Kind) {
        let frame = frame::encode(&v1::ClientMessage { kind: Some(kind) });
        self.stream.write_all(&frame).unwrap();
    }

    pub(crate) fn bind(&mut self) -> Vec<String> {
        self.send(client_message::Kind::Bind(v1::Bind {}));
        let assigner_message::Kind::Bound(bound) = self.next() else { panic!("no Bound") };
        bound.gpus.into_iter().map(|gpu| gpu.uuid).collect()
    }

    pub(crate) fn acquire(&mut self) {
        self.send(client_message::Kind::Acquire(v1::Acquire {}));
    }

    pub(crate) fn granted(&mut self) -> u64 {
        loop {
            if let assigner_message::Kind::Granted(granted) = self.next() {
                return granted.epoch;
            }
        }
    }

    pub(crate) fn release(&mut self, epoch: u64) {
        self.send(client_message::Kind::Release(v1::Release { epoch, ..v1::Release::default() }));
    }

    pub(crate) fn next(&mut self) -> assigner_message::Kind {
        self.try_next().expect("the connection was closed")
    }

    /// What came together with the message before, without reading on.
    pub(crate) fn at_hand(&mut self) -> Option<assigner_message::Kind> {
        self.decoder.next::<v1::AssignerMessage>().unwrap()?.kind
    }

    /// `None` at the end of the connection.
    pub(crate) fn try_next(&mut self) -> Option<assigner_message::Kind> {
        loop {
            if let Some(message) = self.decoder.next::<v1::AssignerMessage>().unwrap() {
                return message.kind;
            }
            let mut part = [0; 4096];
            match self.stream.read(&mut part) {
                Ok(0) => return None,
                Ok(count) => self.decoder.extend(&part[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                // A read with a time limit does not go on by itself after its process was stopped.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}
