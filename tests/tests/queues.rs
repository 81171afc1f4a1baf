//! Named queues between real programs on software GPUs: a policy, a limit of GPUs and one of clients for each.
//!
//! Owns: that what is configured holds for programs. Nobody gives a GPU back at the end of a quantum, for an hour, nor because it is
//! idle, for a minute. Does not own: priorities (priority.rs).

use std::sync::Arc;
use std::thread;

use acb_tests::bench::outside::{OnRequest, Outside};
use acb_tests::lab::Prefix;
use anyhow::{Result, anyhow, ensure};

const GPU: &str = "memory = \"256MiB\"\ncontext_bytes = 1048576\n[[gpu]]\nname = \"Simulated GPU\"\n[[gpu]]\nname = \"Simulated GPU\"\n";
const OPTIONS: [&str; 12] = [
    "--quantum-ms",
    "3600000",
    "--idle-us",
    "60000000",
    "--context-mib",
    "2",
    "--chunk-mib",
    "2",
    "--queue",
    "alone,policy=gpu-affinity,max_gpus=1",
    "--queue",
    "together,policy=gpu-sharing,max_clients=2",
];

/// A program in a queue that may have one of the GPUs alone; it has it when this returns.
fn program(outside: &Outside, queue: &str, gpu: &str) -> Result<OnRequest> {
    let variables = [("ACB_QUEUE", queue), ("ACB_ELIGIBLE", gpu), ("ACB_MEMORY", "33554432")];
    outside.on_request_with(&variables)
}

#[test]
fn each_queue_has_its_policy_and_its_limits() -> Result<()> {
    let outside = Arc::new(Outside::start(&Prefix::from_env()?, GPU, &OPTIONS)?);
    let gpus = outside.wait_for("there are two GPUs", |status| status.gpus.len() == 2)?.gpus;
    let [first, second] = [0, 1].map(|at: usize| gpus[at].uuid.clone());

    // One of the queue holds a GPU: the next one of it waits, though its own GPU is free.
    let one = program(&outside, "alone", &first)?;
    let (there, gpu) = (outside.clone(), second.clone());
    let waiting = thread::spawn(move || program(&there, "alone", &gpu));
    let status = outside.wait_for("the second one of the queue waits", |status| {
        status.clients.iter().any(|client| client.state == "waiting")
    })?;
    ensure!(status.gpus[1].holders.is_empty() && !waiting.is_finished(), "{status:#?}");
    drop(one);
    let two = waiting.join().map_err(|_| anyhow!("the second one's thread has panicked"))??;
    outside.wait_for("it has its GPU", |status| status.gpus[1].holders.len() == 1)?;
    drop(two);
    outside.wait_for("it is gone", |status| status.clients.is_empty())?;

    // Two of the other queue hold one GPU together; there is no place for a third.
    let mut both = Vec::new();
    for _ in 0..2 {
        let mut sharing = program(&outside, "together", &second)?;
        sharing.ask("alloc 1 4M")?;
        sharing.ask("fill")?;
        both.push(sharing);
    }
    outside.wait_for("both hold it", |status| status.gpus[1].holders.len() == 2)?;
    ensure!(program(&outside, "together", &second).is_err(), "{}", outside.log());
    for sharing in &mut both {
        sharing.ask("compare")?;
    }
    Ok(())
}
