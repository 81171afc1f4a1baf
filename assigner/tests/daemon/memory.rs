//! Paged memory: claims, credits and evictions between clients that speak the wire by hand.

use std::path::PathBuf;
use std::time::Instant;

use acb_wire::v1::{self, RoomKind, RoomVerdict, assigner_message::Kind, client_message};

use crate::restart::kill_worker;
use crate::support::{Client, Home, eventually};

const MIB: u64 = 1 << 20;

#[test]
fn settings_of_gpus_that_are_in_the_way_are_told_with_the_remedy() {
    let home = Home::with("gpus = 1\ncompute_mode = \"exclusive-process\"\nconfidential = true\n");
    home.start(&[]);
    let notes = home.status()["nodes"][0]["notes"].to_string();
    assert!(notes.contains("EXCLUSIVE_PROCESS") && notes.contains("nvidia-smi -i 0 -c DEFAULT"));
    assert!(notes.contains("confidential computing"), "{notes}");
    let home = Home::with("gpus = 1\ncompute_mode = \"prohibited\"\n");
    let output = home.assigner(&["start"]);
    assert_ne!(output.status.code(), Some(0));
    assert!(crate::support::errors(&output).contains("nvidia-smi -i 0 -c DEFAULT"), "{output:?}");
}

/// A client on the one GPU, which has 1 GiB.
struct Program {
    socket: PathBuf,
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
        let socket = home.socket();
        let mut client = Client::connect(&socket);
        client.send(client_message::Kind::Hello(v1::Hello {
            protocol: acb_wire::PROTOCOL,
            program: "test".to_owned(),
            gpus: 1,
            memory_limit,
            ..v1::Hello::default()
        }));
        let Kind::Welcome(welcome) = client.next() else { panic!("no Welcome") };
        let bound = client.bind();
        Program { socket, client, number: welcome.client, bound, seq: 0 }
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

