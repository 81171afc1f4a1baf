//! The software GPU that paging is measured on: a real one, scaled down.
//!
//! Owns: the original's numbers and what becomes of them. Memory is divided by one number, everything that
//! moves or maps bytes is slowed down by another: then a copy of the whole GPU, the mapping of it, and the
//! pinning of host memory for it take the same share of a switch as on the original, and two processor
//! cores can do what the software GPU does to the bytes in the time that the model gives them.

use std::time::Duration;

/// The original: 16 GB behind PCIe 4, numbers as in the design's notes.
const MEMORY: f64 = (16u64 << 30) as f64;
const LINK_PER_S: f64 = 24e9;
const MEMORY_PER_S: f64 = 900e9;
/// Create, map, access, unmap and release take 325 µs for 64 MiB.
const MAP_NS_PER_MIB: f64 = 3000.0;
const UNMAP_NS_PER_MIB: f64 = 2000.0;
/// 10 GiB/s.
const PIN_NS_PER_MIB: f64 = 97_656.0;

/// What the pager moves at a time here: the least that can be mapped.
pub const CHUNK: u64 = 2 << 20;

/// A scaled GPU.
#[derive(Clone, Copy, Debug)]
pub struct Scaled {
    /// Bytes of memory.
    pub memory: u64,
    /// The original's bytes that this stands for.
    pub stands_for: f64,
    /// By what moving bytes is slowed down.
    pub slower: f64,
    /// What a context takes. With [`OWN`] it stands for some hundred MB.
    pub context: u64,
}

/// What the pager has for itself in each program.
pub const OWN: u64 = 2 << 20;

impl Scaled {
    /// The 16 GB GPU with its memory divided by `smaller`.
    pub fn of_16_gb(smaller: u64, slower: f64) -> Self {
        let memory = (MEMORY as u64) / smaller;
        Self { memory, stands_for: MEMORY, slower, context: 1 << 20 }
    }

    /// A GPU of so many GB with its memory divided by `smaller`.
    pub fn of_gb(gb: u64, smaller: u64, slower: f64) -> Self {
        let memory = (gb << 30) / smaller;
        Self { memory, stands_for: (gb << 30) as f64, slower, context: 1 << 20 }
    }

    /// Bytes per second over the link, each way.
    pub fn link_per_s(&self) -> f64 {
        LINK_PER_S / self.slower
    }

    /// How long a copy of so many bytes takes.
    pub fn copy_time(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.link_per_s())
    }

    /// What a length of time on the original becomes.
    pub fn scale_time(&self, seconds: f64) -> Duration {
        let original = self.stands_for / LINK_PER_S;
        let here = self.memory as f64 / self.link_per_s();
        Duration::from_secs_f64(seconds * here / original)
    }

    /// `share` of the memory, in so many blocks of whole chunks.
    pub fn share(&self, share: f64, blocks: u64) -> u64 {
        let block = (self.memory as f64 * share) as u64 / blocks / CHUNK * CHUNK;
        block * blocks
    }

    /// How long pinning so many bytes takes.
    pub fn pin_time(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(
            bytes as f64 / (1 << 20) as f64 * PIN_NS_PER_MIB * self.slower / 1e9,
        )
    }

    /// The software GPU's configuration.
    pub fn configuration(&self) -> String {
        let Self { memory, slower, context, .. } = *self;
        let link = self.link_per_s() as u64;
        let chunk_mib = CHUNK as f64 / (1 << 20) as f64;
        format!(
            "memory = {memory}\ncontext_bytes = {context}\nlink_out = {link}\nlink_in = {link}\nduplex = true\n\
             memory_bandwidth = {}\nmap_ns_per_mib = {}\nunmap_ns = {}\npin_ns_per_mib = {}\n\
             launch_ns = 3000\ncopy_ns = 5000\n\n[[gpu]]\nname = \"Simulated GPU\"\n",
            (MEMORY_PER_S / slower) as u64,
            (MAP_NS_PER_MIB * slower) as u64,
            (UNMAP_NS_PER_MIB * slower * chunk_mib) as u64,
            (PIN_NS_PER_MIB * slower) as u64,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_shares() {
        let (coarse, fine) = (Scaled::of_16_gb(64, 64.0), Scaled::of_16_gb(256, 16.0));
        let full = |gpu: &Scaled| gpu.copy_time(gpu.memory).as_secs_f64();
        assert!((full(&coarse) - 0.7158).abs() < 1e-3);
        for gpu in [coarse, fine] {
            let phases = gpu.scale_time(18.0).as_secs_f64() / full(&gpu);
            assert!((phases - 25.1).abs() < 0.1, "18 s are {phases} copies of 16 GiB");
        }
    }
}
