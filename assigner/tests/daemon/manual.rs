//! Manual mode, through the gRPC that ACB's Python package speaks.

use std::process::{Child, Command, Stdio};

use acb_assigner::generated::gpu_assigner_client::GpuAssignerClient;
use acb_wire::v1::{AllocReply, AllocRequestMessage, ReleaseMessage};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::restart::kill_worker;
use crate::support::{Client, Home, LIMIT, eventually};

struct Manual(GpuAssignerClient<Channel>);

impl Manual {
    async fn connect(home: &Home) -> Manual {
        Manual::at(home.port).await
    }

    async fn at(port: u16) -> Manual {
        let place = format!("http://127.0.0.1:{port}");
        Manual(GpuAssignerClient::connect(place).await.unwrap())
    }

    async fn alloc(&mut self, request: AllocRequestMessage) -> Result<AllocReply, Status> {
        let reply = timeout(LIMIT, self.0.alloc_request(request)).await.expect("an answer in time");
        reply.map(tonic::Response::into_inner)
    }

    async fn release(&mut self, client: u64, epoch: u64, finish: bool) -> Result<(), Status> {
        self.0.release(ReleaseMessage { client, epoch, finish }).await.map(drop)
    }
}

/// One GPU, for this process unless another one is named.
fn wanted(pid: u32) -> AllocRequestMessage {
    let program = "manual".to_owned();
    AllocRequestMessage { pid, program, gpus: 1, device: "cuda".to_owned(), ..Default::default() }
}

/// State of a client, as `status` shows it; `None` when there is no such client.
fn state(home: &Home, number: u64) -> Option<String> {
    let status = home.status();
    let clients = status["nodes"][0]["clients"].as_array().unwrap().clone();
    let client = clients.into_iter().find(|client| client["client"] == number)?;
    assert_eq!(client["manual"], true);
    Some(client["state"].as_str().unwrap().to_owned())
}

/// A process that lives until it is told.
struct Bystander(Child);

