//! The link to the node's assigner: the lease, the socket, and the thread that looks after both.
//!
//! Owns: what application threads and the link thread share; waiting for a lease; sending.
//! Does not own: connecting (`connection`), the thread's own doings (`thread`, `watch`), memory.
//!
//! Order of locks: the turn's, lease, then the pager's, the ledger's, then the outbox. None is held during a wait.

mod connection;
mod pulse;
mod socket;
mod starving;
mod switch;
mod thread;
mod turn;
mod watch;

pub(crate) use connection::{Connection, ContactError, Terms};
use pulse::{Moment, Pulse};
use socket::Socket;
pub(crate) use thread::{FIRST_PAUSE, run};

use crate::environment;
use crate::gate::Gate;
use crate::lease::{Entry, Lease};
use crate::log::{error, info};
use crate::pager::PAGER;
use crate::process;
use crate::work::{self, WORK};
use acb_cuda_abi::CuResult;
use acb_wire::frame;
use acb_wire::v1::{Acquire, ClientMessage, client_message::Kind};
use rustix::net::SendFlags;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use turn::Turn;

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
    /// Who reads the socket.
    turn: Turn,
    /// Whether the lease can still be trusted.
    pulse: Pulse,
    /// When a call last returned that had waited for the GPU: nanoseconds after `origin`.
    finished_ns: AtomicU64,
    origin: OnceLock<Instant>,
}

/// What goes out. Without a socket it is dropped: whatever matters is stated on reconnecting.
struct Outbox {
    socket: Option<Arc<Socket>>,
    pending: Vec<u8>,
}

impl Link {
    const fn new() -> Self {
        Link {
            gate: Gate::new(),
            lease: Mutex::new(Lease::None),
            waiting: AtomicU32::new(0),
            waited_ns: AtomicU64::new(0),
            outbox: Mutex::new(Outbox { socket: None, pending: Vec::new() }),
            turn: Turn::new(),
            pulse: Pulse::new(),
            finished_ns: AtomicU64::new(0),
            origin: OnceLock::new(),
        }
    }

    /// Whether a submitting call may go on; if so, the gate must be left afterwards.
    #[inline(always)]
    pub(crate) fn enter(&self) -> bool {
        self.gate.enter() && (self.pulse.is_fresh() || self.turn_back())
    }

    /// The process may have slept through the end of its lease.
    #[cold]
    fn turn_back(&self) -> bool {
        self.gate.leave();
        false
    }

    /// No assigner had given this process up at that moment.
    fn beat(&self, at: Moment) {
        if self.pulse.beat(at) {
            self.gate.ring();
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

    /// Whether something of this client may be at work on a GPU; without a lease all is drained.
    pub(crate) fn may_run(&self) -> bool {
        !matches!(*self.lease(), Lease::None | Lease::Asked)
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
        let _whole = environment::uncancelled();
        let signals = environment::signals_blocked();
        let context = work::current_context();
        WORK.add_context(context);
        PAGER.note_context(context);
        let began = Instant::now();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let outcome = loop {
            let heard = self.gate.rings();
            let entry = self.enter_queue();
            match entry {
                Entry::Retry if !self.pulse.is_fresh() => {
                    if self.pulse.awaits_beat() {
                        signals.while_waiting(|| self.gate.wait(heard));
                    }
                }
                Entry::Retry => {}
                Entry::AskAndWait | Entry::Wait => self.wait_at_gate(heard, &signals),
                Entry::Fail => break Err(CuResult::SYSTEM_NOT_READY),
            }
            if self.enter() {
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
            // Whatever is granted in answer to this was granted later.
            self.beat(Moment::now());
            self.send(Kind::Acquire(Acquire {}));
        }
        entry
    }

    /// Sends what the socket takes at once. An assigner that has not read for hundreds of messages
    /// gets the rest when the link thread next looks.
    pub(crate) fn send(&self, kind: Kind) {
        let bytes = frame::encode(&ClientMessage { kind: Some(kind) });
        let mut outbox = self.outbox();
        if outbox.socket.is_none() {
            return;
        }
        outbox.pending.extend_from_slice(&bytes);
        outbox.flush();
    }

    /// Whether messages go anywhere at present.
    pub(crate) fn is_connected(&self) -> bool {
        self.outbox().socket.is_some()
    }

    /// Whether there is, or was, a link thread.
    pub(crate) fn is_started(&self) -> bool {
        self.origin.get().is_some()
    }

    /// Takes a connection into use. The caller holds every lock under which messages are decided.
    fn install(&self, socket: &Arc<Socket>) {
        let mut outbox = self.outbox();
        outbox.pending.clear();
        outbox.socket = Some(socket.clone());
    }

    /// The connection is gone.
    fn uninstall(&self) {
        let mut outbox = self.outbox();
        outbox.pending.clear();
        outbox.socket = None;
    }

    /// In a forked child: nothing here is the child's. Takes no lock.
    pub(crate) fn detach(&self) {
        self.gate.close();
        socket::close_inherited();
    }

    /// Before the link thread exists: a fresh connection, a closed gate.
    pub(crate) fn start(&self, socket: &Arc<Socket>) {
        self.origin.get_or_init(Instant::now);
        *self.lease() = Lease::None;
        self.gate.close();
        self.pulse.start();
        self.install(socket);
    }

    /// cuInit failed after all: as if there had been no link.
    pub(crate) fn abandon(&self) {
        *self.lease() = Lease::None;
        self.uninstall();
        self.pulse.end();
        self.gate.open();
    }

    /// From now on there is no assigner: every call passes, or fails.
    pub(crate) fn give_up(&self, how: crate::settings::OnFailure) {
        self.pulse.end();
        let mut lease = self.lease();
        *lease = match how {
            crate::settings::OnFailure::Open => Lease::Regaining,
            crate::settings::OnFailure::Fail => Lease::Dead,
        };
        match *lease {
            // Where memory is missing the link thread opens it later.
            Lease::Regaining => drop(self.open_if_filled(&mut lease)),
            _ => {
                self.gate.close();
                self.gate.ring();
            }
        }
    }
}

impl Outbox {
    fn flush(&mut self) {
        let Some(socket) = &self.socket else { return };
        while !self.pending.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let sent = match socket.descriptor() {
                Some(descriptor) => rustix::net::send(descriptor, &self.pending, flags),
                None => Err(rustix::io::Errno::BADF),
            };
            match sent {
                Ok(sent) => drop(self.pending.drain(..sent)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                // The link thread sees the end of the socket and does what is to be done.
                Err(_) => self.pending.clear(),
            }
        }
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
