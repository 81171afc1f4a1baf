//! The socket to the assigner, inside a program that owns every descriptor number but does not
//! know of this one.
//!
//! Owns: a number out of the way, and the proof that the number still means this socket. A program
//! may close descriptors that it has not opened (daemons close all), and open its own under the
//! same numbers: those are neither read, written nor closed here.
//! Does not own: what is sent and received.

use crate::environment;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// Programs get the lowest free number: up here they hardly come, and select(2) still reaches.
const OUT_OF_THE_WAY: i32 = 960;

/// The one socket that is open, for a forked child to close: its number, or -1, and its inode.
static NUMBER: AtomicI32 = AtomicI32::new(-1);
static INODE: AtomicU64 = AtomicU64::new(0);

pub(crate) struct Socket {
    /// `None` only while it is dropped.
    descriptor: Option<OwnedFd>,
    inode: u64,
}

impl Socket {
    pub(crate) fn new(made: OwnedFd) -> Self {
        // Where the limit of open files is lower, the number that it has must do.
        let descriptor = rustix::io::fcntl_dupfd_cloexec(&made, OUT_OF_THE_WAY).unwrap_or(made);
        let inode = inode(descriptor.as_fd()).unwrap_or(0);
        INODE.store(inode, Ordering::SeqCst);
        NUMBER.store(descriptor.as_raw_fd(), Ordering::SeqCst);
        Socket { descriptor: Some(descriptor), inode }
    }

    /// The descriptor, as long as it is this socket's.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        let descriptor = self.descriptor.as_ref()?.as_fd();
        (inode(descriptor) == Some(self.inode)).then_some(descriptor)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
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
