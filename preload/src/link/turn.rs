//! Who reads the socket: the link thread, or a call at the gate that waits for its grant.
//!
//! Owns: the turn, and the reading of a grant by the call that waits for it, which spares the
//! link thread's waking it: a sixth of the way from release to launch.
//! Does not own: every other message. They stay in the socket for the link thread.
//!
//! ```text
//!      link thread waits for the socket ──> Free ──a call at the gate──> Call
//!        ▲                                   │ ▲                          │
//!        │                link thread wakes  │ └─ grant, another message ─┘
//!        │                                   ▼
//!        └──────────────────────────────── Link <── the call is too slow, or will never come
//! ```
//! The link thread waits for the same socket through an ear of its own ([`Socket::listen`]). A call that
//! has the turn shuts it, for to be woken together would cost a sixth of the way once more; it opens
//! it again with the end of its turn, so nothing that it leaves in the socket is overlooked. A call that
//! never comes back (a signal handler's longjmp) keeps it shut until the link thread next looks
//! up, and then loses its turn. It finds out from the number of its turn.
//!
//! What must hold: a call has the turn only while the lease is asked for, for the gate of any other
//! closed lease is opened without a message; and it opens the gate itself only where a grant
//! leaves nothing else to be done ([`Pager::open_gate_for`](crate::pager::Pager::open_gate_for)).

use super::socket::Socket;
use super::{Link, Moment};
use crate::environment::SignalsBlocked;
use crate::lease::{Lease, Order};
use crate::pager::PAGER;
use acb_wire::frame::Decoder;
use acb_wire::v1::{AssignerMessage, Ready, assigner_message::Kind, client_message::Kind as Say};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the link thread leaves a message to the call that has the turn. Such a call has been
/// woken by the same message: it is late because it is starved, or gone with a signal handler's
/// longjmp.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often a call looks whether it still has the turn and the socket is still ours.
const ROUNDS: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
/// How long a call stays awake for a grant that is announced: it comes 100 us later, if it comes.
const VIGIL: Duration = Duration::from_micros(200);
/// Longer than any grant.
const GRANT_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// Nobody: whoever comes first.
    Free,
    /// The link thread.
    Link,
    /// A call at the gate.
    Call { turn: u64 },
}

#[derive(Debug)]
struct State {
    reader: Reader,
    turns: u64,
    /// The link thread waits for the end of a call's turn.
    link_waits: bool,
    /// A grant that a call has read, for the link thread to know of.
    granted: Option<Instant>,
}

pub(super) struct Turn {
    state: Mutex<State>,
    over: Condvar,
}

