//! The job's secret: 32 bytes from which the assigners of a job know each other.
//!
//! Owns that it is never printed: not by `Debug`, not by errors, not by serde, but for the one place that writes
//! the job spec. Does not make it: randomness is the caller's.

use std::fmt;

use serde::{Deserialize, Deserializer};

/// The job's key.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

/// The text is no key. It is not repeated here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key is not 64 hexadecimal digits")]
pub struct KeyError;

impl Key {
    /// A key of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Key(bytes)
    }

    /// The bytes; keep them out of logs, command lines and messages.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// From 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(KeyError);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Key(bytes))
    }

    /// As 64 hexadecimal digits; the same caution as for [`Key::expose`].
    pub fn expose_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn nibble(digit: u8) -> Result<u8, KeyError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(KeyError),
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // serde's own messages repeat what they found: they are replaced, not wrapped.
        let text =
            String::deserialize(deserializer).map_err(|_| serde::de::Error::custom(KeyError))?;
        Key::from_hex(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_and_go() {
        let key = Key::new(std::array::from_fn(|i| i as u8 * 8));
        assert_eq!(Key::from_hex(&key.expose_hex()), Ok(key.clone()));
        assert_eq!(Key::from_hex(&key.expose_hex().to_uppercase()), Ok(key.clone()));
        assert_eq!(key.expose()[31], 248);
    }

    #[test]
    fn what_is_no_key_is_not_repeated() {
        for text in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)]
        {
            assert_eq!(Key::from_hex(text), Err(KeyError), "{text}");
        }
        assert_eq!(KeyError.to_string(), "the key is not 64 hexadecimal digits");
    }

    #[test]
    fn it_is_not_printed() {
        assert_eq!(format!("{:?}", Key::new([0xab; 32])), "Key(…)");
    }
}
