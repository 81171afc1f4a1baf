//! A program with paged memory on the software GPU, and what the assigner says to it: claims, credits, turns.

use crate::assigner::{Assigner, Peer, welcome};
use crate::setup::{Client, Ended, Lab};
use acb_wire::v1::assigner_message::Kind as Say;
use acb_wire::v1::client_message::Kind as Hear;
use acb_wire::v1::{
    Arena, Bound, BoundGpu, Credit, Evict, Ready, RoomKind, RoomReturn, RoomVerdict, Welcome,
};

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) struct Play {
    pub(crate) lab: Lab,
    pub(crate) assigner: Assigner,
    pub(crate) client: Client,
    pub(crate) peer: Peer,
}

pub(crate) fn start(words: &str) -> Play {
    start_in(Lab::on_software_gpu(""), words)
}

pub(crate) fn start_in(lab: Lab, words: &str) -> Play {
    start_with(lab, words, paged_welcome())
}

pub(crate) fn start_with(lab: Lab, words: &str, welcome: Welcome) -> Play {
    start_on(lab, words, welcome, vec![gpu()])
}

pub(crate) fn start_on(lab: Lab, words: &str, welcome: Welcome, gpus: Vec<BoundGpu>) -> Play {
    start_scenario(lab, &format!("paged {words}"), welcome, gpus)
}

pub(crate) fn start_scenario(
    lab: Lab,
    scenario: &str,
    welcome: Welcome,
    gpus: Vec<BoundGpu>,
) -> Play {
    start_as(lab, scenario, welcome, gpus, Lab::start)
}

/// The same for a client that is started in a way of its own.
pub(crate) fn start_as(
    lab: Lab,
    scenario: &str,
    welcome: Welcome,
    gpus: Vec<BoundGpu>,
    start: impl FnOnce(&Lab, &str) -> Client,
) -> Play {
    let assigner = Assigner::listen(&lab.socket());
    let client = start(&lab, scenario);
    let peer = assigner.accept_client_with(welcome, Say::Bound(Bound { gpus }));
    Play { lab, assigner, client, peer }
}

/// By its number: the software GPU's UUID depends on its state.
pub(crate) fn gpu() -> BoundGpu {
    BoundGpu { index: 0, uuid: "0".into(), memory: 16 << 30, ..BoundGpu::default() }
}

pub(crate) fn paged_welcome() -> Welcome {
    // Longer than these programs ever take between two calls, unless they pause.
    Welcome { chunk_bytes: 16 * MIB, idle_us: 400_000, ..welcome() }
}

impl Play {
    /// A claim, granted.
    #[track_caller]
    pub(crate) fn claim(&mut self, bytes: u64) {
        self.claim_on(0, bytes);
    }

    /// The same on another device.
    #[track_caller]
    pub(crate) fn claim_on(&mut self, device: u32, bytes: u64) {
        let request = self.peer.room_request();
        assert_eq!(
            (request.device, request.bytes, request.kind()),
            (device, bytes, RoomKind::Paged)
        );
        self.peer.room_reply(request.seq, RoomVerdict::Granted, "");
    }

    /// Room for memory that stays, granted.
    #[track_caller]
    pub(crate) fn room(&mut self, bytes: u64) {
        let request = self.peer.room_request();
        assert_eq!((request.device, request.bytes, request.kind()), (0, bytes, RoomKind::Memory));
        self.peer.room_reply(request.seq, RoomVerdict::Granted, "");
    }

    /// What status shows of memory that stays; an empty list: nothing.
    #[track_caller]
    pub(crate) fn shows(&mut self, kinds: &[(&str, u64)]) {
        self.peer.wait_for_moves(|report| {
            let told = report.fixed.iter().map(|it| (it.kind.as_str(), it.bytes));
            told.eq(kinds.iter().copied())
        });
    }

    pub(crate) fn credit(&mut self, bytes: u64) {
        self.credit_on(0, bytes);
    }

    pub(crate) fn credit_on(&mut self, device: u32, bytes: u64) {
        self.peer.say(Say::Credit(Credit { device, bytes }));
    }

