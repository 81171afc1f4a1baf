//! Packets between exporter and importer, some with a descriptor; and descriptors in a program that knows nothing of them.
//!
//! Owns: their bytes, and numbers out of the program's way, which a forked child closes. Does not own: what they mean.

use crate::environment;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
    socket_with,
};
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

/// Whoever is not stopped answers sooner.
const PATIENCE: Duration = Duration::from_secs(10);
const OUT_OF_THE_WAY: i32 = 961;
/// So many are closed in a forked child.
const KNOWN: usize = 256;

static NUMBERS: [AtomicI32; KNOWN] = [const { AtomicI32::new(-1) }; KNOWN];
static INODES: [AtomicU64; KNOWN] = [const { AtomicU64::new(0) }; KNOWN];

/// A socket of the interposer's, as long as its number means that: a program may have closed it, and opened its own there.
pub(super) struct Kept {
    descriptor: Option<OwnedFd>,
    inode: u64,
}

impl Kept {
    pub(super) fn new(made: OwnedFd) -> Self {
        let descriptor = rustix::io::fcntl_dupfd_cloexec(&made, OUT_OF_THE_WAY).unwrap_or(made);
        let inode = inode(descriptor.as_fd()).unwrap_or(0);
        for (number, known) in NUMBERS.iter().zip(&INODES) {
            // -2: on its way in.
            if number.compare_exchange(-1, -2, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                known.store(inode, Ordering::SeqCst);
                number.store(descriptor.as_raw_fd(), Ordering::SeqCst);
                break;
            }
        }
        Kept { descriptor: Some(descriptor), inode }
    }

    /// `None`: the program has closed it.
    pub(super) fn get(&self) -> Option<BorrowedFd<'_>> {
        let descriptor = self.descriptor.as_ref()?.as_fd();
        (inode(descriptor) == Some(self.inode)).then_some(descriptor)
    }
}

impl Kept {
    /// The other end hears that this one has gone, though others hold it here or in a forked child.
    pub(super) fn hang_up(&self) {
        if let Some(descriptor) = self.get() {
            let _ = rustix::net::shutdown(descriptor, rustix::net::Shutdown::Both);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.hang_up();
        let ours = self.get().is_some();
        let Some(descriptor) = self.descriptor.take() else { return };
        for (number, known) in NUMBERS.iter().zip(&INODES) {
            if known.load(Ordering::SeqCst) == self.inode
                && number.load(Ordering::SeqCst) == descriptor.as_raw_fd()
            {
                number.store(-1, Ordering::SeqCst);
            }
        }
        if !ours {
            let _ = descriptor.into_raw_fd();
        }
    }
}

fn inode(descriptor: BorrowedFd<'_>) -> Option<u64> {
    rustix::fs::fstat(descriptor).ok().map(|stat| stat.st_ino)
}

/// In a forked child, which neither offers memory nor has any open.
pub(super) fn close_inherited() {
    for (number, known) in NUMBERS.iter().zip(&INODES) {
        let number = number.swap(-1, Ordering::SeqCst);
        if number >= 0 {
            environment::close_descriptor_if(number, known.load(Ordering::SeqCst));
        }
    }
}

fn socket() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Waits at an abstract name.
pub(super) fn listen(name: &[u8]) -> Result<Kept> {
    let socket = socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
    rustix::net::listen(&socket, 16)?;
    Ok(Kept::new(socket))
}

pub(super) fn connect(name: &[u8]) -> Result<Kept> {
    let socket = socket()?;
    be_patient(socket.as_fd())?;
    rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name)?).map_err(in_time)?;
    Ok(Kept::new(socket))
}

/// The next one who has come, if it is of this user; others hear nothing.
pub(super) fn accept(listener: BorrowedFd<'_>) -> Result<Option<Kept>> {
    let socket = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
    be_patient(socket.as_fd())?;
    let who = rustix::net::sockopt::socket_peercred(&socket)?;
    Ok((who.uid == rustix::process::geteuid()).then(|| Kept::new(socket)))
}

fn be_patient(socket: BorrowedFd<'_>) -> Result<()> {
    for side in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(socket, side, Some(PATIENCE))?;
    }
    Ok(())
}

/// What an end of [`PATIENCE`] means.
fn in_time(error: rustix::io::Errno) -> Error {
    match error {
        rustix::io::Errno::AGAIN => {
            let why = format!("it has not answered for {} s: it is stopped", PATIENCE.as_secs());
            Error::new(ErrorKind::TimedOut, why)
        }
        other => other.into(),
    }
}

/// Four words, and a descriptor.
pub(super) fn send(
    to: BorrowedFd<'_>,
    words: [u64; 4],
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let given: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !given.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&given)) {
        return Err(ErrorKind::OutOfMemory.into());
    }
    sendmsg(to, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The same from the other end.
pub(super) fn receive(from: BorrowedFd<'_>) -> Result<([u64; 4], Option<OwnedFd>)> {
    let mut bytes = [0; 32];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)
        .map_err(in_time)?;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(all) => Some(all),
        _ => None,
    });
    let descriptor = descriptors.next().and_then(|mut all| all.next());
    if got.bytes == 0 {
        return Err(Error::new(ErrorKind::UnexpectedEof, "it has closed the connection"));
    }
    if got.bytes != bytes.len() {
        return Err(Error::new(ErrorKind::InvalidData, "a packet of another size"));
    }
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[8 * at + i]));
    Ok((std::array::from_fn(word), descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn words_and_descriptors_arrive_and_an_end_is_heard() {
        let token = super::super::handle::secret().unwrap();
        let name = super::super::handle::socket_name(&token);
        assert!(connect(&name).is_err(), "nobody is there");
        let listener = listen(&name).unwrap();
        let ours = connect(&name).unwrap();
        let theirs = accept(listener.get().unwrap()).unwrap().expect("of this user");
        let (mut read, write) = std::io::pipe().unwrap();
        let write = OwnedFd::from(write);
        send(theirs.get().unwrap(), [1, 2, 3, 4], Some(write.as_fd())).unwrap();
        send(theirs.get().unwrap(), [5; 4], None).unwrap();
        drop(write);
        let (words, descriptor) = receive(ours.get().unwrap()).unwrap();
        assert_eq!(words, [1, 2, 3, 4]);
        std::fs::File::from(descriptor.unwrap()).write_all(b"x").unwrap();
        let mut heard = Vec::new();
        read.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"x");
        assert!(matches!(receive(ours.get().unwrap()), Ok(([5, 5, 5, 5], None))));
        drop(theirs);
        assert_eq!(receive(ours.get().unwrap()).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
