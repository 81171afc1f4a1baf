//! Regenerates what is generated and checked in. Run through `scripts/regen`.
//!
//! `codegen proto ROOT` writes the messages of assigner/wire and the gRPC services of assigner.
//! `codegen symbols ROOT [HEADERS_DIR…]` writes the list of driver functions of preload/abi.
//! `codegen nvml ROOT [PYNVML_PY]` writes the list of NVML's functions of preload/nvml.
//! `codegen spank ROOT` writes the bindings of Slurm's spank.h in spank.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

mod nvml;
mod spank;
mod symbols;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["proto", root] => proto(Path::new(root)),
        ["symbols", root, ref headers @ ..] => {
            let headers: Vec<PathBuf> = headers.iter().map(PathBuf::from).collect();
            symbols::symbols(Path::new(root), &headers)
        }
        ["nvml", root] => nvml::nvml(Path::new(root), None),
        ["nvml", root, bindings] => nvml::nvml(Path::new(root), Some(Path::new(bindings))),
        ["spank", root] => spank::spank(Path::new(root)),
        _ => bail!(
            "usage: codegen proto ROOT | codegen symbols ROOT [HEADERS_DIR…] | \
             codegen nvml ROOT [PYNVML_PY] | codegen spank ROOT"
        ),
    }
}

/// Messages go to assigner/wire, which knows no tonic; services go to assigner and name those messages.
fn proto(root: &Path) -> Result<()> {
    let folder = root.join("assigner/wire/proto");
    let descriptors =
        protox::compile([folder.join("acb.proto")], [&folder]).context("compile acb.proto")?;

    let messages = root.join("assigner/wire/src/generated");
    std::fs::create_dir_all(&messages)?;
    prost_build::Config::new()
        .out_dir(&messages)
        .compile_fds(descriptors.clone())
        .context("generate messages")?;

    let services = root.join("assigner/src/generated");
    std::fs::create_dir_all(&services)?;
    tonic_prost_build::configure()
        .out_dir(&services)
        .extern_path(".acb.v1", "::acb_wire::v1")
        .compile_fds(descriptors)
        .context("generate services")?;
    Ok(())
}
