//! The thread that answers who opens memory of this process, and hears when those who share memory with it end.
//!
//! Owns: its socket and its connections. Does not own: what is shared (`pager::handed`), what is open here (`opened`).
//!
//! There is none before the first handle is asked for or opened, and none in a forked child.

use super::handle::{Token, secret, socket_name};
use super::packet::{self, Kept};
use crate::environment;
use crate::log::{info, warning};
use crate::pager::{Lent, PAGER};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// First word of a request, and of the answers.
pub(super) const PLEASE: u64 = 1;
pub(super) const HERE: u64 = 2;
pub(super) const GONE: u64 = 3;

struct Keeper {
    /// The secret in this process's handles, once there are any.
    token: Option<Token>,
    /// Wakes the thread, which takes in what has come to `new`.
    bell: Option<Kept>,
    new: Vec<Watched>,
}

static KEEPER: Mutex<Keeper> = Mutex::new(Keeper { token: None, bell: None, new: Vec::new() });
/// Held while a descriptor is made: the process may not end meanwhile.
static BUSY: Mutex<()> = Mutex::new(());
static ENDED: AtomicBool = AtomicBool::new(false);

/// What the thread listens to.
enum Watched {
    /// Those who want memory of this process come here.
    Listener(Token, Kept),
    /// One of them; what it has open.
    Importer(Kept, Lent),
    /// The exporter of what is open here.
    Exporter(Arc<Kept>, u64),
}

impl Watched {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Watched::Listener(_, kept) | Watched::Importer(kept, _) => kept.get(),
            Watched::Exporter(kept, _) => kept.get(),
        }
    }
}

fn keeper() -> std::sync::MutexGuard<'static, Keeper> {
    KEEPER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The secret of this process, at whose socket somebody answers from now on.
pub(super) fn serve() -> std::io::Result<Token> {
    let mut keeper = keeper();
    if let Some(token) = keeper.token {
        return Ok(token);
    }
    let token = secret()?;
    let listener = packet::listen(&socket_name(&token))?;
    keeper.add(Watched::Listener(token, listener))?;
    keeper.token = Some(token);
    Ok(token)
}

/// Whether it is this process's.
pub(super) fn is_own(token: &Token) -> bool {
    keeper().token.as_ref() == Some(token)
}

/// The end of the exporter of what was opened under a number is noticed.
pub(super) fn watch(connection: Arc<Kept>, number: u64) -> std::io::Result<()> {
    keeper().add(Watched::Exporter(connection, number))
}

impl Keeper {
    fn add(&mut self, watched: Watched) -> std::io::Result<()> {
        if self.bell.is_none() {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            theirs.set_nonblocking(true)?;
            let theirs = Kept::new(theirs.into());
            environment::start_thread(c"acb-ipc", 1 << 20, move || run(&theirs))?;
            self.bell = Some(Kept::new(ours.into()));
        }
        self.new.push(watched);
        if let Some(bell) = self.bell.as_ref().and_then(Kept::get) {
            let _ = rustix::io::write(bell, b"!");
        }
        Ok(())
    }
}

fn run(bell: &Kept) {
    let mut all: Vec<Watched> = Vec::new();
    while !ENDED.load(Ordering::SeqCst) {
        let Some(bell) = bell.get() else {
            return warning!(
                "the program has closed descriptors of the interposer's: memory that it shares by cuIpcGetMemHandle is not opened \
                 by others from now on"
            );
        };
        // What the program has closed is nobody's any more.
        let (here, gone) = all.into_iter().partition(|it| it.descriptor().is_some());
        all = here;
        gone_are(gone);
        let mut fds = vec![PollFd::from_borrowed_fd(bell, PollFlags::IN)];
        let descriptors = all.iter().filter_map(Watched::descriptor);
        fds.extend(descriptors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        if poll(&mut fds, None).is_err() {
            continue;
        }
        let heard: Vec<bool> = fds.iter().skip(1).map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let mut bytes = [0; 64];
        while rustix::io::read(bell, &mut bytes[..]).is_ok_and(|read| read == bytes.len()) {}
        let mut next = Vec::new();
        for (watched, heard) in all.into_iter().zip(heard) {
            match heard {
                true => next.extend(hear(watched)),
                false => next.push(watched),
            }
        }
        next.append(&mut keeper().new);
        all = next;
    }
}

/// Something has come; what is listened to from then on.
fn hear(watched: Watched) -> Vec<Watched> {
    match watched {
        Watched::Listener(token, kept) => {
            let come = kept.get().map(packet::accept);
            let mut next = vec![Watched::Listener(token, kept)];
            if let Some(Ok(Some(importer))) = come {
                next.push(Watched::Importer(importer, Lent::default()));
            }
            next
        }
        Watched::Importer(kept, mut lent) => {
            let request = kept.get().map(packet::receive);
            if let Some(Ok(([PLEASE, number, _, _], _))) = request
                && lent.is_empty()
                && answer(&kept, number, &mut lent)
            {
                return vec![Watched::Importer(kept, lent)];
            }
            PAGER.taken_back(lent);
            Vec::new()
        }
        gone @ Watched::Exporter(..) => {
            gone_are(vec![gone]);
            Vec::new()
        }
    }
}

fn gone_are(all: Vec<Watched>) {
    for watched in all {
        match watched {
            Watched::Importer(_, lent) => PAGER.taken_back(lent),
            Watched::Exporter(_, number) => super::opened::exporter_gone(number),
            Watched::Listener(..) => {}
        }
    }
}

/// Gives away descriptors of an allocation's chunks; false: the other end has gone.
fn answer(to: &Kept, number: u64, lent: &mut Lent) -> bool {
    let _busy = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(to) = to.get().filter(|_| !ENDED.load(Ordering::SeqCst)) else { return false };
    let Some(part) = PAGER.lend(number, lent) else {
        let _ = packet::send(to, [GONE, 0, 0, 0], None);
        return false;
    };
    let head = [HERE, part.chunks.len() as u64, part.offset, part.bytes];
    let sent = packet::send(to, head, None).is_ok()
        && part.chunks.iter().all(|chunk| match PAGER.descriptor(*chunk) {
            Ok((bytes, descriptor)) => {
                packet::send(to, [HERE, bytes, 0, 0], Some(descriptor.as_fd())).is_ok()
            }
            Err(error) => {
                warning!(
                    "memory cannot be shared by cuIpcGetMemHandle ({error}): the other process is told so. Start both with \
                     ACB_PAGER=off"
                );
                let _ = packet::send(to, [GONE, 0, 0, 0], None);
                false
            }
        });
    if sent {
        info!("{} bytes of memory are open in another process", part.bytes);
    }
    sent
}

/// The process ends: returns when no driver call of this thread is under way.
pub(crate) fn end() {
    ENDED.store(true, Ordering::SeqCst);
    drop(BUSY.lock().unwrap_or_else(PoisonError::into_inner));
}

/// In a forked child: its parent's memory is not its own to offer.
pub(crate) fn close_inherited() {
    packet::close_inherited();
}
