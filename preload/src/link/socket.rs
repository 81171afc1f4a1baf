//! The socket to the assigner, inside a program that owns every descriptor number but does not
//! know of this one.
//!
//! Owns: a number out of the way, and the proof that the number still means this socket. A program
//! may close descriptors that it has not opened (daemons close all), and open its own under the
//! same numbers: those are neither read, written nor closed here.
//! Also the link thread's ear: a set of epoll with this socket alone in it, which a call at the gate
//! shuts while it reads the socket itself. Its number is not proven, for sets of epoll share one inode;
//! whatever is odd about it, and the link thread listens to the socket directly.
//! Does not own: what is sent and received.

use crate::environment;
use rustix::event::epoll;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

/// Programs get the lowest free number: up here they hardly come, and select(2) still reaches.
const OUT_OF_THE_WAY: i32 = 960;

/// The one socket that is open, for a forked child to close: its number, or -1, and its inode.
static NUMBER: AtomicI32 = AtomicI32::new(-1);
static INODE: AtomicU64 = AtomicU64::new(0);

pub(crate) struct Socket {
    /// `None` only while it is dropped.
    descriptor: Option<OwnedFd>,
    inode: u64,
    /// `None` where there could be none.
    ear: Option<OwnedFd>,
    /// The program has closed the ear, and its number may be the program's.
    is_deaf: AtomicBool,
}

impl Socket {
    pub(crate) fn new(made: OwnedFd) -> Self {
        // Where the limit of open files is lower, the number that it has must do.
        let descriptor = rustix::io::fcntl_dupfd_cloexec(&made, OUT_OF_THE_WAY).unwrap_or(made);
        let inode = inode(descriptor.as_fd()).unwrap_or(0);
        INODE.store(inode, Ordering::SeqCst);
        NUMBER.store(descriptor.as_raw_fd(), Ordering::SeqCst);
        let ear = ear(descriptor.as_fd()).ok();
        Socket { descriptor: Some(descriptor), inode, ear, is_deaf: AtomicBool::new(false) }
    }

    /// Whether who waits at the ear is woken by what comes. Its end is heard always.
    pub(super) fn listen(&self, listens: bool) {
        if let (Some(ear), Some(descriptor)) = (self.ear(), self.descriptor()) {
            let flags = if listens { epoll::EventFlags::IN } else { epoll::EventFlags::empty() };
            let data = epoll::EventData::new_u64(0);
            if epoll::modify(ear, descriptor, data, flags).is_err() {
                self.is_deaf.store(true, Ordering::SeqCst);
            }
        }
    }

    /// What the link thread waits for. After each wait it must be told to [`listen`](Self::listen) before
    /// the next one: that finds out whether it is an ear still.
    pub(super) fn ear(&self) -> Option<BorrowedFd<'_>> {
        self.ear.as_ref().filter(|_| !self.is_deaf.load(Ordering::SeqCst)).map(AsFd::as_fd)
    }

    /// The descriptor, as long as it is this socket's.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        let descriptor = self.descriptor.as_ref()?.as_fd();
        (inode(descriptor) == Some(self.inode)).then_some(descriptor)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.listen(false); // finds out whether it is still an ear, and ours
        if self.ear().is_none() || self.descriptor().is_none() {
            self.ear.take().map(IntoRawFd::into_raw_fd);
        }
        let ours = self.descriptor().is_some();
        let Some(descriptor) = self.descriptor.take() else { return };
        // First the number, then the descriptor: a child forked in between must not close another's.
        let _ =
            NUMBER.compare_exchange(descriptor.as_raw_fd(), -1, Ordering::SeqCst, Ordering::SeqCst);
        if !ours {
            let _ = descriptor.into_raw_fd();
        }
    }
}

fn ear(socket: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let made = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let ear = rustix::io::fcntl_dupfd_cloexec(&made, OUT_OF_THE_WAY).unwrap_or(made);
    epoll::add(&ear, socket, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    Ok(ear)
}

/// Sockets have inode numbers of their own, unlike eventfds.
fn inode(descriptor: BorrowedFd<'_>) -> Option<u64> {
    rustix::fs::fstat(descriptor).ok().map(|stat| stat.st_ino)
}

/// In a forked child: the parent's socket must not stay open here.
pub(crate) fn close_inherited() {
    let number = NUMBER.swap(-1, Ordering::SeqCst);
    if number >= 0 {
        environment::close_descriptor_if(number, INODE.load(Ordering::SeqCst));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    /// A socket, and the assigner's end of it.
    pub(crate) fn pair() -> (Socket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Socket::new(ours.into()), theirs)
    }

    /// Whether the link thread would be woken.
    fn hears(socket: &Socket) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(socket.ear().unwrap(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
    }

    #[test]
    fn a_shut_ear_hears_the_end_only_and_what_came_meanwhile_when_it_opens() {
        let (socket, mut theirs) = pair();
        assert!(!hears(&socket));
        socket.listen(false);
        theirs.write_all(b"x").unwrap();
        assert!(!hears(&socket));
        socket.listen(true);
        assert!(hears(&socket));
        let mut bytes = [0; 1];
        rustix::io::read(socket.descriptor().unwrap(), &mut bytes[..]).unwrap();
        socket.listen(false);
        drop(theirs);
        assert!(hears(&socket));
    }

    #[test]
    fn an_ear_that_the_program_has_closed_is_found_out() {
        let (mut socket, _theirs) = pair();
        let foreign = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let ours = socket.ear.replace(foreign);
        socket.listen(true);
        assert!(socket.ear().is_none(), "another set, without this socket");
        let number = socket.ear.as_ref().unwrap().as_raw_fd();
        drop(socket);
        assert!(std::fs::exists(format!("/proc/self/fd/{number}")).unwrap(), "not ours to close");
        drop(ours);
    }
}