impl Bystander {
    fn new() -> Bystander {
        Bystander(Command::new("cat").stdin(Stdio::piped()).spawn().unwrap())
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_taken_given_back_and_taken_again() {
    let home = Home::new();
    home.start(&["--gpu-list", "0"]);
    let mut manual = Manual::connect(&home).await;
    let first = manual.alloc(wanted(std::process::id())).await.unwrap();
    assert_eq!((first.gpus.len(), first.gpus[0].index), (1, 0));
    assert!(first.gpus[0].uuid.starts_with("GPU-"));
    assert_eq!(state(&home, first.client).as_deref(), Some("holding"));

    // Whoever asks again holds the same lease: its first answer may have been lost.
    let same = AllocRequestMessage { client: first.client, ..wanted(0) };
    assert_eq!(manual.alloc(same.clone()).await.unwrap(), first);

    manual.release(first.client, first.epoch, false).await.unwrap();
    assert_eq!(state(&home, first.client).as_deref(), Some("idle"));
    let stale = manual.release(first.client, first.epoch, false).await.unwrap_err();
    assert_eq!(stale.code(), Code::NotFound);

    let second = manual.alloc(same.clone()).await.unwrap();
    assert_eq!(second.client, first.client);
    assert!(second.epoch > first.epoch);
    manual.release(second.client, second.epoch, true).await.unwrap();
    assert_eq!(state(&home, first.client), None);
    let forgotten = manual.alloc(same).await.unwrap_err();
    assert_eq!(forgotten.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_take_turns() {
    let home = Home::new();
    home.start(&["--gpu-list", "0"]);
    let mut one = Manual::connect(&home).await;
    let mut other = Manual::connect(&home).await;
    let mut held = one.alloc(wanted(std::process::id())).await.unwrap();
    let mut asked = wanted(std::process::id());
    for _ in 0..10 {
        let waiting = tokio::spawn(async move {
            let reply = other.alloc(asked).await.unwrap();
            (other, reply)
        });
        eventually("the other one waits", || {
            let status = home.status();
            let clients = status["nodes"][0]["clients"].as_array().unwrap().clone();
            clients.iter().any(|client| client["state"] == "waiting").then_some(())
        });
        assert!(!waiting.is_finished());
        one.release(held.client, held.epoch, false).await.unwrap();
        let (granted, reply) = waiting.await.unwrap();
        assert!(reply.epoch > held.epoch);
        assert_ne!(reply.client, held.client);
        // Now they change places.
        asked = AllocRequestMessage { client: held.client, ..wanted(0) };
        other = std::mem::replace(&mut one, granted);
        held = reply;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_process_frees_the_lease() {
    let home = Home::new();
    home.start(&["--gpu-list", "0"]);
    let mut manual = Manual::connect(&home).await;
    let holder = Bystander::new();
    let held = manual.alloc(wanted(holder.0.id())).await.unwrap();
    let mut next = Manual::connect(&home).await;
    let waiting = tokio::spawn(async move { next.alloc(wanted(0)).await.unwrap() });
    drop(holder);
    let reply = waiting.await.unwrap();
    assert!(reply.epoch > held.epoch);
    assert_eq!(state(&home, held.client), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_may_end_in_the_moment_in_which_it_is_answered() {
    let home = Home::new();
    home.start(&["--gpu-list", "0"]);
    let mut manual = Manual::connect(&home).await;
    for _ in 0..30 {
        let holder = Bystander::new();
        let held = manual.alloc(wanted(holder.0.id())).await.unwrap();
        drop(holder);
        let next = manual.alloc(wanted(0)).await.unwrap();
        assert!(next.epoch > held.epoch);
        manual.release(next.client, next.epoch, true).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_what_it_needs_shares_a_gpu_only_where_that_fits() {
    let home = Home::new();
    home.start(&["--gpu-list", "0", "--scheduler", "gpu-sharing"]);
    let mut one = Manual::connect(&home).await;
    let mut other = Manual::connect(&home).await;
    let needs = |bytes| AllocRequestMessage { memory_hint: bytes, ..wanted(0) };
    // Of 1 GiB.
    let first = one.alloc(needs(600 << 20)).await.unwrap();
    let second = other.alloc(needs(300 << 20)).await.unwrap();
    other.release(second.client, second.epoch, false).await.unwrap();
    let more = AllocRequestMessage { client: second.client, ..needs(500 << 20) };
    let waiting = tokio::spawn(async move { other.alloc(more).await.unwrap() });
    eventually("it waits", || (state(&home, second.client)? == "waiting").then_some(()));
    one.release(first.client, first.epoch, true).await.unwrap();
    assert_eq!(waiting.await.unwrap().client, second.client);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_does_not_wait_any_more_is_not_granted_a_lease() {
    let home = Home::new();
    home.start(&["--gpu-list", "0"]);
    let mut manual = Manual::connect(&home).await;
    let held = manual.alloc(wanted(0)).await.unwrap();
    let mut impatient = Manual::connect(&home).await;
    let waiting = tokio::spawn(async move { impatient.alloc(wanted(0)).await.map(drop) });
    let number = held.client + 1;
    eventually("it waits", || (state(&home, number)? == "waiting").then_some(()));
    waiting.abort();
    eventually("it waits no more", || (state(&home, number)? == "idle").then_some(()));
    manual.release(held.client, held.epoch, false).await.unwrap();
    assert_eq!(state(&home, number).as_deref(), Some("idle"));
}

/// What `status` says of a client.
fn told(home: &Home, number: u64) -> Option<serde_json::Value> {
    let status = home.status();
    let clients = status["nodes"][0]["clients"].as_array()?.clone();
    clients.into_iter().find(|client| client["client"] == number)
}

#[tokio::test(flavor = "multi_thread")]
async fn priority_tenant_and_queue_count_in_manual_mode() {
    let home = Home::new();
    let queue = ["--queue", "night,priority=-50", "--tenant", "red", "--tenant", "blue"];
    home.start(&[&["--gpu-list", "0"], &queue[..]].concat());
    let mut holder = Manual::connect(&home).await;
    let own = std::process::id();
    let held = holder.alloc(wanted(own)).await.unwrap();
    // Three wait, in this order; they start in the order of queue and priority.
    let [late, usual, urgent] = [("night", 90, "red"), ("", 0, "blue"), ("", 7, "blue")];
    let mut waiting = Vec::new();
    for (number, (queue, priority, tenant)) in (held.client + 1..).zip([late, usual, urgent]) {
        let request = AllocRequestMessage {
            queue: queue.to_owned(),
            priority,
            tenant: tenant.to_owned(),
            ..wanted(0)
        };
        let mut client = Manual::connect(&home).await;
        waiting.push(tokio::spawn(async move {
            let reply = client.alloc(request).await.unwrap();
            client.release(reply.client, reply.epoch, true).await.unwrap();
            reply
        }));
        eventually("it waits", || (state(&home, number)? == "waiting").then_some(()));
        let told = told(&home, number).unwrap();
        assert_eq!(
            (told["priority"].as_i64(), told["queue"].as_str()),
            (Some(priority.into()), Some(queue))
        );
        assert_eq!(told["tenant"].as_str(), Some(tenant));
    }
    holder.release(held.client, held.epoch, true).await.unwrap();
    let mut epochs = Vec::new();
    for client in waiting {
        epochs.push(client.await.unwrap().epoch);
    }
    let [late, usual, urgent] = epochs[..] else { panic!("{epochs:?}") };
    assert!(urgent < usual && usual < late, "{epochs:?}");
    for (request, named) in [
        (AllocRequestMessage { priority: 101, ..wanted(0) }, "101"),
        (AllocRequestMessage { queue: "day".to_owned(), ..wanted(0) }, "day"),
        (AllocRequestMessage { tenant: "green".to_owned(), ..wanted(0) }, "green"),
    ] {
        let refused = holder.alloc(request).await.unwrap_err();
        assert!(refused.message().contains(named), "{}", refused.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gang_in_manual_mode_starts_together() {
    let home = Home::new();
    home.start(&["--gpu-list", "0,1"]);
    let member = |program: &str| AllocRequestMessage {
        program: program.to_owned(),
        gang: "pair".to_owned(),
        gang_size: 2,
        priority: 9,
        ..wanted(std::process::id())
    };
    let mut one = Manual::connect(&home).await;
    let request = member("one");
    let first = tokio::spawn(async move { one.alloc(request).await.unwrap() });
    eventually("it waits for the other", || (state(&home, 1)? == "waiting").then_some(()));
    let mut two = Manual::connect(&home).await;
    let second = two.alloc(member("two")).await.unwrap();
    let first = first.await.unwrap();
    assert_ne!(first.gpus[0].index, second.gpus[0].index);
}

/// A client asks again, by its number, in a connection of its own.
fn ask_again(home: &Home, number: u64) -> tokio::task::JoinHandle<Result<AllocReply, Status>> {
    let port = home.port;
    let request = AllocRequestMessage { client: number, ..wanted(0) };
    tokio::spawn(async move { Manual::at(port).await.alloc(request).await })
}

#[tokio::test(flavor = "multi_thread")]
async fn tenant_queue_priority_and_gang_are_the_same_after_a_restart() {
    let home = Home::new();
    let queues = ["--queue", "night,priority=-50", "--tenant", "red", "--tenant", "blue"];
    home.start(&[&["--gpu-list", "0,1"], &queues[..]].concat());
    let own = std::process::id();
    let member = |program: &str, tenant: &str| AllocRequestMessage {
        program: program.to_owned(),
        tenant: tenant.to_owned(),
        queue: "night".to_owned(),
        priority: 9,
        gang: "pair".to_owned(),
        gang_size: 2,
        ..wanted(own)
    };
    let mut one = Manual::connect(&home).await;
    let request = member("one", "red");
    let first = tokio::spawn(async move { one.alloc(request).await.unwrap() });
    eventually("it waits for the other", || (state(&home, 1)? == "waiting").then_some(()));
    let second = Manual::connect(&home).await.alloc(member("two", "blue")).await.unwrap();
    let first = first.await.unwrap();

    // Twice: what a worker was told by the one before it is told on.
    for restart in 1..=2 {
        kill_worker(&home);
        eventually("the worker serves", || {
            (home.status()["nodes"][0]["restarts"] == restart).then_some(())
        });
        for (reply, program, tenant) in [(&first, "one", "red"), (&second, "two", "blue")] {
            let back = told(&home, reply.client).unwrap();
            let text = |key: &str| back[key].as_str().unwrap().to_owned();
            let said = [text("program"), text("tenant"), text("queue")];
            assert_eq!(said, [program, tenant, "night"], "{back}");
            // Who is in a gang is to give back after a restart.
            assert_eq!(text("state"), "recalled", "{back}");
            assert_eq!((&back["priority"], &back["manual"]), (&9.into(), &true.into()));
        }
        let status = home.status();
        let gangs = &status["nodes"][0]["gangs"];
        assert_eq!((&gangs[0]["gang"], &gangs[0]["size"]), (&"pair".into(), &2.into()), "{gangs}");
        assert_eq!(gangs[0]["members"], serde_json::json!([1, 2]), "{gangs}");
    }

    // And counts: of the gang one alone waits, though both GPUs are free ...
    let mut manual = Manual::connect(&home).await;
    for reply in [&first, &second] {
        manual.release(reply.client, reply.epoch, false).await.unwrap();
    }
    let again = ask_again(&home, first.client);
    eventually("it waits again", || (state(&home, first.client)? == "waiting").then_some(()));
    // ... and one of no queue goes first, with both GPUs, however late it comes and whatever its priority.
    let usual = AllocRequestMessage { gpus: 2, priority: -9, ..wanted(0) };
    let usual = manual.alloc(usual).await.unwrap();
    let other = ask_again(&home, second.client);
    eventually("both wait", || (state(&home, second.client)? == "waiting").then_some(()));
    assert!(!again.is_finished() && !other.is_finished());
    manual.release(usual.client, usual.epoch, true).await.unwrap();
    let (again, other) = (again.await.unwrap().unwrap(), other.await.unwrap().unwrap());
    assert_eq!((again.client, other.client), (first.client, second.client));
    assert_ne!(again.gpus[0].index, other.gpus[0].index);
}

#[tokio::test(flavor = "multi_thread")]
async fn how_many_gpus_and_that_any_will_do_is_the_same_after_a_restart() {
    let home = Home::new();
    home.start(&["--gpu-list", "0,1"]);
    let mut manual = Manual::connect(&home).await;
    let both = AllocRequestMessage { gpus: 2, ..wanted(std::process::id()) };
    let held = manual.alloc(both).await.unwrap();
    manual.release(held.client, held.epoch, false).await.unwrap();
    let one = manual.alloc(wanted(std::process::id())).await.unwrap();
    kill_worker(&home);
    let mut manual = Manual::connect(&home).await;
    let same = ask_again(&home, one.client).await.unwrap().unwrap();
    assert_eq!(same, one, "it holds what it held");
    manual.release(one.client, one.epoch, false).await.unwrap();

    // It held nothing, and wants two.
    let again = ask_again(&home, held.client).await.unwrap().unwrap();
    assert_eq!(again.gpus.len(), 2);
    manual.release(again.client, again.epoch, true).await.unwrap();

    // It held one, and any other will do.
    let (mut other, _) = Client::join(&home.socket(), None);
    let bound = other.bind();
    let (mut next, _) = Client::join(&home.socket(), None);
    let uuid = one.gpus[0].uuid.clone();
    let holder = match bound[0] == uuid {
        true => &mut other,
        false => {
            assert_eq!(next.bind()[0], uuid);
            &mut next
        }
    };
    holder.acquire();
    holder.granted();
    let elsewhere = ask_again(&home, one.client).await.unwrap().unwrap();
    assert_ne!(elsewhere.gpus[0].uuid, uuid);
}

#[tokio::test(flavor = "multi_thread")]
async fn how_much_a_phase_has_counts_after_a_restart() {
    let home = Home::new();
    home.start(&["--gpu-list", "0", "--scheduler", "gpu-sharing"]);
    let needs = |pid, bytes| AllocRequestMessage { memory_hint: bytes, ..wanted(pid) };
    let mut manual = Manual::connect(&home).await;
    // Of 1 GiB.
    let held = manual.alloc(needs(std::process::id(), 600 << 20)).await.unwrap();
    kill_worker(&home);
    let mut manual = Manual::connect(&home).await;
    let mut second = Manual::connect(&home).await;
    let waiting = tokio::spawn(async move { second.alloc(needs(0, 500 << 20)).await.unwrap() });
    let number = held.client + 1;
    eventually("it waits", || (state(&home, number)? == "waiting").then_some(()));
    manual.release(held.client, held.epoch, true).await.unwrap();
    assert_eq!(waiting.await.unwrap().client, number);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cpu_needs_no_gpu() {
    let home = Home::new();
    home.start(&["--gpu-list", "none"]);
    let mut manual = Manual::connect(&home).await;
    for device in ["cpu", "any"] {
        let request = AllocRequestMessage { device: device.to_owned(), ..wanted(0) };
        let reply = manual.alloc(request).await.unwrap();
        assert!(reply.gpus.is_empty(), "{device}");
    }
    let refused = manual.alloc(wanted(0)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("any or cpu"), "{}", refused.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_are_refused_by_name() {
    let home = Home::new();
    home.start(&["--gpu-list", "0"]);
    let mut manual = Manual::connect(&home).await;
    let cases = [
        (AllocRequestMessage { device: "tpu".to_owned(), ..wanted(0) }, "`tpu`"),
        (AllocRequestMessage { gpus: 9, ..wanted(0) }, "9"),
        (wanted(u32::MAX), "process 4294967295"),
        (AllocRequestMessage { client: 77, ..wanted(0) }, "client 77"),
    ];
    for (request, named) in cases {
        let refused = manual.alloc(request).await.unwrap_err();
        assert!(refused.message().contains(named), "{}", refused.message());
    }
    assert_eq!(manual.release(77, 1, true).await.unwrap_err().code(), Code::NotFound);
}
