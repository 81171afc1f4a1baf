//! The link thread: reads what the assigner says, does it, and keeps the connection alive.
//!
//! Owns: the loop, reconnecting, giving up. Does not own: when a lease goes back (`watch`).
//! The one thread of the interposer; it lives from cuInit to the end of the process.

use super::pulse::BEAT;
use super::switch::Switch;
use super::watch::Watch;
use super::{Connection, ContactError, LINK, Moment, Terms};
use crate::lease::Order;
use crate::log::{error, info, warning};
use crate::memory::LEDGER;
use crate::pager::PAGER;
use crate::paths;
use crate::settings::{OnFailure, Settings};
use acb_wire::v1::assigner_message::Kind;
use acb_wire::v1::{Acquire, Held, Refused, client_message};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// Pauses between attempts to reach a lost assigner.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// A connection that lived shorter than this counts as a failed attempt.
const STABLE: Duration = Duration::from_secs(1);

/// Serves the link until there is no assigner any more.
pub(crate) fn run(
    settings: Settings,
    mut connection: Connection,
    mut terms: Terms,
    bound: Vec<String>,
) {
    let mut watch = Watch::new(terms.idle);
    let mut switch = Switch::new();
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let end = serve(&mut connection, &mut watch, &mut switch);
        LINK.turn.seize();
        LINK.uninstall();
        switch.settle();
        if let ContactError::Refused(refused) = end {
            give_up(&terms, &refusal(&refused));
            return switch.regain(&mut watch);
        }
        if began.elapsed() > STABLE {
            pause = FIRST_PAUSE;
        }
        warning!("{end}; reconnecting, for {} s at most", terms.grace.as_secs_f64());
        match reconnect(&settings, &terms, &bound, &mut pause) {
            Ok((new, its_terms)) => {
                connection = new;
                terms = its_terms;
                watch.idle = terms.idle;
                info!("reconnected to the GPU assigner as client {}", terms.client);
                resume(&connection);
            }
            Err(error) => {
                give_up(&terms, &error.to_string());
                return switch.regain(&mut watch);
            }
        }
    }
}

