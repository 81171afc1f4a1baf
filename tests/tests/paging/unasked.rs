//! Memory that the driver takes for itself, which no call announces: others make room for it, and it is counted.

use acb_tests::bench::outside::OnRequest;
use acb_tests::bench::status::{ClientStatus, Status};
use anyhow::{Result, ensure};

use crate::stage::{Stage, is_right};

/// More than what is set aside for contexts and not used.
const GRAPH: u64 = 5 << 20;

/// What the driver has taken for itself in a program, as status shows it.
fn of_driver(client: &ClientStatus) -> u64 {
    let fixed = client.memory().fixed;
    fixed.iter().filter(|fixed| fixed.kind == "driver").map(|fixed| fixed.bytes).sum()
}

fn client<'a>(status: &'a Status, program: &OnRequest) -> &'a ClientStatus {
    status.client(program.pid()).expect("the assigner knows the program")
}

#[test]
fn a_graph_that_needs_memory_of_a_full_gpu_finds_room() -> Result<()> {
    let stage = Stage::with(&format!("graph_bytes = {GRAPH}"), &[])?;
    let mut victim = stage.filled_with("victim", "alloc 3 12M")?;
    let mut holder = stage.filled_with("holder", "alloc 3 12M")?;
    // Both together have more than there is: nothing is free when the graph is made.
    holder.ask("capture")?;
    holder.ask("replay")?;
    let status = stage
        .wait_for("what the driver has taken is shown", &holder, |client| of_driver(client) > 0)?;
    ensure!(of_driver(client(&status, &holder)) <= GRAPH, "{status:#?}");
    ensure!(of_driver(client(&status, &victim)) == 0, "{status:#?}");
    stage.tells("holder", "cuGraphInstantiate", "the driver has taken", "others made room")?;
    for program in [&mut victim, &mut holder] {
        is_right(program)?;
    }
    Ok(())
}
