//! A connection to the assigner, and the first words on it.
//!
//! Owns: connecting with patience, Hello, Welcome, Bind, Bound; reading frames.
//! Does not own: what is said afterwards.

use super::pulse::BEAT;
use super::{LINK, Moment, Socket};
use crate::environment;
use crate::log::warning;
use crate::settings::{OnFailure, Settings};
use acb_wire::frame::{self, Decoder, FrameError};
use acb_wire::v1::{
    AssignerMessage, Bind, BoundGpu, ClientMessage, Held, Hello, OnFailure as WireOnFailure,
    Refused, assigner_message, client_message,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::net::{RecvFlags, SendFlags};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A user is told what is waited for when it has taken this long.
const PATIENT_UNTIL: Duration = Duration::from_secs(1);

/// What the assigner said in Welcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) client: u64,
    pub(crate) idle: Duration,
    pub(crate) grace: Duration,
    pub(crate) on_failure: OnFailure,
    pub(crate) context_bytes: u64,
    /// What the pager moves at a time; 0: nothing is paged.
    pub(crate) chunk_bytes: u64,
    /// Compare what hashes say is alike.
    pub(crate) compare: bool,
    /// How often at most the process is measured; zero: never.
    pub(crate) measure: Duration,
}

/// Why there is no contact.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContactError {
    #[error("no answer from the GPU assigner at {socket} within {} ms", waited.as_millis())]
    Silent { socket: String, waited: Duration },
    #[error("cannot reach the GPU assigner at {socket}: {cause}")]
    Connect { socket: String, cause: std::io::Error },
    #[error("the GPU assigner at {socket} closed the connection")]
    Closed { socket: String },
    #[error("what answers at {socket} is no GPU assigner of this version: {cause}")]
    Garbage { socket: String, cause: FrameError },
    #[error("the GPU assigner refuses: {}", .0.reason)]
    Refused(Refused),
}

impl ContactError {
    /// Whether a further try could end otherwise.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            ContactError::Connect { .. } | ContactError::Closed { .. } => true,
            ContactError::Silent { .. }
            | ContactError::Garbage { .. }
            | ContactError::Refused(_) => false,
        }
    }
}

pub(crate) struct Connection {
    pub(crate) socket: Arc<Socket>,
    decoder: Decoder,
    path: String,
}

