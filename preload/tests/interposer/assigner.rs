//! An assigner that says exactly what a test tells it to.

use crate::setup::{Client, Lab, PATIENCE, wait_until};
use acb_wire::frame::{Decoder, encode};
use acb_wire::v1::assigner_message::Kind as Say;
use acb_wire::v1::client_message::Kind as Hear;
use acb_wire::v1::{
    AssignerMessage, Bound, BoundGpu, ClientMessage, Granted, Hello, MemoryReport, OnFailure,
    Ready, Recall, Release, RoomReply, RoomRequest, RoomVerdict, Wanted, Welcome,
};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) const UUID: &str = "GPU-11111111";

/// Long enough that what should not come would have come.
pub(crate) const SILENCE: Duration = Duration::from_millis(200);

pub(crate) struct Assigner {
    listener: UnixListener,
}

pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    decoder: Decoder,
    /// The latest heard.
    report: MemoryReport,
    /// What was said before the Ready that was waited for.
    early: VecDeque<Hear>,
}

/// A client that has gone through cuInit, on the driver for tests.
pub(crate) fn start(scenario: &str) -> (Lab, Assigner, Client, Peer) {
    start_in(Lab::new(), scenario)
}

pub(crate) fn start_in(lab: Lab, scenario: &str) -> (Lab, Assigner, Client, Peer) {
    start_with(lab, scenario, welcome())
}

/// The same, on other terms.
pub(crate) fn start_with(
    lab: Lab,
    scenario: &str,
    welcome: Welcome,
) -> (Lab, Assigner, Client, Peer) {
    let assigner = Assigner::listen(&lab.socket());
    let client = lab.start(scenario);
    let peer = assigner.accept_client_with(welcome, bound());
    (lab, assigner, client, peer)
}

impl Assigner {
    pub(crate) fn listen(path: &Path) -> Self {
        Assigner { listener: UnixListener::bind(path).expect("the socket can be made") }
    }

