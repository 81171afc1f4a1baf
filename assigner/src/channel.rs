//! The stream socket of one client, registered with the runtime for what is waited for.
//!
//! Owns reading and writing bytes. Does not own what waits to be written ([`crate::outbox`]).
//!
//! The runtime's own `UnixStream` is registered for both directions, and the kernel reports it
//! writable each time its peer reads: this process would wake up, for nothing, on the core that a
//! client needs at the moment in which it reads its grant. So the socket is registered for reading
//! alone, and a second descriptor of it for writing while something is queued.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use tokio::io::unix::AsyncFd;

use crate::sys::{watch_readable, watch_writable};

/// A connection that never blocks.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    readable: AsyncFd<OwnedFd>,
}

impl Channel {
    /// Takes over an accepted connection.
    pub fn new(stream: tokio::net::UnixStream) -> io::Result<Channel> {
        let stream = stream.into_std()?;
        let readable = watch_readable(stream.try_clone()?.into())?;
        Ok(Channel { stream, readable })
    }

    /// Waits for bytes and reads as many as there are; 0 at the end. Can be dropped and called again.
    pub async fn read(&self, part: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.readable.readable().await?;
            match (&self.stream).read(part) {
                // A part that was not filled has emptied the socket: what comes later is reported
                // anew, and one call that would find nothing is spared.
                Ok(count) => {
                    if count < part.len() {
                        ready.clear_ready();
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes what the socket takes.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&self.stream).write(bytes)
    }

    /// Waits until the socket takes more. Can be dropped and called again.
    pub async fn writable(&self) -> io::Result<()> {
        let second = watch_writable(self.stream.try_clone()?.into())?;
        second.writable().await.map(drop)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Channel, UnixStream) {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let theirs = theirs.into_std().unwrap();
        theirs.set_nonblocking(false).unwrap();
        (Channel::new(ours).unwrap(), theirs)
    }

    #[tokio::test]
    async fn nothing_is_lost_between_short_reads() {
        let (channel, mut peer) = pair();
        let mut part = [0; 8];
        for _ in 0..100 {
            peer.write_all(b"four").unwrap();
            assert_eq!(channel.read(&mut part).await.unwrap(), 4);
            // Exactly as much as fits: the end of the bytes is not seen.
            peer.write_all(b"eightest").unwrap();
            assert_eq!(channel.read(&mut part).await.unwrap(), 8);
        }
        peer.write_all(b"last").unwrap();
        drop(peer);
        assert_eq!(channel.read(&mut part).await.unwrap(), 4);
        assert_eq!(channel.read(&mut part).await.unwrap(), 0);
        assert_eq!(channel.read(&mut part).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_full_socket_is_writable_once_its_peer_has_read() {
        let (channel, mut peer) = pair();
        let block = [7; 4096];
        let mut sent = 0;
        let full = loop {
            match channel.write(&block) {
                Ok(count) => sent += count,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; sent];
            peer.read_exact(&mut all).unwrap();
            peer
        });
        channel.writable().await.unwrap();
        assert!(channel.write(&block).unwrap() > 0);
        drop(reader.join().unwrap());
        assert!(channel.write(&block).is_err());
    }
}