impl Turn {
    pub(super) const fn new() -> Self {
        let state = State { reader: Reader::Link, turns: 0, link_waits: false, granted: None };
        Turn { state: Mutex::new(state), over: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link thread is about to wait for the socket. `whole`: it has nothing half read.
    pub(super) fn offer(&self, socket: &Socket, whole: bool) {
        let mut state = self.state();
        if let Reader::Call { .. } = state.reader {
            return;
        }
        if whole {
            state.reader = Reader::Free;
        }
        socket.listen(true);
    }

    /// The link thread has waited; `readable`: for the socket has something. Whether it may read.
    pub(super) fn take(&self, readable: bool) -> bool {
        let mut state = self.state();
        let deadline = Instant::now() + PATIENCE;
        while let Reader::Call { .. } = state.reader {
            let left = deadline.saturating_duration_since(Instant::now());
            if !readable {
                return false;
            }
            if left.is_zero() {
                break;
            }
            state.link_waits = true;
            state = self.over.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.link_waits = false;
        }
        state.reader = Reader::Link;
        true
    }

    /// The link thread reads, whoever has the turn: the connection is at its end.
    pub(super) fn seize(&self) {
        self.state().reader = Reader::Link;
    }

    /// When a call has read a grant that the link thread does not know of.
    pub(super) fn take_granted(&self) -> Option<Instant> {
        self.state().granted.take()
    }

    fn begin(&self, socket: &Socket) -> Option<u64> {
        let mut state = self.state();
        if state.reader != Reader::Free {
            return None;
        }
        socket.listen(false);
        state.turns += 1;
        state.reader = Reader::Call { turn: state.turns };
        Some(state.turns)
    }

    /// Runs `read` if the turn is still this one. It keeps the turn if `read` says so.
    fn go_on(&self, turn: u64, socket: &Socket, read: impl FnOnce(&mut State) -> bool) -> bool {
        let mut state = self.state();
        if state.reader != (Reader::Call { turn }) {
            return false;
        }
        if read(&mut state) {
            return true;
        }
        state.reader = Reader::Free;
        socket.listen(true);
        if state.link_waits {
            drop(state);
            self.over.notify_all();
        }
        false
    }
}

impl Link {
    /// Waits until the bell has rung more than `heard` times. This call may ring it itself, by
    /// reading its grant.
    pub(super) fn wait_at_gate(&self, heard: u32, signals: &SignalsBlocked) {
        let socket = self.outbox().socket.clone();
        if let Some(socket) = socket
            && let Some(turn) = self.turn.begin(&socket)
        {
            self.read_grant(turn, &socket, signals);
        }
        signals.while_waiting(|| self.gate.wait(heard));
    }

    fn read_grant(&self, turn: u64, socket: &Socket, signals: &SignalsBlocked) {
        // Looked at again: from now on the link thread does not change it unheard.
        let asked = *self.lease() == Lease::Asked;
        let mut awake_until = None;
        while self
            .turn
            .go_on(turn, socket, |state| asked && self.take_grant(socket, state, &mut awake_until))
        {
            if awake_until.is_some_and(|until| Instant::now() < until) {
                std::thread::yield_now(); // who is to release may need this core
                continue;
            }
            awake_until = None;
            let Some(descriptor) = socket.descriptor() else { continue };
            // Interrupted or short of memory: looked at again like a message.
            let mut fds = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
            let _ = signals.while_waiting(|| poll(&mut fds, Some(&ROUNDS)));
        }
    }

    /// Reads a grant if that is what the socket has, or its announcement. True: it has nothing more yet.
    fn take_grant(
        &self,
        socket: &Socket,
        state: &mut State,
        awake_until: &mut Option<Instant>,
    ) -> bool {
        let Some(descriptor) = socket.descriptor() else { return false };
        let mut bytes = [0; GRANT_MAX];
        let at = Moment::now();
        let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let seen = match rustix::net::recv(descriptor, &mut bytes[..], peek) {
            Ok((seen, _)) => seen,
            Err(rustix::io::Errno::AGAIN) => {
                self.beat(at);
                return true;
            }
            Err(rustix::io::Errno::INTR) => return true,
            Err(_) => return false,
        };
        let (granted, length) = match first(&bytes[..seen]) {
            Some((Kind::Granted(granted), length)) => (granted, length),
            Some((Kind::GrantSoon(_), length)) => {
                let _ = rustix::net::recv(descriptor, &mut bytes[..length], RecvFlags::DONTWAIT);
                *awake_until = Some(Instant::now() + VIGIL);
                return true;
            }
            _ => return false,
        };
        let mut lease = self.lease();
        // Only if all memory is there; else it stays in the socket for the link thread.
        let opened = PAGER.open_gate_for(&self.gate, || {
            let read = rustix::net::recv(descriptor, &mut bytes[..length], RecvFlags::DONTWAIT);
            debug_assert_eq!(read.map(|(n, _)| n), Ok(length), "peeked, and nobody else reads");
            lease.granted(granted.epoch) == Order::OpenGate
        });
        if opened {
            lease.filled();
            state.granted = Some(Instant::now());
            if !granted.resident {
                // From here, for the link thread may sleep on: what woke it was read before it looked.
                // Under the lease's lock, so that no Release comes before it.
                self.send(Say::Ready(Ready { epoch: granted.epoch, switch_ns: 0, bytes_in: 0 }));
            }
        }
        false
    }
}

/// The message at the front of `bytes`, and how long it is.
fn first(bytes: &[u8]) -> Option<(Kind, usize)> {
    let mut decoder = Decoder::new();
    decoder.extend(bytes);
    let AssignerMessage { kind } = decoder.next().ok()??;
    Some((kind?, bytes.len() - decoder.remaining()))
}

#[cfg(test)]
mod tests {
    use super::super::socket::tests::pair;
    use super::*;
    use acb_wire::frame::encode;
    use acb_wire::v1::{Granted, Wanted};

    fn frame(kind: Kind) -> Vec<u8> {
        encode(&AssignerMessage { kind: Some(kind) })
    }

    #[test]
    fn a_grant_alone_is_taken_from_the_front() {
        let grant = Kind::Granted(Granted { epoch: 300, resident: false });
        let granted = frame(grant.clone());
        let wanted = frame(Kind::Wanted(Wanted { epoch: 300 }));
        let both = [granted.clone(), wanted.clone()].concat();
        assert_eq!(first(&granted), Some((grant.clone(), granted.len())));
        assert_eq!(first(&both), Some((grant, granted.len())));
        assert!(matches!(first(&[wanted, granted.clone()].concat()), Some((Kind::Wanted(_), _))));
        assert_eq!(
            first(&granted[..granted.len() - 1]),
            None,
            "the link thread waits for the rest"
        );
        assert_eq!(first(&[0xff; GRANT_MAX]), None);
        let longest = frame(Kind::Granted(Granted { epoch: u64::MAX, resident: true }));
        assert!(longest.len() <= GRANT_MAX);
    }

    #[test]
    fn a_call_reads_only_while_the_link_thread_waits() {
        let turn = Turn::new();
        let (socket, _assigner) = pair();
        assert_eq!(turn.begin(&socket), None, "the link thread has not waited yet");
        turn.offer(&socket, true);
        let first = turn.begin(&socket).unwrap();
        assert_eq!(turn.begin(&socket), None, "one at a time");
        assert!(!turn.take(false), "nothing came: the call goes on waiting");
        assert!(turn.go_on(first, &socket, |_| true));
        assert!(!turn.go_on(first, &socket, |_| false));
        assert!(turn.take(true), "the call is done");
        assert_eq!(turn.begin(&socket), None);
    }

    #[test]
    fn a_call_that_never_comes_back_loses_its_turn() {
        let turn = Turn::new();
        let (socket, _assigner) = pair();
        turn.offer(&socket, true);
        let gone = turn.begin(&socket).unwrap();
        assert!(turn.take(true));
        turn.offer(&socket, true);
        let next = turn.begin(&socket).unwrap();
        assert!(!turn.go_on(gone, &socket, |_| panic!("this is another call's turn")));
        assert!(turn.go_on(next, &socket, |_| true));
    }
}
