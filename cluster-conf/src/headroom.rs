//! GPU memory that is kept free for what drivers take unasked: `512M`, `1%`, `0` or `auto`.
//!
//! Owns the grammar, and what it means for a GPU.

use std::fmt;
use std::str::FromStr;

use crate::size::{ByteSize, as_text};
use crate::values::Part;

/// What may be written, for messages.
pub const HEADROOM_GRAMMAR: &str =
    "an amount of memory like 512M, a part of the GPU from 0.1% to 50%, 0, or auto";

/// The most that is kept free where nobody says how much.
const MOST: u64 = 512 << 20;
/// GPUs below that are none that anybody sells, nor slices of such.
const REAL: u64 = 4 << 30;
/// What drivers map memory in.
const PAGE: u64 = 2 << 20;

/// What of each GPU is promised to nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Headroom {
    /// A hundredth, 512 MiB at most; none of GPUs below 4 GiB.
    #[default]
    Auto,
    /// None.
    None,
    /// So much.
    Size(ByteSize),
    /// Such a part.
    Share(Part),
}

/// A text that is no headroom.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not {HEADROOM_GRAMMAR}")]
pub struct NoHeadroom;

impl Headroom {
    /// Bytes of a GPU with so much memory.
    pub fn of(self, memory: u64) -> u64 {
        match self {
            Headroom::Auto if memory < REAL => 0,
            Headroom::Auto => (memory / 100).min(MOST) / PAGE * PAGE,
            Headroom::None => 0,
            Headroom::Size(size) => size.bytes(),
            Headroom::Share(part) => (memory as f64 * part.value()) as u64,
        }
    }
}

impl FromStr for Headroom {
    type Err = NoHeadroom;

    fn from_str(text: &str) -> Result<Self, NoHeadroom> {
        if let Some(percent) = text.strip_suffix('%') {
            let is_plain = percent.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            let percent: f64 = percent.parse().map_err(|_| NoHeadroom)?;
            let part = Part::new(percent / 100.0).filter(|part| is_plain && part.value() <= 0.5);
            return part.map(Headroom::Share).ok_or(NoHeadroom);
        }
        match text {
            "auto" => Ok(Headroom::Auto),
            "0" => Ok(Headroom::None),
            _ => text.parse().map(Headroom::Size).map_err(|_| NoHeadroom),
        }
    }
}

impl fmt::Display for Headroom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Headroom::Auto => f.write_str("auto"),
            Headroom::None => f.write_str("0"),
            Headroom::Size(size) => size.fmt(f),
            // As exact as a part is.
            Headroom::Share(part) => {
                let percent = format!("{:.4}", part.value() * 100.0);
                write!(f, "{}%", percent.trim_end_matches('0').trim_end_matches('.'))
            }
        }
    }
}

as_text!(Headroom);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_kept_free() {
        let of = |text: &str, memory| text.parse::<Headroom>().map(|it| it.of(memory));
        assert_eq!(of("auto", 80 << 30), Ok(512 << 20));
        assert_eq!(of("auto", 5 << 30), Ok(50 << 20));
        assert_eq!(of("auto", 2 << 30), Ok(0), "a model of a GPU");
        assert_eq!(of("2.5%", 1000), Ok(25));
        assert_eq!(of("3G", 80 << 30), Ok(3 << 30));
        assert_eq!(of("0", 80 << 30), Ok(0));
        for wrong in ["", "%", "-1%", "51%", "0.01%", "1e1%", "none", "-1", "inf%"] {
            assert_eq!(wrong.parse::<Headroom>(), Err(NoHeadroom), "{wrong}");
        }
    }

    #[test]
    fn the_shown_form_means_the_same() {
        for text in ["auto", "0", "512M", "1%", "0.1%", "12.3456%"] {
            assert_eq!(text.parse::<Headroom>().unwrap().to_string(), text);
        }
    }
}
