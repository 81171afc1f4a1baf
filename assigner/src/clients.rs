//! The client socket: one task for each connection, on the broker's own thread.
//!
//! Owns reading, the end of a connection, and what a silent, greedy or broken peer can do to
//! others: nothing. Does not own what a message means ([`crate::broker`]).
//!
//! ```text
//!  accepted ──Hello──► member ──end of stream, garbage, never reads──► lost ──comes back──► member
//!     │                  │                                              │
//!     └── refused        └──────── its process, or program, is gone ────┴──► left
//! ```
//! A lease outlives the connection, because kernels run until the process is really gone: the
//! broker hears of that from a pidfd, or of another program in the same process (exec), in which
//! the driver of the first one is as gone as its connection. A process that lives on without a connection
//! has `COME_BACK` to make a new one.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use acb_core::{ClientId, Gpu};
use acb_wire::frame::{Decoder, FrameError};
use acb_wire::v1::{
    ClientMessage, Hello, RefusedCode, RoomKind, RoomRequest, client_message::Kind,
};
use tokio::net::{UnixListener, UnixStream, unix::UCred};
use tokio::time::{sleep, timeout};

use crate::broker::{Broker, Newcomer, Refused};
use crate::channel::Channel;
use crate::meter::Meter;
use crate::outbox::{End, Outbox};
use crate::process::{ProcessId, ProcessWatch, Program};

