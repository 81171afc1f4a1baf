//! What is on its way to one client: written at once where the socket takes it, queued where not.
//!
//! Owns the bound on the queue: a client that never reads loses its connection, and costs no more
//! memory than [`MAX_QUEUED`]. Does not own the connection's life.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use acb_wire::frame;
use acb_wire::v1::{AssignerMessage, assigner_message::Kind};
use tokio::sync::Notify;

use crate::channel::Channel;

/// Bytes that wait for a slow reader before it is dropped. A client gets a few messages a phase,
/// some ten bytes each, and the kernel queues 200 KiB by itself.
pub const MAX_QUEUED: usize = 64 * 1024;

/// Sends to one client, without ever blocking.
#[derive(Debug)]
pub struct Outbox {
    channel: Rc<Channel>,
    queue: RefCell<Vec<u8>>,
    /// What is sent waits for the rest of it.
    held: Cell<bool>,
    end: Cell<Option<End>>,
    /// Wakes the connection's task when there is something to flush or the end has come.
    attention: Notify,
}

/// Why nothing more is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All was said; close once it is flushed.
    Finished,
    /// The client does not read.
    Overflow,
    /// The socket is broken.
    Broken,
}

impl Outbox {
    /// An empty outbox for a connection.
    pub fn new(channel: Rc<Channel>) -> Outbox {
        Outbox {
            channel,
            queue: RefCell::default(),
            held: Cell::new(false),
            end: Cell::new(None),
            attention: Notify::new(),
        }
    }

    /// Sends a message, or queues what the socket does not take.
    pub fn send(&self, kind: Kind) {
        if self.end.get().is_some() {
            return;
        }
        let frame = frame::encode(&AssignerMessage { kind: Some(kind) });
        let mut queue = self.queue.borrow_mut();
        if queue.len() + frame.len() > MAX_QUEUED {
            self.stop(End::Overflow);
            return;
        }
        if self.held.get() || !queue.is_empty() {
            queue.extend_from_slice(&frame);
            return;
        }
        match self.channel.write(&frame) {
            Ok(written) if written == frame.len() => {}
            Ok(written) => {
                queue.extend_from_slice(&frame[written..]);
                self.attention.notify_one();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                queue.extend_from_slice(&frame);
                self.attention.notify_one();
            }
            Err(_) => self.stop(End::Broken),
        }
    }

    /// What is sent from now on is written in one piece by [`Outbox::release`]: who reads the first message has the others, too.
    pub fn hold(&self) {
        self.held.set(true);
    }

    /// Ends [`Outbox::hold`].
    pub fn release(&self) {
        self.held.set(false);
        self.flush();
        if self.has_queued() || self.end.get().is_some() {
            self.attention.notify_one();
        }
    }

    /// Closes the connection once all is sent.
    pub fn finish(&self) {
        if self.end.get().is_none() {
            self.stop(End::Finished);
        }
    }

    fn stop(&self, end: End) {
        self.end.set(Some(end));
        self.attention.notify_one();
    }

    /// Whether something waits to be written.
    pub fn has_queued(&self) -> bool {
        !self.queue.borrow().is_empty()
    }

    /// Why the connection is to be closed, if it is.
    pub fn end(&self) -> Option<End> {
        self.end.get().filter(|end| *end != End::Finished || !self.has_queued())
    }

    /// Writes what waits, as far as the socket takes it.
    pub fn flush(&self) {
        let mut queue = self.queue.borrow_mut();
        while !queue.is_empty() {
            match self.channel.write(&queue) {
                Ok(written) => drop(queue.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    queue.clear();
                    self.end.set(Some(End::Broken));
                }
            }
        }
    }

    /// Returns when [`Outbox::flush`] or [`Outbox::end`] has something new.
    pub async fn attention(&self) {
        self.attention.notified().await;
    }
}
