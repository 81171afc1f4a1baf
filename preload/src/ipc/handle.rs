//! The 64 bytes that a program hands to another. Pure, but for the questions which machine this is and for a secret.
//!
//! The secret names the socket, and tells one process's handles from another's. It keeps nobody out, for `/proc/net/unix` shows the
//! names of sockets to everybody: who may have memory is decided by the user at the other end (`packet::accept`).

/// As long as the driver's.
pub(crate) const HANDLE_BYTES: usize = 64;
/// No handle of the driver's begins like this.
const MARK: [u8; 8] = *b"acb-ipc\x01";

/// Names a process's socket.
pub(super) type Token = [u8; 16];

/// An allocation of a process of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Handle {
    /// The machine, since it was started.
    pub(super) host: u64,
    pub(super) token: Token,
    /// Of no other allocation of that process, now or later.
    pub(super) number: u64,
}

impl Handle {
    pub(super) fn bytes(self) -> [u8; HANDLE_BYTES] {
        let mut bytes = [0; HANDLE_BYTES];
        bytes[..8].copy_from_slice(&MARK);
        bytes[8..16].copy_from_slice(&self.host.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.token);
        bytes[32..40].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    /// `None`: it is none of ours.
    pub(super) fn parse(bytes: &[u8; HANDLE_BYTES]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let ours = bytes[..8] == MARK && bytes[40..].iter().all(|byte| *byte == 0);
        let token = std::array::from_fn(|at| bytes[16 + at]);
        ours.then(|| Handle { host: word(8), token, number: word(32) })
    }
}

/// The abstract name of a process's socket.
pub(super) fn socket_name(token: &Token) -> Vec<u8> {
    let hex: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("acb-ipc-{hex}").into_bytes()
}

/// This machine, since it was started.
pub(super) fn host() -> u64 {
    let id = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What no other process has.
pub(super) fn secret() -> std::io::Result<Token> {
    use std::io::Read;
    let mut token = Token::default();
    std::fs::File::open("/dev/urandom")?.read_exact(&mut token)?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_read_as_it_was_written_and_others_are_not() {
        let handle = Handle { host: host(), token: secret().unwrap(), number: 4711 };
        let bytes = handle.bytes();
        assert_eq!(Handle::parse(&bytes), Some(handle));
        assert_eq!(Handle::parse(&[0; HANDLE_BYTES]), None);
        for changed in [0, 7, 40, 63] {
            let mut other = bytes;
            other[changed] ^= 1;
            assert_eq!(Handle::parse(&other), None, "byte {changed}");
        }
        assert_ne!(secret().unwrap(), handle.token);
    }
}