    /// Connects again, at once, and says what it has.
    fn come_back(&mut self, epoch: u64, claimed: u64, resident: u64) {
        let held = v1::Held {
            client: self.number,
            bound: self.bound.clone(),
            epoch,
            room: vec![0],
            claimed: vec![claimed * MIB],
            resident: vec![resident * MIB],
        };
        let (client, number) = Client::join(&self.socket, Some(held));
        assert_eq!(number, self.number);
        self.client = client;
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

    /// Claims so much and has all of it under a lease.
    fn works_with(&mut self, mib: u64) -> u64 {
        self.claim(mib);
        let epoch = self.acquire();
        self.credited(mib);
        self.ready(epoch);
        epoch
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

    /// Its memory is there.
    fn ready(&mut self, epoch: u64) {
        let ready = v1::Ready { epoch, switch_ns: 5, bytes_in: 0 };
        self.client.send(client_message::Kind::Ready(ready));
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
    let epoch = one.works_with(700);
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
    other.ready(epoch);
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

/// The quantum is as short as can be: what is left is the share of the time that switching may cost.
#[test]
fn a_lease_lasts_by_what_its_memory_took() {
    let home = home(&["--quantum-ms", "1", "--switch-share", "0.02"]);
    let (mut one, mut other) = (Program::start(&home), Program::start(&home));
    let epoch = one.works_with(700);
    other.claim(600);
    other.client.acquire();
    other.credited(324);
    one.client.release(epoch);
    let epoch = other.client.granted();
    let granted = Instant::now();
    assert_eq!(one.evict(), 276);
    one.client.acquire();
    // Something that takes a while, though not so long that nobody would wait for fifty times as much.
    for _ in 0..20 {
        Client::join(&one.socket, None);
    }
    one.evicted(276);
    other.credited(276);
    // The assigner's own figure is a little larger.
    let switch = granted.elapsed();
    let ready = Instant::now();
    other.ready(epoch);
    let recalled = other.until(|kind| match kind {
        Kind::Recall(recall) => Some(recall.epoch),
        _ => None,
    });
    assert_eq!(recalled, epoch);
    // 49 times as long by the option, 9 times by default.
    assert!(ready.elapsed() > 40 * switch, "{:?} after {switch:?}", ready.elapsed());
}

#[test]
fn a_restart_in_the_middle_of_a_switch_loses_nothing() {
    let home = home(&[]);
    let (mut one, mut other) = (Program::start(&home), Program::start(&home));
    let epoch = one.works_with(900);
    other.claim(900);
    other.client.acquire();
    other.credited(124);
    one.client.release(epoch);
    assert_eq!(one.evict(), 776);
    let epoch = other.client.granted();
    one.evicted(300);
    other.credited(300);
    kill_worker(&home);
    assert!(one.client.try_next().is_none() && other.client.try_next().is_none());
    // The one moves more while nobody listens; the other has what it was credited.
    one.come_back(0, 900, 500);
    other.come_back(epoch, 900, 424);
    // 100 are free now, and what was asked for before is asked for anew.
    other.credited(100);
    assert_eq!(one.evict(), 376);
    one.evicted(376);
    other.credited(376);
    let resident = |program| status(&home, program)["resident"].as_u64().unwrap() / MIB;
    assert_eq!((resident(&one), resident(&other)), (124, 900));
}

#[test]
fn memory_of_who_sleeps_through_a_restart_stays_counted() {
    let home = home(&[]);
    let (mut one, mut other) = (Program::start(&home), Program::start(&home));
    other.claim(600);
    let epoch = one.works_with(900);
    // As soon as a client has its memory, the next life knows of it.
    kill_worker(&home);
    other.come_back(0, 600, 0);
    other.client.acquire();
    let shown = eventually("who is asleep is not waited for any more", || {
        let node = home.status()["nodes"][0].clone();
        let asleep = "1 clients from before the restart are not back";
        node["notes"].to_string().contains(asleep).then_some(node)
    });
    assert!(shown["gpus"][0]["room"].as_u64().unwrap() >= 900 * MIB);
    assert_eq!(status(&home, &other)["state"], "waiting");
    one.come_back(epoch, 900, 900);
    other.credited(124);
    one.client.release(epoch);
    assert_eq!(one.evict(), 476);
    other.client.granted();
    one.evicted(476);
    other.credited(476);
}

#[test]
fn a_client_that_does_not_move_its_memory_is_named_and_passed_over() {
    let home = home(&[]);
    let (mut stopped, mut willing) = (Program::start(&home), Program::start(&home));
    let mut third = Program::start(&home);
    for program in [&mut stopped, &mut willing] {
        program.claim(500);
        let epoch = program.acquire();
        program.credited(500);
        program.client.release(epoch);
    }
    third.claim(500);
    third.acquire();
    third.credited(24);
    assert_eq!(stopped.evict(), 476);
    let text = third.until(|kind| match kind {
        Kind::Notice(notice) => Some(notice.text),
        _ => None,
    });
    let pid = format!("test (pid {})", std::process::id());
    assert!(text.contains(&pid) && text.contains("476.0 MiB"), "{text}");
    assert_eq!(willing.evict(), 476);
    willing.evicted(476);
    third.credited(476);
}

#[test]
fn what_cannot_be_had_is_denied_with_its_remedy() {
    let home = home(&["--host-budget", "500M"]);
    let mut small = Program::limited(&home, 300 * MIB);
    let (verdict, reason) = small.ask(RoomKind::Context, 100 * MIB);
    assert_eq!(verdict, RoomVerdict::Granted, "{reason}");
    let (verdict, reason) = small.ask(RoomKind::Paged, 201 * MIB);
    assert_eq!(verdict, RoomVerdict::Denied);
    assert!(reason.contains("300.0 MiB") && reason.contains("mem="), "{reason}");
    small.claim(200);
    let mut big = Program::start(&home);
    let (verdict, reason) = big.ask(RoomKind::Paged, 925 * MIB);
    assert_eq!(verdict, RoomVerdict::Denied);
    assert!(reason.contains("cannot be moved"), "{reason}");
    // All that has to be able to leave is more than the host may hold.
    let (verdict, reason) = big.ask(RoomKind::Paged, 800 * MIB);
    assert_eq!(verdict, RoomVerdict::Denied);
    assert!(reason.contains("500.0 MiB") && reason.contains("host_budget"), "{reason}");
    big.claim(700);
    let status = status(&home, &small);
    assert_eq!(
        (&status["memory_limit"], &status["claimed"]),
        (&(300 * MIB).into(), &(200 * MIB).into())
    );
}

#[test]
fn a_limit_below_a_context_is_refused_and_others_are_what_the_client_sees() {
    let home = home(&[]);
    let mut client = Client::connect(&home.socket());
    let hello = |memory_limit| {
        client_message::Kind::Hello(v1::Hello {
            protocol: acb_wire::PROTOCOL,
            memory_limit,
            ..v1::Hello::default()
        })
    };
    client.send(hello(100 * MIB));
    let Kind::Refused(refused) = client.next() else { panic!("not refused") };
    assert_eq!(refused.code(), v1::RefusedCode::Limit);
    assert!(refused.reason.contains("100.0 MiB") && refused.reason.contains("mem="), "{refused:?}");
    for (limit, seen) in [(300, 200), (0, 924), (4096, 924)] {
        let mut client = Client::connect(&home.socket());
        client.send(hello(limit * MIB));
        client.send(client_message::Kind::Bind(v1::Bind {}));
        let memory = loop {
            if let Kind::Bound(bound) = client.next() {
                break bound.gpus[0].memory;
            }
        };
        assert_eq!(memory, seen * MIB);
    }
}

#[test]
fn eighty_clients_have_a_slice_each() {
    let home = Home::new();
    home.configure("gpus = 1\nmemory = \"80GiB\"\n");
    // Whose slices are all of the GPU: without that, memory of the host would have to back them.
    home.start(&["--headroom", "0"]);
    let mut programs: Vec<Program> = (0..80).map(|_| Program::limited(&home, 1024 * MIB)).collect();
    for program in &mut programs {
        let (verdict, reason) = program.ask(RoomKind::Context, 512 * MIB);
        assert_eq!(verdict, RoomVerdict::Granted, "{reason}");
        program.claim(512);
    }
    for program in &mut programs {
        let epoch = program.acquire();
        program.credited(512);
        program.client.release(epoch);
    }
    assert_eq!(home.status()["nodes"][0]["gpus"][0]["room"], 80 * 1024 * MIB);
}

#[test]
fn what_the_driver_keeps_for_itself_no_client_can_have() {
    let home = home(&[]);
    let program = Program::start(&home);
    let status = home.status();
    assert_eq!(status["nodes"][0]["gpus"][0]["memory"], 1 << 30, "{status:#}");
    drop(program);
}
