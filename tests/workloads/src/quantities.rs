//! Lengths of time and numbers of bytes, as people give them to the workloads.
//!
//! Owns: reading them.

use std::time::Duration;

/// A length of time in seconds.
pub fn seconds(text: &str) -> Result<Duration, String> {
    number(text)
        .and_then(|value| Duration::try_from_secs_f64(value).map_err(|error| error.to_string()))
}

/// A length of time in milliseconds.
pub fn milliseconds(text: &str) -> Result<Duration, String> {
    number(text).and_then(|value| {
        Duration::try_from_secs_f64(value / 1e3).map_err(|error| error.to_string())
    })
}

fn number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "a number is wanted".into())
}

/// A number of bytes; K, M, G for powers of 1024.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let count: u64 = digits
        .parse()
        .map_err(|_| "a number of bytes is wanted, such as 512, 64K, 8M or 2G".to_owned())?;
    count.checked_mul(1 << shift).ok_or_else(|| "too many bytes".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_suffixes() {
        assert_eq!(bytes("512"), Ok(512));
        assert_eq!(bytes("2G"), Ok(2 << 30));
        assert!(bytes("20000000000G").is_err());
        assert!(bytes("eight").is_err());
        assert!(bytes("").is_err());
    }

    #[test]
    fn lengths_are_not_negative() {
        assert_eq!(milliseconds("4.5"), Ok(Duration::from_micros(4500)));
        assert!(milliseconds("-1").is_err());
        assert!(seconds("nan").is_err());
    }
}
