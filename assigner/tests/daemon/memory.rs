//! Paged memory: claims, credits and evictions between clients that speak the wire by hand.

use std::process::Command;

use acb_wire::v1::{self, RoomKind, RoomVerdict, assigner_message::Kind, client_message};

use crate::support::{Client, Home, errors, eventually};

const MIB: u64 = 1 << 20;

/// A client on the one GPU, which has 1 GiB.
struct Program {
    client: Client,
    number: u64,
    bound: Vec<String>,
    seq: u64,
}

impl Program {
    fn start(home: &Home) -> Program {
        Program::limited(home, 0)
    }

    fn limited(home: &Home, memory_limit: u64) -> Program {
        let mut client = Client::connect(&home.socket());
        client.send(client_message::Kind::Hello(v1::Hello {
            protocol: acb_wire::PROTOCOL,
            program: "test".to_owned(),
            gpus: 1,
            memory_limit,
            ..v1::Hello::default()
        }));
        let Kind::Welcome(welcome) = client.next() else { panic!("no Welcome") };
        let bound = client.bind();
        Program { client, number: welcome.client, bound, seq: 0 }
    }

    /// Asks for memory; the verdict, and why.
    fn ask(&mut self, kind: RoomKind, bytes: u64) -> (RoomVerdict, String) {
        self.seq += 1;
        let seq = self.seq;
        let (device, kind) = (0, kind.into());
        let request = v1::RoomRequest { seq, device, bytes, kind, cancel: false };
        self.client.send(client_message::Kind::RoomRequest(request));
        self.until(|kind| match kind {
            Kind::RoomReply(reply) if reply.seq == seq => Some((reply.verdict(), reply.reason)),
            _ => None,
        })
    }

    fn claim(&mut self, mib: u64) {
        let (verdict, reason) = self.ask(RoomKind::Paged, mib * MIB);
        assert_eq!(verdict, RoomVerdict::Granted, "{reason}");
    }

    fn evicted(&mut self, mib: u64) {
        let (device, bytes, failed) = (0, mib * MIB, String::new());
        self.client.send(client_message::Kind::Evicted(v1::Evicted { device, bytes, failed }));
    }

    fn acquire(&mut self) -> u64 {
        self.client.acquire();
        self.client.granted()
    }

    /// Reads until a message is what is looked for; passes over the others.
    fn until<T>(&mut self, mut wanted: impl FnMut(Kind) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(self.client.next()) {
                return found;
            }
        }
    }

    /// Waits for credits that add up to so much.
    fn credited(&mut self, mib: u64) {
        let mut sum = 0;
        while sum < mib * MIB {
            sum += self.until(|kind| match kind {
                Kind::Credit(credit) => Some(credit.bytes),
                _ => None,
            });
        }
        assert_eq!(sum, mib * MIB);
    }

    /// The next eviction that is asked for, MiB.
    fn evict(&mut self) -> u64 {
        self.until(|kind| match kind {
            Kind::Evict(evict) => Some(evict.bytes / MIB),
            _ => None,
        })
    }

    fn arena(&mut self) -> u64 {
        self.until(|kind| match kind {
            Kind::Arena(arena) => Some(arena.bytes / MIB),
            _ => None,
        })
    }
}

fn home(options: &[&str]) -> Home {
    let home = Home::new();
    home.start(&[&["--gpu-list", "0", "--context-mib", "100"], options].concat());
    home
}

/// What status says of a client.
fn status(home: &Home, program: &Program) -> serde_json::Value {
    let status = home.status();
    let clients = status["nodes"][0]["clients"].as_array().unwrap();
    clients.iter().find(|client| client["client"] == program.number).unwrap().clone()
}

#[test]
fn what_one_client_lacks_another_moves_away() {
    let home = home(&[]);
    let (mut one, mut other) = (Program::start(&home), Program::start(&home));
    one.claim(700);
    let epoch = one.acquire();
    one.credited(700);
    other.claim(600);
    // More is claimed than there is: both need memory of the host.
    assert_eq!((one.arena(), other.arena()), (700, 600));
    other.client.acquire();
    other.credited(324);
    one.client.release(epoch);
    assert_eq!(one.evict(), 276);
    let epoch = other.client.granted();
    one.evicted(100);
    other.credited(100);
    one.evicted(200);
    other.credited(176);
    let switch_ns = 5;
    other.client.send(client_message::Kind::Ready(v1::Ready { epoch, switch_ns, bytes_in: 0 }));
    let shown = eventually("Ready is counted", || {
        let status = home.status();
        let gpu = status["nodes"][0]["gpus"][0].clone();
        gpu["switch_ns"].as_u64().filter(|ns| *ns > 0).map(|_| gpu)
    });
    assert_eq!(shown["claimed"], 1300 * MIB);
    assert_eq!(shown["room"], 1000 * MIB);
    assert_eq!(status(&home, &one)["resident"], 400 * MIB);
    assert_eq!(status(&home, &other)["resident"], 600 * MIB);
}
