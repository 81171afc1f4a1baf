//! The worker dies: clients come back with what they hold, and nobody else gets it meanwhile.
//!
//! Who is to come back before the settle time is over asks nobody for the way: a command can take that long on a busy machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use acb_wire::v1::{Held, assigner_message::Kind};

use crate::support::{Client, Home, eventually};

fn worker_of(supervisor: u32) -> Option<u32> {
    let children = format!("/proc/{supervisor}/task/{supervisor}/children");
    std::fs::read_to_string(children).ok()?.split_whitespace().next()?.parse().ok()
}

pub(crate) fn kill_worker(home: &Home) {
    let supervisor = home.pid();
    let worker = worker_of(supervisor).expect("a daemon has a worker");
    assert!(Command::new("kill").args(["-KILL", &worker.to_string()]).status().unwrap().success());
    eventually("a new worker", || worker_of(supervisor).filter(|new| *new != worker));
}

/// A client that holds the one GPU when the worker dies.
struct Orphan {
    client: Client,
    number: u64,
    held: Held,
    socket: PathBuf,
}

fn orphan(home: &Home) -> Orphan {
    home.start(&["--gpu-list", "0"]);
    let socket = home.socket();
    let (mut client, number) = Client::join(&socket, None);
    let bound = client.bind();
    client.acquire();
    let epoch = client.granted();
    kill_worker(home);
    let held = Held { client: number, bound, epoch, room: vec![0], ..Held::default() };
    Orphan { client, number, held, socket }
}

/// Another one that asks for it.
fn rival(socket: &Path) -> (Client, u64) {
    let (mut rival, number) = Client::join(socket, None);
    rival.bind();
    rival.acquire();
    (rival, number)
}

fn state_of(home: &Home, number: u64) -> String {
    let status = home.status();
    let clients = status["nodes"][0]["clients"].as_array().unwrap();
    let client = clients.iter().find(|client| client["client"] == number).unwrap();
    client["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_holder_comes_back_with_its_lease() {
    let home = Home::new();
    let Orphan { mut client, number, held, socket } = orphan(&home);
    let epoch = held.epoch;
    assert!(client.try_next().is_none());

    // Another one is faster than the holder: it must not get the GPU.
    let (mut other, other_number) = rival(&socket);
    assert_ne!(other_number, number);
    let (mut holder, again) = Client::join(&socket, Some(held));
    assert_eq!(again, number);
    let states = (state_of(&home, number), state_of(&home, other_number));
    assert_eq!(states, ("holding".into(), "waiting".into()));
    let status = home.status();
    assert_eq!(status["nodes"][0]["restarts"], 1);
    holder.release(epoch);
    assert!(other.granted() > epoch);
}

#[test]
fn epochs_grow_over_restarts_and_a_silent_holder_loses_its_lease_in_the_end() {
    let home = Home::new();
    let orphan = orphan(&home);
    // This process is alive, but does not come back within the settle time.
    assert!(rival(&orphan.socket).0.granted() > orphan.held.epoch);
}

#[test]
fn who_comes_back_late_keeps_its_place_and_hears_that_its_lease_is_over() {
    let home = Home::new();
    let Orphan { number, held, socket, client: _silent } = orphan(&home);
    let epoch = held.epoch;
    let (mut other, _) = rival(&socket);
    let later = other.granted();
    let notes = home.status()["nodes"][0]["notes"].to_string();
    assert!(notes.contains("1 clients from before the restart are not back"), "{notes}");

    let (mut holder, again) = Client::join(&socket, Some(held));
    assert_eq!(again, number);
    // It must not believe in its lease between the two.
    match holder.at_hand() {
        Some(Kind::Recall(recall)) => assert_eq!(recall.epoch, epoch),
        other => panic!("no Recall with the Welcome, but {other:?}"),
    }
    holder.release(epoch);
    holder.acquire();
    other.release(later);
    assert!(holder.granted() > later);
}

/// A third worker must know that somebody else was granted by the second one, whoever comes back first.
#[test]
fn who_lost_its_lease_in_its_sleep_does_not_have_it_after_a_further_restart() {
    let home = Home::new();
    let Orphan { held, socket, client: _silent, .. } = orphan(&home);
    let (mut other, other_number) = Client::join(&socket, None);
    other.bind();
    eventually("the sleeper is given up", || {
        let notes = home.status()["nodes"][0]["notes"].to_string();
        notes.contains("are not back").then_some(())
    });
    other.acquire();
    let later = other.granted();
    kill_worker(&home);
    let theirs = Held { client: other_number, epoch: later, ..held.clone() };
    let epoch = held.epoch;
    let (mut sleeper, _) = Client::join(&socket, Some(held));
    match sleeper.next() {
        Kind::Recall(recall) => assert_eq!(recall.epoch, epoch),
        other => panic!("no Recall, but {other:?}"),
    }
    let (_other, _) = Client::join(&socket, Some(theirs));
    assert_eq!(state_of(&home, other_number), "holding");
}

#[test]
fn the_worker_ends_with_its_supervisor() {
    let home = Home::new();
    home.start(&[]);
    let supervisor = home.pid();
    let worker = worker_of(supervisor).unwrap();
    let socket = home.socket();
    assert!(
        Command::new("kill").args(["-KILL", &supervisor.to_string()]).status().unwrap().success()
    );
    eventually("the worker is gone", || {
        (!std::path::Path::new(&format!("/proc/{worker}")).exists()).then_some(())
    });
    assert!(!socket.exists());
    assert_eq!(home.assigner(&["status"]).status.code(), Some(69));
    home.start(&[]);
}

/// A client connects anew, as the one that it was. Until the end of its earlier connection has been seen, it is refused or taken for
/// another one.
fn come_back(socket: &Path, held: &Held) -> Client {
    eventually("it is known again", || {
        let mut client = Client::connect(socket);
        client.hello(Some(held.clone()));
        matches!(client.next(), Kind::Welcome(welcome) if welcome.client == held.client)
            .then_some(client)
    })
}

/// A client whose connection breaks while the assigner lives on, and that states what it holds: what was said to it meanwhile, it has
/// not read.
#[test]
fn a_recall_that_was_lost_with_its_connection_is_said_again() {
    let home = Home::new();
    home.start(&["--gpu-list", "0", "--quantum-ms", "1"]);
    let socket = home.socket();
    let (mut holder, number) = Client::join(&socket, None);
    let bound = holder.bind();
    holder.acquire();
    let epoch = holder.granted();
    let (mut other, _) = rival(&socket);
    eventually("it is recalled", || (state_of(&home, number) == "recalled").then_some(()));
    drop(holder);
    let held = Held { client: number, bound, epoch, room: vec![0], ..Held::default() };
    let mut holder = come_back(&socket, &held);
    loop {
        if let Kind::Recall(recall) = holder.next() {
            assert_eq!(recall.epoch, epoch);
            break;
        }
    }
    holder.release(epoch);
    assert!(other.granted() > epoch);
}

#[test]
fn a_lease_that_the_assigner_does_not_know_of_is_over() {
    let home = Home::new();
    let Orphan { held, socket, client: _silent, .. } = orphan(&home);
    let epoch = held.epoch;
    let (mut other, _) = rival(&socket);
    other.granted();
    // It hears that its lease is over, or would have: the connection breaks before that.
    drop(come_back(&socket, &held));
    let mut late = come_back(&socket, &held);
    match late.next() {
        Kind::Recall(recall) => assert_eq!(recall.epoch, epoch),
        other => panic!("no Recall, but {other:?}"),
    }
}