    pub(crate) fn evict(&mut self, bytes: u64) {
        self.evict_on(0, bytes);
    }

    pub(crate) fn evict_on(&mut self, device: u32, bytes: u64) {
        self.peer.say(Say::Evict(Evict { device, bytes }));
    }

    /// So much is asked back; this much of it stays, as that, and the rest goes.
    #[track_caller]
    pub(crate) fn keeps(&mut self, asked: u64, stays: u64, what: &str) {
        self.keeps_on(0, asked, stays, what);
    }

    /// The same on another device.
    #[track_caller]
    pub(crate) fn keeps_on(&mut self, device: u32, asked: u64, stays: u64, what: &str) {
        self.evict_on(device, asked);
        let mut moved = 0;
        let reason = loop {
            match self.peer.hear_moves() {
                Hear::Evicted(evicted) if evicted.failed.is_empty() => moved += evicted.bytes,
                Hear::Evicted(evicted) => break evicted.failed,
                other => panic!("Evicted expected: {other:?}"),
            }
        };
        assert_eq!(moved, asked - stays);
        assert!(reason.contains(&format!("{}.0 MiB ({what})", stays / MIB)), "{reason}");
    }

    /// Everything that was asked back has come; in how many parts.
    #[track_caller]
    pub(crate) fn evicted(&mut self, bytes: u64) -> usize {
        let (mut sum, mut parts) = (0, 0);
        while sum < bytes {
            match self.peer.hear_moves() {
                Hear::Evicted(evicted) => {
                    assert_eq!(evicted.failed, "");
                    sum += evicted.bytes;
                    parts += 1;
                }
                other => panic!("Evicted expected: {other:?}"),
            }
        }
        assert_eq!(sum, bytes);
        parts
    }

    #[track_caller]
    pub(crate) fn ready(&mut self, epoch: u64) -> Ready {
        let ready = self.peer.ready();
        assert_eq!(ready.epoch, epoch);
        ready
    }

    #[track_caller]
    pub(crate) fn returned(&mut self) -> RoomReturn {
        match self.peer.hear_moves() {
            Hear::RoomReturn(back) => back,
            other => panic!("RoomReturn expected: {other:?}"),
        }
    }

    /// A lease from Acquire to Ready.
    #[track_caller]
    pub(crate) fn turn(&mut self, epoch: u64, credit: u64) -> Ready {
        self.peer.grant(epoch);
        if credit > 0 {
            self.credit(credit);
        }
        self.ready(epoch)
    }

    /// The first turn, of which all memory has a place on the host at its end.
    #[track_caller]
    pub(crate) fn first_turn(&mut self, bytes: u64) {
        self.claim(bytes);
        self.peer.say(Say::Arena(Arena { bytes }));
        self.turn(1, bytes);
        self.peer.wait_for_moves(|moves| moves.arena == bytes);
    }

    /// The lease comes back, then memory is asked back and comes.
    #[track_caller]
    pub(crate) fn page_out(&mut self, epoch: u64, bytes: u64) {
        self.page_out_on(epoch, 0, bytes);
    }

    /// The same on another device.
    #[track_caller]
    pub(crate) fn page_out_on(&mut self, epoch: u64, device: u32, bytes: u64) {
        self.take_back(epoch);
        self.evict_on(device, bytes);
        self.evicted(bytes);
    }

    /// The same, and the program goes on.
    #[track_caller]
    pub(crate) fn swap_out(&mut self, epoch: u64, bytes: u64) {
        self.swap_out_on(epoch, 0, bytes);
    }

    /// The same on another device.
    #[track_caller]
    pub(crate) fn swap_out_on(&mut self, epoch: u64, device: u32, bytes: u64) {
        self.page_out_on(epoch, device, bytes);
        self.client.tell("on");
    }

    /// The program comes to its end.
    #[track_caller]
    pub(crate) fn end(mut self) -> Ended {
        self.client.tell("on");
        self.client.end().succeeded()
    }

    /// The lease comes back.
    #[track_caller]
    pub(crate) fn take_back(&mut self, epoch: u64) {
        self.peer.want(epoch);
        self.peer.release();
    }
}
