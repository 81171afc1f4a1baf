//! Finds NVML by the link alone. Owns nothing: see linked_nvml.rs and build.rs.

#[path = "../linked_nvml.rs"]
mod linked_nvml;

fn main() -> anyhow::Result<()> {
    linked_nvml::main()
}
