//! Memory that stays on the GPU beside memory that moves: counted by kind, nobody else's, and right.

use anyhow::{Result, ensure};

use crate::stage::{Stage, is_right};

const HELD: u64 = 16 << 20;

/// Two programs that do not fit together, one of which holds memory that stays.
fn beside_memory_that_moves(piece: &str, kind: &str) -> Result<()> {
    let stage = Stage::new()?;
    let mut holder = stage.program("holder")?;
    let mut other = stage.program("other")?;
    holder.ask(&format!("hold {piece} {HELD}"))?;
    for program in [&mut holder, &mut other] {
        program.ask("alloc 2 12M")?;
        program.ask("fill")?;
    }
    for _ in 0..2 {
        for program in [&mut holder, &mut other] {
            program.ask("step")?;
            program.ask("check")?;
        }
        let held = holder.ask("held")?;
        ensure!(held.checked == if piece == "heap" { 0 } else { HELD }, "{held:?}");
    }
    let of_kind = |memory: acb_tests::bench::status::MemoryStatus| {
        memory.fixed.iter().filter(|fixed| fixed.kind == kind).map(|fixed| fixed.bytes).sum::<u64>()
    };
    let status = stage.wait_for("memory that stays is reported", &holder, |client| {
        of_kind(client.memory()) == HELD
    })?;
    let memory = status.client(other.pid()).cloned().unwrap_or_default().memory();
    ensure!(memory.fixed.iter().all(|fixed| fixed.kind == "contexts"), "{memory:#?}");
    let moved =
        status.clients.iter().map(|client| client.memory()).map(|it| it.paged_out + it.clean);
    ensure!(moved.sum::<u64>() > 0, "nothing had to move: {status:#?}");

    // What does not fit beside it is refused; it fits when that is gone.
    other.request("alloc 1 24M")?;
    let refused = other.reply()?.error.unwrap_or_else(|| "it succeeded".into());
    ensure!(refused.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{refused}");
    holder.ask(&format!("drop {piece}"))?;
    stage
        .wait_for("it is not reported any more", &holder, |client| of_kind(client.memory()) == 0)?;
    other.ask("alloc 1 24M")?;
    other.ask("fill")?;
    is_right(&mut other)?;
    is_right(&mut holder)
}

#[test]
fn managed_memory() -> Result<()> {
    beside_memory_that_moves("managed", "managed")
}

#[test]
fn arrays() -> Result<()> {
    beside_memory_that_moves("array", "arrays")
}

#[test]
fn what_graphs_allocate() -> Result<()> {
    beside_memory_that_moves("graph", "graphs")
}

#[test]
fn variables_of_code() -> Result<()> {
    beside_memory_that_moves("module", "modules")
}

#[test]
fn variables_of_compressed_code() -> Result<()> {
    beside_memory_that_moves("packed", "modules")
}

#[test]
fn heaps_for_kernels() -> Result<()> {
    beside_memory_that_moves("heap", "heaps")
}
