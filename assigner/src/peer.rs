//! Whose is the other end of a TCP connection, when it is on this node.
//!
//! Owns the look into `/proc/net/tcp` and `/proc/net/tcp6`. The kernel lists both ends of a
//! connection within a node; the peer's end has our address as its remote one.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A process of this user on this node.
    User(u32),
    /// Another node, or another network namespace.
    Elsewhere,
}

/// The origin of the connection between `local` (ours) and `peer`.
pub fn origin(local: SocketAddr, peer: SocketAddr) -> Origin {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .find_map(|table| owner(&table, peer, local))
        .map_or(Origin::Elsewhere, Origin::User)
}

/// The user of the socket that goes from `from` to `to`.
fn owner(table: &str, from: SocketAddr, to: SocketAddr) -> Option<u32> {
    let wanted = (canonical(from), canonical(to));
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = address(fields.nth(1)?)?;
        let remote = address(fields.next()?)?;
        let uid = fields.nth(4)?.parse().ok()?;
        ((local, remote) == wanted).then_some(uid)
    })
}

fn canonical(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

/// `0100007F:2BE2`: words in the machine's order, digits of each in network order of that word.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (digits, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word =
        |at: usize| u32::from_str_radix(digits.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match digits.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some((ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_table_of_the_kernel_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:2BE2 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n   \
            1: 0100007F:C350 0100007F:2BE2 01 00000000:00000000 00:00000000 00000000  1007        0 2 1\n";
        let local: SocketAddr = "127.0.0.1:11234".parse().unwrap();
        assert_eq!(owner(table, "127.0.0.1:50000".parse().unwrap(), local), Some(1007));
        assert_eq!(owner(table, "127.0.0.1:50001".parse().unwrap(), local), None);
    }

    #[test]
    fn both_families_are_understood() {
        let mapped = address("0000000000000000FFFF00000100007F:0050").unwrap();
        assert_eq!(mapped, ("127.0.0.1".parse().unwrap(), 80));
        let v6 = address("00000000000000000000000001000000:0051").unwrap();
        assert_eq!(v6, ("::1".parse().unwrap(), 81));
        assert_eq!(address("xyz"), None);
    }

    #[test]
    fn a_connection_of_this_process_is_its_users() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(origin(accepted.local_addr().unwrap(), peer), Origin::User(own));
        drop(stream);
    }
}
