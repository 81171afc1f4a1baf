//! The link to the node's assigner: the lease, the socket, and the thread that looks after both.
//!
//! Owns: what application threads and the link thread share; waiting for a lease; sending.
//! Does not own: connecting (`connection`), the thread's own doings (`thread`, `watch`), memory.
//!
//! Order of locks: lease, then the ledger's, then the outbox. None is held during a wait.

mod connection;
mod thread;
mod watch;

pub(crate) use connection::{Connection, ContactError, Terms};
pub(crate) use thread::run;

use crate::gate::Gate;
use crate::lease::{Entry, Lease};
use crate::log::{error, info};
use crate::process;
use crate::work::{self, WORK};
use acb_cuda_abi::CuResult;
use acb_wire::frame;
use acb_wire::v1::{Acquire, ClientMessage, client_message::Kind};
use rustix::net::SendFlags;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// The one link of this process.
pub(crate) static LINK: Link = Link::new();

pub(crate) struct Link {
    pub(crate) gate: Gate,
    lease: Mutex<Lease>,
    /// Calls that stand at the gate.
    waiting: AtomicU32,
    /// Nanoseconds that calls have stood there.
    waited_ns: AtomicU64,
    outbox: Mutex<Outbox>,
    /// Wakes the link thread when something is left to be sent.
    doorbell: OnceLock<OwnedFd>,
    /// When a call last returned that had waited for the GPU: nanoseconds after `origin`.
    finished_ns: AtomicU64,
    origin: OnceLock<Instant>,
    /// Descriptor of the socket, for a forked child to close; -1: none.
    socket: AtomicI32,
}

/// What goes out. Without a stream it is dropped: whatever matters is stated on reconnecting.
struct Outbox {
    stream: Option<Arc<UnixStream>>,
    pending: Vec<u8>,
}

impl Link {
    const fn new() -> Self {
        Link {
            gate: Gate::new(),
            lease: Mutex::new(Lease::None),
            waiting: AtomicU32::new(0),
            waited_ns: AtomicU64::new(0),
            outbox: Mutex::new(Outbox { stream: None, pending: Vec::new() }),
            doorbell: OnceLock::new(),
            finished_ns: AtomicU64::new(0),
            origin: OnceLock::new(),
            socket: AtomicI32::new(-1),
        }
    }