/// How long a process may live without a connection before it has left.
const COME_BACK: Duration = Duration::from_secs(2);
/// How long a peer may take to say Hello.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// How long a refused peer may take to read why.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);
/// How often NVML is asked about a GPU on which memory is missing.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Pause after a failed accept: descriptors may have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts clients for ever.
pub async fn serve(broker: Rc<RefCell<Broker>>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::task::spawn_local(connection(Rc::clone(&broker), stream));
            }
            Err(error) => {
                tracing::warn!("a client could not be accepted: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Reports the end of a process that has no connection of its own here.
pub async fn watch(broker: Rc<RefCell<Broker>>, client: ClientId, process: ProcessId) {
    if let Ok(watch) = ProcessWatch::new(process) {
        watch.gone().await;
    }
    broker.borrow_mut().process_gone(client);
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ending {
    #[error("the connection was closed")]
    Closed,
    #[error("the process is gone")]
    ProcessGone,
    #[error("it sent garbage: {0}")]
    Garbage(#[from] FrameError),
    #[error("{0}")]
    Refused(String),
    #[error("it does not read what it is sent")]
    NeverReads,
    #[error("{0}")]
    Broken(#[from] io::Error),
}

impl From<Refused> for Ending {
    fn from(refused: Refused) -> Ending {
        Ending::Refused(refused.reason)
    }
}

async fn connection(broker: Rc<RefCell<Broker>>, stream: UnixStream) {
    let accepted = stream.peer_cred().and_then(|peer| Ok((peer, Rc::new(Channel::new(stream)?))));
    let (credentials, channel) = match accepted {
        Ok(accepted) => accepted,
        Err(error) => return tracing::warn!("a client could not be accepted: {error}"),
    };
    let outbox = Rc::new(Outbox::new(Rc::clone(&channel)));
    let mut peer = Peer {
        channel,
        outbox,
        decoder: Decoder::new(),
        part: Box::new([0; 4096]),
        process: None,
        watch: None,
        program: None,
    };
    let client = match peer.introduce(&broker, credentials).await {
        Ok(client) => client,
        Err(ending) => {
            tracing::info!("a connection ended before it was a client's: {ending}");
            peer.say_goodbye().await;
            return;
        }
    };
    let ending = peer.converse(&broker, client).await;
    if !matches!(ending, Ending::Closed | Ending::ProcessGone) {
        tracing::warn!("connection of {client} closed: {ending}");
    }
    if !matches!(ending, Ending::ProcessGone) {
        broker.borrow_mut().disconnect(client);
        peer.say_goodbye().await;
    }
    wait_for_end(&broker, client, peer).await;
}

/// After the connection: the client is there until its process is gone, or does not come back.
async fn wait_for_end(broker: &Rc<RefCell<Broker>>, client: ClientId, peer: Peer) {
    let Peer { watch, process, program, .. } = peer;
    if let (Some(watch), Some(process)) = (watch, process)
        && process.is_alive()
    {
        let end = async {
            tokio::select! {
                () = watch.gone() => false,
                () = ProcessWatch::replaced(process, program) => true,
            }
        };
        let ended = timeout(COME_BACK, end).await;
        if ended.is_err() && !broker.borrow().is_lost(client) {
            return; // it is back, on another connection
        }
        let pid = process.pid;
        match ended {
            Ok(true) => tracing::info!("{client} (pid {pid}) runs another program now"),
            Ok(false) => {}
            Err(_) => tracing::warn!("{client} (pid {pid}) lives on without a connection"),
        }
    }
    let mut broker = broker.borrow_mut();
    // Only if the process is gone, or nobody came back, is this connection the client's last.
    if broker.is_lost(client) || !process.is_some_and(ProcessId::is_alive) {
        broker.leave(client);
    }
}

struct Peer {
    channel: Rc<Channel>,
    outbox: Rc<Outbox>,
    decoder: Decoder,
    /// What is read, on its way to the decoder. Kept, for to clear it before each message costs more than the message.
    part: Box<[u8; 4096]>,
    process: Option<ProcessId>,
    watch: Option<ProcessWatch>,
    program: Option<Program>,
}

impl Peer {
    /// From the first byte to Welcome.
    async fn introduce(
        &mut self,
        broker: &Rc<RefCell<Broker>>,
        credentials: UCred,
    ) -> Result<ClientId, Ending> {
        let own = rustix::process::geteuid().as_raw();
        if credentials.uid() != own && credentials.uid() != 0 {
            let uid = credentials.uid();
            return Err(self.refuse(Refused::new(
                RefusedCode::Permission,
                format!("this assigner serves uid {own}; you are uid {uid}"),
            )));
        }
        // A peer in a pid namespace that is not below ours has no pid here.
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        self.process = pid.and_then(ProcessId::of);
        self.watch = match self.process.map(ProcessWatch::new) {
            Some(Ok(watch)) => Some(watch),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Ending::ProcessGone);
            }
            Some(Err(error)) => return Err(error.into()),
            None => None,
        };
        self.program = self.process.and_then(ProcessId::program);
        let first = match timeout(HELLO_LIMIT, self.next()).await {
            Ok(message) => message?,
            Err(_) => {
                return Err(self.refuse(Refused::new(RefusedCode::Protocol, "no Hello in time")));
            }
        };
        let Kind::Hello(hello) = first else {
            return Err(
                self.refuse(Refused::new(RefusedCode::Protocol, "the first message is not Hello"))
            );
        };
        self.join(broker, hello)
    }

    fn join(&mut self, broker: &Rc<RefCell<Broker>>, hello: Hello) -> Result<ClientId, Ending> {
        let outbox = Rc::clone(&self.outbox);
        let joined = broker.borrow_mut().join(Newcomer { process: self.process, hello, outbox });
        joined.map_err(|refused| self.refuse(refused))
    }

    fn refuse(&self, refused: Refused) -> Ending {
        let ending = Ending::Refused(refused.reason.clone());
        self.outbox.send(refused.message());
        self.outbox.finish();
        ending
    }

    /// From Welcome to the end.
    async fn converse(&mut self, broker: &Rc<RefCell<Broker>>, client: ClientId) -> Ending {
        loop {
            let message = match self.next().await {
                Ok(message) => message,
                Err(ending) => return ending,
            };
            if let Kind::RoomRequest(request) = &message
                && matches!(request.kind(), RoomKind::ContextSize | RoomKind::ProcessSize)
            {
                tokio::task::spawn_local(measure(Rc::clone(broker), client, *request));
                continue;
            }
            let short = match &message {
                Kind::Short(short) => Some(short.device),
                _ => None,
            };
            let answer = broker.borrow_mut().message(client, message);
            if let Some(device) = short {
                let found = broker.borrow_mut().look_after(client, device);
                if let Some((meter, gpu, uuid)) = found {
                    tokio::task::spawn_local(look_after(Rc::clone(broker), meter, gpu, uuid));
                }
            }
            if let Err(refused) = answer {
                return self.refuse(refused);
            }
        }
    }

    /// The next message; writes meanwhile what the socket did not take.
    async fn next(&mut self) -> Result<Kind, Ending> {
        loop {
            if let Some(ClientMessage { kind }) = self.decoder.next::<ClientMessage>()? {
                match kind {
                    Some(kind) => return Ok(kind),
                    // A kind of a later version: it is passed over, as protobuf has it.
                    None => continue,
                }
            }
            // Here too, so that a client that always has something to say hears the answers.
            self.outbox.flush();
            match self.outbox.end() {
                None | Some(End::Finished) => {}
                Some(End::Overflow) => return Err(Ending::NeverReads),
                Some(End::Broken) => return Err(Ending::Closed),
            }
            tokio::select! {
                biased;
                () = gone(self.watch.as_ref()) => return Err(Ending::ProcessGone),
                read = self.channel.read(&mut self.part[..]) => match read {
                    Ok(0) => return Err(Ending::Closed),
                    Ok(count) => self.decoder.extend(&self.part[..count]),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                        return Err(Ending::Closed);
                    }
                    Err(error) => return Err(error.into()),
                },
                writable = self.channel.writable(), if self.outbox.has_queued() => {
                    writable?;
                    self.outbox.flush();
                }
                () = self.outbox.attention() => {}
            }
        }
    }

    /// Lets a refused peer read why, and closes the connection for both sides.
    async fn say_goodbye(&mut self) {
        let flushed = async {
            while self.outbox.has_queued() && self.channel.writable().await.is_ok() {
                self.outbox.flush();
            }
        };
        let _ = timeout(GOODBYE_LIMIT, flushed).await;
        let _ = rustix::net::shutdown(&*self.channel, rustix::net::Shutdown::Both);
    }
}

/// Asks NVML elsewhere, for it takes its time, and tells the client.
async fn measure(broker: Rc<RefCell<Broker>>, client: ClientId, request: RoomRequest) {
    let question = broker.borrow().size_question(client, request.device);
    let bytes = match question {
        Some((meter, pid, uuid)) => {
            tokio::task::spawn_blocking(move || meter.bytes_of(pid, &uuid)).await.ok().flatten()
        }
        None => None,
    };
    broker.borrow_mut().measured(client, &request, bytes.unwrap_or(0));
}

/// Asks NVML how much of a GPU is in use while page-ins find less there than they should.
async fn look_after(broker: Rc<RefCell<Broker>>, meter: Arc<Meter>, gpu: Gpu, uuid: String) {
    loop {
        let (meter, uuid) = (Arc::clone(&meter), uuid.clone());
        let used = tokio::task::spawn_blocking(move || meter.used(&uuid)).await.ok().flatten();
        if !broker.borrow_mut().in_use(gpu, used) {
            return;
        }
        sleep(LOOK_AGAIN).await;
    }
}

async fn gone(watch: Option<&ProcessWatch>) {
    match watch {
        Some(watch) => watch.gone().await,
        None => std::future::pending().await,
    }
}
