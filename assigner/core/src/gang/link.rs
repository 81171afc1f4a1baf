//! Keeping the other side's latest state, over a network that loses, doubles and reorders.
//!
//! Owns: numbering, confirming, saying again. A state is sent when it changes, and again until the
//! other side has confirmed it; then there is silence.

use std::time::Duration;

use super::message::{Message, Session};
use crate::ids::Time;

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Link<Own, Theirs> {
    session: Session,
    own: Own,
    seq: u64,
    confirmed: u64,
    theirs: Option<Theirs>,
    heard: u64,
    /// The other side wants to know what has been heard.
    asked: bool,
    /// When the present state is said (again), if it is not confirmed by then.
    say_at: Option<Time>,
}

impl<Own: Clone + PartialEq, Theirs> Link<Own, Theirs> {
    /// A new connection, on which `own` is to be said.
    pub(super) fn new(session: Session, own: Own, now: Time) -> Self {
        Link {
            session,
            own,
            seq: 1,
            confirmed: 0,
            theirs: None,
            heard: 0,
            asked: false,
            say_at: Some(now),
        }
    }

    pub(super) fn session(&self) -> Session {
        self.session
    }

    /// The other side's latest state, once there is one.
    pub(super) fn theirs(&self) -> Option<&Theirs> {
        self.theirs.as_ref()
    }

    /// This side's state has become `own`.
    pub(super) fn set(&mut self, own: &Own, now: Time) {
        if self.own != *own {
            self.own = own.clone();
            self.seq += 1;
            self.say_at = Some(now);
        }
    }

    /// Takes a message in; true if it has news.
    pub(super) fn receive(&mut self, message: Message<Theirs>) -> bool {
        if message.session != self.session {
            return false; // of a connection that has ended
        }
        self.confirmed = self.confirmed.max(message.heard);
        if self.confirmed >= self.seq {
            self.say_at = None;
        }
        self.asked |= message.ask;
        let is_news = message.seq > self.heard;
        if is_news {
            self.heard = message.seq;
            self.theirs = Some(message.state);
        }
        is_news
    }

    /// What is to be sent now.
    pub(super) fn poll(&mut self, now: Time, retry: Duration) -> Option<Message<Own>> {
        let is_due = self.say_at.is_some_and(|at| at <= now);
        if !is_due && !self.asked {
            return None;
        }
        let ask = self.confirmed < self.seq;
        self.asked = false;
        self.say_at = ask.then(|| now.after(retry));
        Some(Message {
            session: self.session,
            seq: self.seq,
            heard: self.heard,
            ask,
            state: self.own.clone(),
        })
    }

    /// When something is to be sent though nothing else happens.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.say_at
    }
}