    /// The GPU has just finished something.
    #[inline]
    pub(crate) fn note_finished(&self) {
        if let Some(origin) = self.origin.get() {
            self.finished_ns.store(origin.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// When it last did, as far as the program's own calls tell.
    fn last_finished(&self) -> Option<Instant> {
        let after = std::time::Duration::from_nanos(self.finished_ns.load(Ordering::Relaxed));
        self.origin.get().map(|origin| *origin + after)
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A submitting call found the gate closed. Returns with the call inside, or with an error.
    #[cold]
    #[inline(never)]
    pub(crate) fn wait_for_lease(&self, symbol: &'static str) -> Result<(), CuResult> {
        if process::is_detached() {
            return Err(CuResult::NOT_INITIALIZED);
        }
        WORK.add_context(work::current_context());
        let began = Instant::now();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let outcome = loop {
            let heard = self.gate.rings();
            let entry = self.enter_queue();
            match entry {
                Entry::Retry => {}
                Entry::AskAndWait | Entry::Wait => self.gate.wait(heard),
                Entry::Fail => break Err(CuResult::SYSTEM_NOT_READY),
            }
            if self.gate.enter() {
                break Ok(());
            }
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        let waited = began.elapsed();
        self.waited_ns.fetch_add(waited.as_nanos() as u64, Ordering::Relaxed);
        match outcome {
            Ok(()) => info!("{symbol} waited {:.3} ms for the GPU", waited.as_secs_f64() * 1e3),
            Err(_) => tell_dead(symbol),
        }
        outcome
    }

    /// Asks for the lease unless that is done already. The lock is held while Acquire is sent, so
    /// that it cannot overtake a Release; sending never waits.
    fn enter_queue(&self) -> Entry {
        let mut lease = self.lease();
        let entry = lease.want();
        if entry == Entry::AskAndWait {
            self.send(Kind::Acquire(Acquire {}));
        }
        entry
    }

    /// Sends what the socket takes at once, and leaves the rest to the link thread.
    pub(crate) fn send(&self, kind: Kind) {
        let bytes = frame::encode(&ClientMessage { kind: Some(kind) });
        let mut outbox = self.outbox();
        if outbox.stream.is_none() {
            return;
        }
        let ring = outbox.pending.is_empty();
        outbox.pending.extend_from_slice(&bytes);
        if ring && !outbox.flush() {
            self.ring_doorbell();
        }
    }

    /// Whether messages go anywhere at present.
    pub(crate) fn is_connected(&self) -> bool {
        self.outbox().stream.is_some()
    }

    fn ring_doorbell(&self) {
        if let Some(doorbell) = self.doorbell.get() {
            // It can only fail when it has been rung 2^64 times and not heard.
            let _ = rustix::io::write(doorbell, &1u64.to_ne_bytes());
        }
    }

    /// Takes a connection into use. The caller holds every lock under which messages are decided.
    fn install(&self, stream: &Arc<UnixStream>) {
        self.socket.store(stream.as_raw_fd(), Ordering::SeqCst);
        let mut outbox = self.outbox();
        outbox.pending.clear();
        outbox.stream = Some(stream.clone());
    }

    /// The connection is gone.
    fn uninstall(&self) {
        // First the number, then the descriptor: a child forked in between must not close another's.
        self.socket.store(-1, Ordering::SeqCst);
        let mut outbox = self.outbox();
        outbox.pending.clear();
        outbox.stream = None;
    }

    /// In a forked child: nothing here is the child's. Takes no lock.
    pub(crate) fn detach(&self) {
        self.gate.close();
        let socket = self.socket.swap(-1, Ordering::SeqCst);
        if socket >= 0 {
            crate::environment::close_descriptor(socket);
        }
        if let Some(doorbell) = self.doorbell.get() {
            crate::environment::close_descriptor(doorbell.as_raw_fd());
        }
    }

    /// Before the link thread exists: a fresh connection, a closed gate.
    pub(crate) fn start(&self, stream: &Arc<UnixStream>) -> std::io::Result<()> {
        use rustix::event::{EventfdFlags, eventfd};
        if self.doorbell.get().is_none() {
            let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let _ = self.doorbell.set(made);
        }
        self.origin.get_or_init(Instant::now);
        *self.lease() = Lease::None;
        self.gate.close();
        self.install(stream);
        Ok(())
    }

    /// cuInit failed after all: as if there had been no link.
    pub(crate) fn abandon(&self) {
        *self.lease() = Lease::None;
        self.uninstall();
        self.gate.open();
    }

    /// From now on there is no assigner: every call passes, or fails.
    pub(crate) fn give_up(&self, how: crate::settings::OnFailure) {
        let mut lease = self.lease();
        *lease = match how {
            crate::settings::OnFailure::Open => Lease::Free,
            crate::settings::OnFailure::Fail => Lease::Dead,
        };
        match *lease {
            Lease::Free => self.gate.open(),
            _ => {
                self.gate.close();
                self.gate.ring();
            }
        }
    }
}

impl Outbox {
    /// True: nothing is left.
    fn flush(&mut self) -> bool {
        let Some(stream) = &self.stream else { return true };
        while !self.pending.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(stream.as_fd(), &self.pending, flags) {
                Ok(sent) => drop(self.pending.drain(..sent)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return false,
                // The reader sees the end of the stream and does what is to be done.
                Err(_) => {
                    self.pending.clear();
                    return true;
                }
            }
        }
        true
    }
}

fn tell_dead(symbol: &str) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        error!(
            "{symbol}: the GPU assigner is gone and ACB_ON_FAILURE is fail: CUDA_ERROR_SYSTEM_NOT_READY is returned"
        );
    }
}