    pub(crate) fn accept(&self) -> Peer {
        self.listener.set_nonblocking(true).unwrap();
        let mut accepted = None;
        wait_until("a connection", || match self.listener.accept() {
            Ok((stream, _)) => {
                accepted = Some(stream);
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("accept: {error}"),
        });
        let stream = accepted.expect("accepted");
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Peer {
            stream,
            decoder: Decoder::new(),
            report: MemoryReport::default(),
            early: VecDeque::new(),
        }
    }

    /// Whether nobody has connected since.
    pub(crate) fn is_left_alone(&self) -> bool {
        self.listener.set_nonblocking(true).unwrap();
        self.listener.accept().is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// A client that has gone through cuInit, with 16 GiB on its GPU.
    pub(crate) fn accept_client(&self) -> Peer {
        self.accept_client_with(welcome(), bound())
    }

    /// The same, on other terms and with other GPUs.
    pub(crate) fn accept_client_with(&self, welcome: Welcome, bound: Say) -> Peer {
        let mut peer = self.accept();
        peer.hello();
        peer.say(Say::Welcome(welcome));
        assert!(matches!(peer.hear(), Hear::Bind(_)));
        peer.say(bound);
        peer
    }
}

pub(crate) fn welcome() -> Welcome {
    Welcome {
        client: 5,
        idle_us: 2_000,
        grace_ms: 20_000,
        on_failure: OnFailure::Open.into(),
        context_bytes: 0,
        ..Welcome::default()
    }
}

pub(crate) fn bound() -> Say {
    let gpu = BoundGpu { index: 0, uuid: UUID.into(), memory: 16 << 30, ..BoundGpu::default() };
    Say::Bound(Bound { gpus: vec![gpu] })
}

impl Peer {
    pub(crate) fn say(&mut self, kind: Say) {
        self.stream
            .write_all(&encode(&AssignerMessage { kind: Some(kind) }))
            .expect("the client listens");
    }

    /// The next message but counters, reports, announcements and the end of a switch.
    #[track_caller]
    pub(crate) fn hear(&mut self) -> Hear {
        self.try_hear().expect("the client says something before it leaves")
    }

    /// The next message but counters, reports and announcements.
    #[track_caller]
    pub(crate) fn hear_moves(&mut self) -> Hear {
        loop {
            match self.hear_any().expect("the client says something before it leaves") {
                Hear::Usage(_) | Hear::MemoryReport(_) | Hear::ReleaseSoon(_) => {}
                other => return other,
            }
        }
    }

    /// A report that is as it should be: the latest, or one to come before anything else does.
    #[track_caller]
    pub(crate) fn wait_for_moves(
        &mut self,
        condition: impl Fn(&MemoryReport) -> bool,
    ) -> MemoryReport {
        while !condition(&self.report) {
            match self.hear_any().expect("the client says something before it leaves") {
                Hear::Usage(_) | Hear::MemoryReport(_) | Hear::ReleaseSoon(_) => {}
                other => panic!("a report expected: {other:?}"),
            }
        }
        self.report.clone()
    }

    /// `None`: the client has left.
    #[track_caller]
    pub(crate) fn try_hear(&mut self) -> Option<Hear> {
        loop {
            match self.hear_any()? {
                Hear::Usage(_) | Hear::MemoryReport(_) | Hear::Ready(_) | Hear::ReleaseSoon(_) => {}
                kind => return Some(kind),
            }
        }
    }

    /// The end of a switch, which the link thread tells. A call that has waited for the gate may be faster: what it asks for or gives
    /// back is heard next.
    #[track_caller]
    pub(crate) fn ready(&mut self) -> Ready {
        let mut early = VecDeque::new();
        loop {
            match self.hear_moves() {
                Hear::Ready(ready) => {
                    early.append(&mut self.early);
                    self.early = early;
                    break ready;
                }
                said @ (Hear::RoomRequest(_) | Hear::RoomReturn(_)) => early.push_back(said),
                other => panic!("Ready expected: {other:?}"),
            }
        }
    }

    #[track_caller]
    pub(crate) fn hear_any(&mut self) -> Option<Hear> {
        if let Some(said) = self.early.pop_front() {
            return Some(said);
        }
        loop {
            if let Some(message) = self.decoder.next::<ClientMessage>().expect("frames are right") {
                if let Some(Hear::MemoryReport(report)) = &message.kind {
                    self.report = report.clone();
                }
                return message.kind;
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Ok(count) => self.decoder.extend(&buffer[..count]),
                Err(error) => panic!("nothing heard from the client: {error}"),
            }
        }
    }

    #[track_caller]
    pub(crate) fn hello(&mut self) -> Hello {
        match self.hear() {
            Hear::Hello(hello) => hello,
            other => panic!("Hello expected: {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn acquire(&mut self) {
        let heard = self.hear();
        assert!(matches!(heard, Hear::Acquire(_)), "{heard:?}");
    }

    #[track_caller]
    pub(crate) fn release(&mut self) -> Release {
        match self.hear() {
            Hear::Release(release) => release,
            other => panic!("Release expected: {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn room_request(&mut self) -> RoomRequest {
        match self.hear() {
            Hear::RoomRequest(request) => request,
            other => panic!("RoomRequest expected: {other:?}"),
        }
    }

    pub(crate) fn room_reply(&mut self, seq: u64, verdict: RoomVerdict, reason: &str) {
        self.say(Say::RoomReply(RoomReply {
            seq,
            verdict: verdict.into(),
            reason: reason.into(),
            bytes: 0,
        }));
    }

    /// Acquire, and the lease.
    #[track_caller]
    pub(crate) fn grant(&mut self, epoch: u64) {
        self.acquire();
        self.say(Say::Granted(Granted { epoch, resident: false }));
    }

    pub(crate) fn want(&mut self, epoch: u64) {
        self.say(Say::Wanted(Wanted { epoch }));
    }

    pub(crate) fn recall(&mut self, epoch: u64) {
        self.say(Say::Recall(Recall { epoch }));
    }

    /// Nothing comes for a while but counters, reports and the end of a switch.
    #[track_caller]
    pub(crate) fn hears_nothing(&mut self) {
        assert!(self.early.is_empty(), "silence expected: {:?}", self.early);
        let deadline = Instant::now() + SILENCE;
        loop {
            while let Some(message) =
                self.decoder.next::<ClientMessage>().expect("frames are right")
            {
                match message.kind {
                    Some(Hear::MemoryReport(report)) => self.report = report,
                    Some(Hear::Usage(_) | Hear::Ready(_)) => {}
                    other => panic!("silence expected: {other:?}"),
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.stream.set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => self.decoder.extend(&buffer[..count]),
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
                }
            }
        }
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
}
