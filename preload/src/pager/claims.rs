//! Claims: the question to the assigner whether memory may exist at all, and the wait for its answer.
//!
//! Owns: open questions. Does not own: the figures (`account`).

use super::{Books, PAGER, Pager};
use crate::link::LINK;
use crate::log::warning;
use crate::memory::{next_seq, size};
use acb_wire::v1::{RoomKind, RoomReply, RoomRequest, RoomVerdict, client_message::Kind};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Claims {
    questions: BTreeMap<u64, Question>,
}

#[derive(Debug)]
struct Question {
    device: u32,
    bytes: u64,
    answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Open,
    Waiting(String),
    Granted,
    Denied(String),
}

impl Claims {
    pub(super) const fn new() -> Self {
        Claims { questions: BTreeMap::new() }
    }

    /// Nobody answers any more.
    pub(super) fn clear(&mut self) {
        self.questions.clear();
    }

    pub(super) fn ask_again(&self) {
        for (seq, question) in &self.questions {
            if matches!(question.answer, Answer::Open | Answer::Waiting(_)) {
                question.ask(*seq);
            }
        }
    }
}

impl Question {
    fn ask(&self, seq: u64) {
        LINK.send(Kind::RoomRequest(RoomRequest {
            seq,
            device: self.device,
            bytes: self.bytes,
            kind: RoomKind::Paged.into(),
            cancel: false,
        }));
    }
}

impl Pager {
    /// Claims bytes on a device; the reason, where the assigner denies them.
    pub(super) fn claim(&self, device: u32, bytes: u64) -> Result<(), String> {
        let mut books = self.books();
        books.table.account(device).need(bytes);
        if !books.metered {
            return Ok(());
        }
        let seq = next_seq();
        let question = Question { device, bytes, answer: Answer::Open };
        question.ask(seq);
        books.claims.questions.insert(seq, question);
        let mut told = false;
        loop {
            match books.claims.questions.get(&seq).map(|question| &question.answer) {
                None => return Ok(()),
                Some(Answer::Open) => {}
                Some(Answer::Waiting(reason)) => {
                    if !std::mem::replace(&mut told, true) {
                        warning!("waiting for {} on GPU {device}: {reason}", size(bytes));
                    }
                }
                Some(Answer::Granted) => {
                    books.claims.questions.remove(&seq);
                    return Ok(());
                }
                Some(Answer::Denied(reason)) => {
                    let reason = reason.clone();
                    books.claims.questions.remove(&seq);
                    books.give_claim_back(device, bytes);
                    return Err(reason);
                }
            }
            books = self.wait(books);
        }
    }

    /// What was claimed is not used after all.
    pub(super) fn unclaim(&self, device: u32, bytes: u64) {
        self.books().give_claim_back(device, bytes);
    }

    /// An answer of the assigner; false: to no question of the pager's.
    pub(crate) fn handle_reply(&self, reply: &RoomReply) -> bool {
        if !self.is_active() {
            return false;
        }
        let answer = match reply.verdict() {
            RoomVerdict::Granted => Answer::Granted,
            RoomVerdict::Waiting => Answer::Waiting(reply.reason.clone()),
            RoomVerdict::Denied => Answer::Denied(reply.reason.clone()),
            RoomVerdict::Unspecified => return false,
        };
        let mut books = self.books();
        let Some(question) = books.claims.questions.get_mut(&reply.seq) else { return false };
        if matches!(question.answer, Answer::Granted | Answer::Denied(_)) {
            return true;
        }
        let granted = (answer == Answer::Granted).then_some((question.device, question.bytes));
        question.answer = answer;
        // Here and not in the waiting thread: credit for it may be the next message.
        if let Some((device, bytes)) = granted {
            books.table.account(device).grant(bytes);
        }
        PAGER.changed.notify_all();
        true
    }
}

impl Books {
    fn give_claim_back(&mut self, device: u32, bytes: u64) {
        self.table.account(device).unneed(bytes);
        self.say();
    }
}
