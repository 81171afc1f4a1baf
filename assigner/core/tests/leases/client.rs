//! What a client does: the interposer's part of the protocol, without the program.
//!
//! ```text
//!          Begin            Grant, memory there        Run
//!  idle ─────────► waiting ─────────────────────► open ─────► a kernel runs
//!   ▲                 ▲                             ▲  │            │ Done, Stop
//!   │                 │ Recall: Release, and Acquire│  │            ▼
//!   └──── Wanted and idle: Release ─────────────────┴──┴─── between two kernels
//! ```
//!
//! Does not own: when what happens (`model`).

use std::collections::VecDeque;

use acb_core::{Epoch, Room};

/// From the assigner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Said {
    Welcome,
    Grant(Epoch, bool),
    Wanted(Epoch),
    Recall(Epoch),
    Overtaken(Epoch),
    Credit(u64),
    Evict(u64),
    Withdraw,
    Stay,
}

/// To the assigner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Says {
    /// Nothing any more: the connection is broken.
    Lost,
    /// Hello, with what is held.
    Join(Memory, Option<Epoch>),
    Acquire,
    Release(Epoch),
    Ready(Epoch),
    Evicted(u64),
    Return(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Life {
    Here,
    /// Its process is not gone yet: what it has submitted still runs.
    Dying,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lease {
    pub(crate) epoch: Epoch,
    /// The latest lease that was in use when an assigner that had begun anew let it in with its own.
    pub(crate) renewed: Option<Epoch>,
    is_ready: bool,
    wanted: bool,
    recalled: bool,
}

/// Its paged memory, in chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Memory {
    pub(crate) claimed: u64,
    resident: u64,
    credit: u64,
    owed: u64,
}

impl Memory {
    pub(crate) fn room(self) -> Room {
        Room { fixed: 0, claimed: self.claimed, resident: self.resident + self.credit }
    }

    pub(crate) fn on_gpu(self) -> u64 {
        self.resident
    }

    fn is_there(self) -> bool {
        self.resident == self.claimed && self.owed == 0
    }
}

/// What a client may do wrong, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Flaw {
    /// It does not ask again when an assigner has begun anew.
    AsksOnce,
    /// It gives back while its kernel runs.
    DoesNotDrain,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    pub(crate) life: Life,
    pub(crate) connected: bool,
    /// Nobody has told it for long that its lease still holds.
    pub(crate) unsure: bool,
    /// Phases still to come.
    phases: u8,
    /// It is in a phase.
    works: bool,
    asked: bool,
    pub(crate) lease: Option<Lease>,
    /// The lease under which a kernel runs.
    pub(crate) runs: Option<Epoch>,
    pub(crate) memory: Memory,
    flaw: Option<Flaw>,
}

impl Client {
    pub(crate) fn new(phases: u8, claimed: u64, flaw: Option<Flaw>) -> Client {
        Client {
            life: Life::Here,
            connected: true,
            unsure: false,
            phases,
            works: false,
            asked: false,
            lease: None,
            runs: None,
            memory: Memory { claimed, ..Memory::default() },
            flaw,
        }
    }

    pub(crate) fn may_begin(&self) -> bool {
        self.life == Life::Here && !self.works && self.phases > 0
    }

    pub(crate) fn begin(&mut self, out: &mut VecDeque<Says>) {
        self.phases -= 1;
        self.works = true;
        self.drive(out);
    }

    /// The gate is open, and there is something to submit.
    pub(crate) fn may_run(&self) -> bool {
        let open = |lease: &Lease| !lease.recalled && lease.is_ready;
        self.life == Life::Here
            && self.works
            && self.runs.is_none()
            && !self.unsure
            && self.lease.as_ref().is_some_and(open)
    }

    pub(crate) fn run(&mut self) {
        self.runs = self.lease.map(|lease| lease.epoch);
    }

    /// A kernel ends, and another would follow if nobody had asked for the lease.
    pub(crate) fn may_stop(&self) -> bool {
        let asked = self.lease.is_none_or(|lease| lease.recalled);
        self.runs.is_some() && (asked || self.life == Life::Dying)
    }

    pub(crate) fn stop(&mut self, out: &mut VecDeque<Says>) {
        self.runs = None;
        self.drive(out);
    }

    pub(crate) fn may_be_done(&self) -> bool {
        self.life == Life::Here && self.runs.is_some()
    }

    pub(crate) fn done(&mut self, out: &mut VecDeque<Says>) {
        self.works = false;
        self.stop(out);
    }

