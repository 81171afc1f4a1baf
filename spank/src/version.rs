//! The Slurm version that the plugin says it was built for.
//!
//! Owns: the number that Slurm compares with its own, major.minor, before it takes a plugin. It is
//! that of the headers from which the bindings were made, unless `ACB_SLURM_VERSION=MAJOR.MINOR[.MICRO]`
//! is set when the plugin is built. At load [`of_api`] corrects it to the version that is running,
//! because what the plugin uses of Slurm has been the same since 22.05.

use crate::sys::SLURM_VERSION_NUMBER;

/// The version at build time, as Slurm counts: 22.05.8 is 0x160508.
pub(crate) const BUILT_FOR: u32 = match option_env!("ACB_SLURM_VERSION") {
    Some(text) => match parse(text.as_bytes()) {
        Some(number) => number,
        None => panic!("ACB_SLURM_VERSION is not MAJOR.MINOR or MAJOR.MINOR.MICRO"),
    },
    None => SLURM_VERSION_NUMBER,
};

const fn parse(text: &[u8]) -> Option<u32> {
    let mut parts = [0_u32; 3];
    let mut part = 0;
    let mut digits = 0;
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            digit @ b'0'..=b'9' if digits < 2 => {
                parts[part] = parts[part] * 10 + (digit - b'0') as u32;
                digits += 1;
            }
            b'.' if digits > 0 && part < 2 => {
                part += 1;
                digits = 0;
            }
            _ => return None,
        }
        at += 1;
    }
    if part == 0 || digits == 0 {
        return None;
    }
    Some(parts[0] << 16 | parts[1] << 8 | parts[2])
}

/// The Slurm version with this number of libslurm's API (`slurm_api_version()`), which has grown by
/// one with every major release; `None` before 22.05, where the interface was another.
pub(crate) fn of_api(api: u32) -> Option<u32> {
    // Two releases a year since 23.11, three in two years before.
    let (year, month) = match api >> 16 {
        38 => (22, 5),
        39 => (23, 2),
        40 => (23, 11),
        major @ 41..=99 => (24 + (major - 41) / 2, if major % 2 == 1 { 5 } else { 11 }),
        _ => return None,
    };
    Some(year << 16 | month << 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read() {
        assert_eq!(parse(b"22.05.8"), Some(0x16_05_08));
        assert_eq!(parse(b"24.11"), Some(0x18_0b_00));
        for wrong in ["", "22", "22.", "22.05.", ".5", "22.05.8.1", "v22.05", "222.05"] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn api_numbers_name_releases() {
        for (api, version) in [
            (0x26_0000, 0x16_05_00),
            (0x27_0000, 0x17_02_00),
            (0x28_0000, 0x17_0b_00),
            (0x29_0000, 0x18_05_00),
            (0x2a_0000, 0x18_0b_00),
            (0x2b_0000, 0x19_05_00),
            (0x2d_0000, 0x1a_05_00),
        ] {
            assert_eq!(of_api(api), Some(version), "{api:x}");
        }
        assert_eq!(of_api(0x25_0000), None);
        assert_eq!(of_api(0), None);
    }
}
