//! Names by which a GPU is known: UUID and PCI address, the same in every
//! process that uses the same state.

/// The 16 bytes of a GPU's UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// The UUID of GPU `index` of the state called `state`.
    #[must_use]
    pub fn of(state: &str, index: usize) -> Uuid {
        let mut bytes = [0; 16];
        let seed = fnv(state.as_bytes(), 0xcbf2_9ce4_8422_2325);
        bytes[..8].copy_from_slice(&fnv(&index.to_le_bytes(), seed).to_be_bytes());
        bytes[8..].copy_from_slice(&fnv(b"simcuda", fnv(&index.to_be_bytes(), seed)).to_be_bytes());
        // Version 5, variant 1: a name-based UUID, as RFC 9562 writes it.
        bytes[6] = 0x50 | bytes[6] & 0x0f;
        bytes[8] = 0x80 | bytes[8] & 0x3f;
        Uuid(bytes)
    }
}

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GPU-")?;
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// The PCI bus number of GPU `index`; domain and device are 0.
#[must_use]
pub fn pci_bus(index: usize) -> u32 {
    0x10 + index as u32
}

/// FNV-1a, 64 bits: small, and the same for ever.
#[must_use]
pub fn fnv(bytes: &[u8], seed: u64) -> u64 {
    bytes.iter().fold(seed, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_stable_and_differ() {
        assert_eq!(Uuid::of("a", 0), Uuid::of("a", 0));
        assert_ne!(Uuid::of("a", 0), Uuid::of("a", 1));
        assert_ne!(Uuid::of("a", 0), Uuid::of("b", 0));
        let text = Uuid::of("a", 0).to_string();
        assert_eq!(text.len(), 40);
        assert!(text.starts_with("GPU-"));
    }
}
