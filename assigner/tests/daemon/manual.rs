//! Manual mode, through the gRPC that ACB's Python package speaks.

use std::process::{Child, Command, Stdio};

use acb_assigner::generated::gpu_assigner_client::GpuAssignerClient;
use acb_wire::v1::{AllocReply, AllocRequestMessage, ReleaseMessage};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::{Home, LIMIT, eventually};

struct Manual(GpuAssignerClient<Channel>);

impl Manual {
    async fn connect(home: &Home) -> Manual {
        let place = format!("http://127.0.0.1:{}", home.port);
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