    /// It has been idle for long enough, and somebody waits.
    pub(crate) fn may_give_back(&self) -> bool {
        let wanted = self.lease.is_some_and(|lease| lease.wanted);
        self.life == Life::Here && self.connected && wanted && !self.works && self.runs.is_none()
    }

    pub(crate) fn give_back(&mut self, out: &mut VecDeque<Says>) {
        out.extend(self.lease.take().map(|lease| Says::Release(lease.epoch)));
    }

    /// The program is over.
    pub(crate) fn may_exit(&self) -> bool {
        self.life == Life::Here && self.phases == 0 && !self.works && self.runs.is_none()
    }

    pub(crate) fn may_move(&self) -> bool {
        let Memory { resident, credit, owed, .. } = self.memory;
        self.life == Life::Here
            && self.runs.is_none()
            && !self.unsure
            && self.connected
            && if owed > 0 { resident > 0 } else { credit > 0 }
    }

    /// A chunk is moved, to the host or from it.
    pub(crate) fn move_chunk(&mut self, out: &mut VecDeque<Says>) {
        if self.memory.owed > 0 {
            self.memory.resident -= 1;
            self.memory.owed -= 1;
            out.push_back(Says::Evicted(1));
        } else {
            self.memory.credit -= 1;
            self.memory.resident += 1;
        }
        self.drive(out);
    }

    /// The assigner is gone, and what was under way with it.
    pub(crate) fn lose(&mut self) {
        self.connected = false;
        self.asked &= self.flaw == Some(Flaw::AsksOnce);
    }

    pub(crate) fn reconnect(&mut self, out: &mut VecDeque<Says>) {
        self.connected = true;
        self.memory.owed = 0;
        out.push_back(Says::Join(self.memory, self.lease.map(|lease| lease.epoch)));
        self.drive(out);
    }

    pub(crate) fn hear(&mut self, said: Said, latest: Option<Epoch>, out: &mut VecDeque<Says>) {
        match said {
            Said::Welcome => {
                self.unsure = false;
                if let Some(lease) = &mut self.lease {
                    lease.renewed = latest;
                }
            }
            Said::Grant(epoch, is_ready) => {
                self.asked = false;
                self.lease =
                    Some(Lease { epoch, renewed: None, is_ready, wanted: false, recalled: false });
            }
            Said::Wanted(epoch) => {
                if let Some(lease) = self.lease.as_mut().filter(|lease| lease.epoch == epoch) {
                    lease.wanted = true;
                }
            }
            Said::Recall(epoch) => {
                if let Some(lease) = self.lease.as_mut().filter(|lease| lease.epoch == epoch) {
                    (lease.wanted, lease.recalled) = (true, true);
                }
            }
            Said::Overtaken(epoch) => {
                self.lease = self.lease.filter(|lease| lease.epoch != epoch);
            }
            Said::Credit(chunks) => self.memory.credit += chunks,
            Said::Evict(chunks) => self.memory.owed += chunks,
            Said::Withdraw => {
                let credit = std::mem::take(&mut self.memory.credit);
                out.extend((credit > 0).then_some(Says::Return(credit)));
            }
            Said::Stay => self.memory.owed = 0,
        }
        self.drive(out);
    }

    /// Does what is to be done at once.
    fn drive(&mut self, out: &mut VecDeque<Says>) {
        if self.life != Life::Here || !self.connected {
            return;
        }
        if !self.unsure {
            self.settle_memory(out);
        }
        let drained = self.runs.is_none() || self.flaw == Some(Flaw::DoesNotDrain);
        if self.lease.is_some_and(|lease| lease.recalled) && drained {
            self.give_back(out);
        }
        match &mut self.lease {
            None if self.works && !self.asked => {
                self.asked = true;
                out.push_back(Says::Acquire);
            }
            Some(lease) if !lease.is_ready && self.memory.is_there() && !self.unsure => {
                lease.is_ready = true;
                out.push_back(Says::Ready(lease.epoch));
            }
            _ => {}
        }
    }

    /// Unused credit goes first; what nothing is absent for goes back.
    fn settle_memory(&mut self, out: &mut VecDeque<Says>) {
        let Memory { claimed, resident, credit, owed } = &mut self.memory;
        let unused = (*credit).min(*owed);
        if unused > 0 {
            *credit -= unused;
            *owed -= unused;
            out.push_back(Says::Evicted(unused));
        }
        if *resident == 0 {
            *owed = 0; // more than it has, said when it had more
        }
        let excess = (*resident + *credit).saturating_sub(*claimed);
        if *owed == 0 && excess > 0 {
            *credit -= excess;
            out.push_back(Says::Return(excess));
        }
    }
}
