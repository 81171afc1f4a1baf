//! Finds NVML by DT_RPATH, which goes before LD_LIBRARY_PATH: `$ORIGIN/sim`, where an installation has the
//! software GPU's. Owns nothing: see linked_nvml.rs and build.rs.

#[path = "../linked_nvml.rs"]
mod linked_nvml;

fn main() -> anyhow::Result<()> {
    linked_nvml::main()
}