impl Connection {
    /// Connects and says Hello, again and again until `deadline`.
    pub(crate) fn open(
        settings: &Settings,
        held: Option<Held>,
        patience: Duration,
    ) -> Result<(Connection, Terms), ContactError> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(5);
        let mut tell_at = Some(Instant::now() + PATIENT_UNTIL);
        loop {
            let at = Moment::now();
            let error = match Connection::once(settings, held.clone(), patience, deadline) {
                Ok(open) => return Ok(open),
                Err(error) => error,
            };
            if matches!(error, ContactError::Connect { .. }) {
                LINK.beat(at); // there is no assigner yet
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !error.may_pass() {
                return Err(error);
            }
            if tell_at.is_some_and(|at| Instant::now() >= at) {
                tell_at = None;
                warning!("{error}; trying again, for {:.0} s at most", patience.as_secs_f64());
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    fn once(
        settings: &Settings,
        held: Option<Held>,
        patience: Duration,
        deadline: Instant,
    ) -> Result<(Connection, Terms), ContactError> {
        let path = settings.socket.display().to_string();
        let socket = connect(&settings.socket)
            .map_err(|cause| ContactError::Connect { socket: path.clone(), cause })?;
        let socket = Arc::new(Socket::new(socket));
        let mut connection = Connection { socket, decoder: Decoder::new(), path };
        connection.say(client_message::Kind::Hello(hello(settings, held)), deadline, patience)?;
        loop {
            if let assigner_message::Kind::Welcome(welcome) =
                connection.answer(deadline, patience)?
            {
                let on_failure = match welcome.on_failure() {
                    WireOnFailure::Open => OnFailure::Open,
                    WireOnFailure::Fail => OnFailure::Fail,
                    WireOnFailure::Unspecified => settings.on_failure,
                };
                let grace = match welcome.grace_ms {
                    0 => settings.grace,
                    ms => Duration::from_millis(ms.into()),
                };
                let terms = Terms {
                    client: welcome.client,
                    idle: Duration::from_micros(welcome.idle_us.into()),
                    grace,
                    on_failure,
                    context_bytes: welcome.context_bytes,
                    chunk_bytes: welcome.chunk_bytes,
                    compare: welcome.compare,
                    measure: Duration::from_millis(welcome.measure_ms.into()),
                };
                return Ok((connection, terms));
            }
        }
    }

    /// Asks for the GPUs of this process, and waits for them.
    pub(crate) fn bind(&mut self, patience: Duration) -> Result<Vec<BoundGpu>, ContactError> {
        let deadline = Instant::now() + patience;
        self.say(client_message::Kind::Bind(Bind {}), deadline, patience)?;
        loop {
            if let assigner_message::Kind::Bound(bound) = self.answer(deadline, patience)? {
                return Ok(bound.gpus);
            }
        }
    }

    /// The next message, waiting for it. Refused is an error; so is silence.
    fn answer(
        &mut self,
        deadline: Instant,
        patience: Duration,
    ) -> Result<assigner_message::Kind, ContactError> {
        loop {
            if let Some(kind) = self.next()? {
                return match kind {
                    assigner_message::Kind::Refused(refused) => Err(ContactError::Refused(refused)),
                    kind => Ok(kind),
                };
            }
            if !self.wait(PollFlags::IN, deadline) {
                return Err(ContactError::Silent { socket: self.path.clone(), waited: patience });
            }
            self.receive()?;
        }
    }

    /// The next message that has arrived in full. Kinds that this version does not know are left out.
    pub(crate) fn next(&mut self) -> Result<Option<assigner_message::Kind>, ContactError> {
        let garbage = |cause| ContactError::Garbage { socket: self.path.clone(), cause };
        loop {
            match self.decoder.next::<AssignerMessage>().map_err(garbage)? {
                Some(AssignerMessage { kind: Some(kind) }) => return Ok(Some(kind)),
                Some(AssignerMessage { kind: None }) => {}
                None => return Ok(None),
            }
        }
    }

    /// Whether a message has arrived in part.
    pub(crate) fn is_in_mid_message(&self) -> bool {
        self.decoder.remaining() > 0
    }

    /// Takes in whatever has arrived, without waiting.
    pub(crate) fn receive(&mut self) -> Result<(), ContactError> {
        let mut buffer = [0u8; 4096];
        let Some(descriptor) = self.socket.descriptor() else { return Err(self.closed()) };
        match rustix::net::recv(descriptor, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(self.closed()),
            Ok((count, _)) => {
                self.decoder.extend(&buffer[..count]);
                Ok(())
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(()),
            Err(_) => Err(self.closed()),
        }
    }

    fn closed(&self) -> ContactError {
        ContactError::Closed { socket: self.path.clone() }
    }

    fn say(
        &self,
        kind: client_message::Kind,
        deadline: Instant,
        patience: Duration,
    ) -> Result<(), ContactError> {
        let bytes = frame::encode(&ClientMessage { kind: Some(kind) });
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let Some(descriptor) = self.socket.descriptor() else { return Err(self.closed()) };
            match rustix::net::send(descriptor, rest, flags) {
                Ok(sent) => rest = &rest[sent..],
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) if self.wait(PollFlags::OUT, deadline) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    return Err(ContactError::Silent {
                        socket: self.path.clone(),
                        waited: patience,
                    });
                }
                Err(_) => return Err(self.closed()),
            }
        }
        Ok(())
    }

    /// False: `deadline` has passed.
    fn wait(&self, flags: PollFlags, deadline: Instant) -> bool {
        loop {
            let at = Moment::now();
            let left = deadline.saturating_duration_since(Instant::now());
            let part = left.min(BEAT);
            let time =
                Timespec { tv_sec: part.as_secs() as i64, tv_nsec: part.subsec_nanos().into() };
            let Some(descriptor) = self.socket.descriptor() else { return true };
            match poll(&mut [PollFd::from_borrowed_fd(descriptor, flags)], Some(&time)) {
                Ok(0) if part == left => return false,
                // Nobody has taken the connection up yet. Who has slept is certain only when somebody has.
                Ok(0) if LINK.pulse.is_fresh() => LINK.beat(at),
                Ok(0) => {}
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// Connects without waiting: a full backlog counts as "not now".
fn connect(path: &Path) -> std::io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn hello(settings: &Settings, held: Option<Held>) -> Hello {
    Hello {
        protocol: acb_wire::PROTOCOL,
        pid: std::process::id(),
        start_time: environment::start_time(),
        program: environment::program(),
        gpus: settings.gpus,
        eligible: settings.eligible.clone(),
        held,
        step: settings.step.clone(),
        rank: settings.rank,
        memory_limit: settings.memory,
        priority: settings.priority,
        tenant: settings.tenant.clone(),
        queue: settings.queue.clone(),
        gang: settings.gang.clone(),
        gang_size: settings.gang_size,
    }
}
