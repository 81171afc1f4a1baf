//! The worker dies: clients come back with what they hold, and nobody else gets it meanwhile.

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

#[test]
fn a_holder_comes_back_with_its_lease() {
    let home = Home::new();
    home.start(&["--gpu-list", "0"]);
    let socket = home.socket();
    let (mut holder, number) = Client::join(&socket, None);
    let bound = holder.bind();
    holder.acquire();
    let epoch = holder.granted();
    kill_worker(&home);
    assert!(holder.try_next().is_none());

    // Another one is faster than the holder: it must not get the GPU.
    let (mut other, other_number) = Client::join(&socket, None);
    assert_ne!(other_number, number);
    other.bind();
    other.acquire();
    let held = Held { client: number, bound, epoch, room: vec![0], ..Held::default() };
    let (mut holder, again) = Client::join(&socket, Some(held));
    assert_eq!(again, number);
    let status = home.status();
    let clients = status["nodes"][0]["clients"].as_array().unwrap().clone();
    let state = |number: u64| {
        let client = clients.iter().find(|client| client["client"] == number).unwrap();
        client["state"].as_str().unwrap().to_owned()
    };
    assert_eq!((state(number).as_str(), state(other_number).as_str()), ("holding", "waiting"));
    assert_eq!(status["nodes"][0]["restarts"], 1);
    holder.release(epoch);
    assert!(other.granted() > epoch);
}

#[test]
fn epochs_grow_over_restarts_and_a_silent_holder_loses_its_lease_in_the_end() {
    let home = Home::new();
    home.start(&["--gpu-list", "0"]);
    let socket = home.socket();
    let (mut holder, _) = Client::join(&socket, None);
    holder.bind();
    holder.acquire();
    let epoch = holder.granted();
    kill_worker(&home);
    let (mut other, _) = Client::join(&socket, None);
    other.bind();
    other.acquire();
    // This process is alive, but does not come back within the settle time.
    assert!(other.granted() > epoch);
}

#[test]
fn who_comes_back_late_keeps_its_place_and_hears_that_its_lease_is_over() {
    let home = Home::new();
    home.start(&["--gpu-list", "0"]);
    let socket = home.socket();
    let (mut holder, number) = Client::join(&socket, None);
    let bound = holder.bind();
    holder.acquire();
    let epoch = holder.granted();
    kill_worker(&home);
    let (mut other, _) = Client::join(&socket, None);
    other.bind();
    other.acquire();
    let later = other.granted();
    let notes = home.status()["nodes"][0]["notes"].to_string();
    assert!(notes.contains("1 clients from before the restart are not back"), "{notes}");

    let held = Held { client: number, bound, epoch, room: vec![0], ..Held::default() };
    let (mut holder, again) = Client::join(&socket, Some(held));
    assert_eq!(again, number);
    match holder.next() {
        Kind::Recall(recall) => assert_eq!(recall.epoch, epoch),
        other => panic!("no Recall, but {other:?}"),
    }
    holder.release(epoch);
    holder.acquire();
    other.release(later);
    assert!(holder.granted() > later);
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