/// Does what the assigner says until the connection ends.
fn serve(connection: &mut Connection, watch: &mut Watch, switch: &mut Switch) -> ContactError {
    let mut looked = Instant::now();
    loop {
        if let Some(at) = LINK.turn.take_granted() {
            switch.taken(at, watch);
        }
        loop {
            match connection.next() {
                Ok(Some(message)) => {
                    if let Some(refused) = handle(message, watch, switch) {
                        return ContactError::Refused(refused);
                    }
                }
                Ok(None) => break,
                Err(error) => return error,
            }
        }
        let time = match (watch.look(), switch.look(watch)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        // All that came to this thread has been done. Who often hears something never sees the time pass in `wait`.
        connection.socket.descriptor().map(is_silent);
        if looked.elapsed() > BEAT {
            looked = Instant::now();
            paths::look_again();
        }
        LINK.turn.offer(&connection.socket, !connection.is_in_mid_message());
        let readable = wait(connection, time);
        if LINK.turn.take(readable)
            && let Err(error) = connection.receive()
        {
            return error;
        }
    }
}

fn handle(message: Kind, watch: &mut Watch, switch: &mut Switch) -> Option<Refused> {
    match message {
        Kind::Granted(granted) => {
            let mut lease = LINK.lease();
            if lease.granted(granted.epoch) == Order::OpenGate {
                switch.granted(&mut lease, granted.resident, watch);
            }
        }
        Kind::Wanted(wanted) => {
            LINK.lease().wanted(wanted.epoch);
        }
        Kind::Recall(recall) => {
            let mut lease = LINK.lease();
            if lease.recalled(recall.epoch) == Order::CloseGate {
                LINK.gate.close();
                drop(lease);
                PAGER.gate_closed();
                watch.recalled();
            }
        }
        Kind::RoomReply(reply) => {
            if !PAGER.handle_reply(&reply) {
                LEDGER.handle_reply(reply);
            }
        }
        Kind::Evict(evict) => PAGER.evict(evict.device, evict.bytes),
        Kind::Credit(credit) => PAGER.credit(credit.device, credit.bytes),
        Kind::Withdraw(withdraw) => PAGER.withdraw(withdraw.device),
        Kind::Stay(stay) => PAGER.stay(stay.device),
        Kind::Arena(arena) => PAGER.arena(arena.bytes),
        Kind::Notice(notice) => warning!("{}", notice.text),
        Kind::Refused(refused) => return Some(refused),
        // For a call that reads the socket itself; and answers to what was asked while connecting.
        Kind::GrantSoon(_) | Kind::Welcome(_) | Kind::Bound(_) => {}
    }
    None
}

/// Waits for a message or the time, and sends what could not be sent at once. Whether there is
/// something to be read, be it the end.
///
/// A program may close the socket without this thread's being told, and a message that could not be sent at once must
/// go: both are looked at with every beat.
fn wait(connection: &Connection, time: Option<Duration>) -> bool {
    let Some(descriptor) = connection.socket.descriptor() else { return true };
    // Also while the gate is closed: a call that reads its grant itself opens it without a word to this thread.
    let time = time.unwrap_or(BEAT).min(BEAT);
    let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    let pending = !LINK.outbox().pending.is_empty();
    let (ear, writable) = (connection.socket.ear(), PollFlags::OUT);
    let flags = match (ear.is_some(), pending) {
        (true, false) => PollFlags::empty(),
        (true, true) => writable,
        (false, false) => PollFlags::IN,
        (false, true) => PollFlags::IN | writable,
    };
    let mut fds = [
        PollFd::from_borrowed_fd(descriptor, flags),
        PollFd::from_borrowed_fd(ear.unwrap_or(descriptor), PollFlags::IN & !flags),
    ];
    // Errors are signals, which this thread blocks, or lack of memory, which passes.
    let _ = poll(&mut fds, Some(&time));
    if pending {
        LINK.outbox().flush();
    }
    if fds.iter().any(|fd| !fd.revents().difference(writable).is_empty()) {
        return true;
    }
    // The ear is shut while a call has the turn, and that call may never come back.
    is_silent(descriptor) == Some(false)
}

/// Whether nothing has come that is not known, not even the end: then the connection is whole.
fn is_silent(descriptor: BorrowedFd<'_>) -> Option<bool> {
    let at = Moment::now();
    let mut shut = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let come = poll(&mut shut, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).ok()?;
    if come == 0 {
        LINK.beat(at);
    }
    Some(come == 0)
}

/// Tries again and again until grace is over.
fn reconnect(
    settings: &Settings,
    terms: &Terms,
    bound: &[String],
    pause: &mut Duration,
) -> Result<(Connection, Terms), ContactError> {
    let deadline = Instant::now() + terms.grace;
    loop {
        std::thread::sleep(*pause);
        *pause = (*pause * 2).min(LAST_PAUSE);
        let (claimed, resident) = PAGER.stated();
        let held = Held {
            client: terms.client,
            bound: bound.to_vec(),
            epoch: LINK.lease().epoch(),
            room: LEDGER.rooms(),
            claimed,
            resident,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        match Connection::open(settings, Some(held), left) {
            Ok(open) => return Ok(open),
            Err(ContactError::Refused(refused)) => return Err(ContactError::Refused(refused)),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => {}
        }
    }
}

/// Takes the new connection into use, and asks again for what the old one owed.
fn resume(connection: &Connection) {
    let mut lease = LINK.lease();
    PAGER.resume(|| {
        LEDGER.resume(|| {
            LINK.install(&connection.socket);
            if lease.reconnected() {
                LINK.send(client_message::Kind::Acquire(Acquire {}));
            }
        });
    });
}

fn refusal(refused: &Refused) -> String {
    ContactError::Refused(refused.clone()).to_string()
}

fn give_up(terms: &Terms, reason: &str) {
    match terms.on_failure {
        OnFailure::Open => warning!(
            "{reason}. This program goes on without scheduling and may meet others on the GPU \
             (ACB_ON_FAILURE=fail would stop it instead)"
        ),
        OnFailure::Fail => error!(
            "{reason}. Further work for the GPU fails with CUDA_ERROR_SYSTEM_NOT_READY (ACB_ON_FAILURE=fail)"
        ),
    }
    PAGER.unmeter();
    LINK.give_up(terms.on_failure);
    LEDGER.stop();
}
