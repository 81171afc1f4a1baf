//! Amounts of memory as people write them: `10G`, `512M`, or plain MiB, as Slurm's own `--mem` has it.
//!
//! Owns the grammar, and how values that have one stand in files. Units are binary: a `G` is 1024 `M`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// What may be written, for messages.
pub const SIZE_GRAMMAR: &str =
    "an amount of memory like 10G, 512M, 1.5T or 4096K; without a unit it is MiB";

/// The units, the largest first.
const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// A text that is no amount of memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not {SIZE_GRAMMAR}")]
pub struct NoSize;

impl ByteSize {
    /// So many bytes; `None` for none at all.
    pub fn new(bytes: u64) -> Option<Self> {
        (bytes > 0).then_some(ByteSize(bytes))
    }

    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = NoSize;

    fn from_str(text: &str) -> Result<Self, NoSize> {
        let unit = |c: char| {
            UNITS.iter().find(|(name, _)| *name == c.to_ascii_uppercase()).map(|(_, shift)| *shift)
        };
        let (amount, shift) = match text.chars().last().and_then(unit) {
            Some(shift) => (&text[..text.len() - 1], shift),
            None => (text, 20),
        };
        let (whole, fraction) = amount.split_once('.').unwrap_or((amount, "0"));
        let digits = |part: &str| {
            !part.is_empty() && part.len() <= 15 && part.bytes().all(|b| b.is_ascii_digit())
        };
        if !digits(whole) || !digits(fraction) {
            return Err(NoSize);
        }
        let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| NoSize)?);
        let number = |part: &str| part.parse::<u128>().map_err(|_| NoSize);
        let scaled = (number(whole)? * scale + number(fraction)?) << shift;
        u64::try_from(scaled / scale).ok().and_then(ByteSize::new).ok_or(NoSize)
    }
}

/// The shortest form that means the same again.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, shift): &&(char, u32)| self.0.is_multiple_of(1 << shift);
        match UNITS.iter().find(fits) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            // No unit is finer than KiB: said as a fraction of one, exactly.
            None => {
                let fraction = format!("{:010}", (self.0 % 1024) * 9_765_625);
                write!(f, "{}.{}K", self.0 / 1024, fraction.trim_end_matches('0'))
            }
        }
    }
}

/// In files such a value is its text: as it is shown, and as it is parsed.
macro_rules! as_text {
    ($kind:ty) => {
        impl serde::Serialize for $kind {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $kind {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use as_text;

as_text!(ByteSize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary_and_plain_numbers_are_mib() {
        for (text, bytes) in [
            ("10G", 10 << 30),
            ("10g", 10 << 30),
            ("512M", 512 << 20),
            ("512", 512 << 20),
            ("1.5G", 3 << 29),
            ("4K", 4096),
            ("2T", 2 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "G",
            "-1G",
            "1GB",
            "0",
            "0.0G",
            "1..5G",
            "1e3",
            " 1G",
            "99999999999T",
            "1_0",
            "½G",
            "1µ",
        ] {
            assert_eq!(text.parse::<ByteSize>(), Err(NoSize), "{text}");
        }
    }

    #[test]
    fn what_is_shown_means_the_same_again() {
        for bytes in [1, 1023, 1024, 1536, 3 << 29, (10 << 30) + 1, u64::MAX >> 12] {
            let size = ByteSize(bytes);
            assert_eq!(size.to_string().parse(), Ok(size), "{size}");
        }
        assert_eq!(ByteSize(10 << 30).to_string(), "10G");
        assert_eq!(ByteSize(3 << 29).to_string(), "1536M");
    }
}
