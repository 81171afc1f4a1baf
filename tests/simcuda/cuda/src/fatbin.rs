//! Containers of code for several kinds of GPU ("fat binaries"): the PTX in them, which is all that could run here.
//!
//! What NVIDIA's `fatbinary` writes is taken, packed or not; and one form that nothing but the software GPU knows, to stand for
//! those of later drivers.

use std::io::Read;

use crate::code::{INVALID_IMAGE, NO_BINARY_FOR_GPU, Outcome};

pub(crate) const MARK: u32 = 0xba55_ed50;
/// A head and a pointer to a container.
pub(crate) const WRAPPER: u32 = 0x4662_43b1;

/// How the flags of an entry say that it is packed.
const LZ4: u64 = 1 << 13;
const ZSTANDARD: u64 = 1 << 15;
/// Of the software GPU alone: each byte turned round.
const LATER: u64 = 1 << 40;

/// The first PTX of a container.
pub(crate) fn text(container: &[u8]) -> Outcome<String> {
    let (mut at, end) = (number(container, 6, 2)?, length(container)?);
    while at < end {
        let (kind, head) = (number(container, at, 2)?, number(container, at + 4, 4)?);
        let next = at + head + number(container, at + 8, 8)?;
        if head == 0 || next > end {
            return Err(INVALID_IMAGE);
        }
        if kind == 1 {
            let packed = number(container, at + 16, 4)?;
            let flags = number(container, at + 40, 8)? as u64;
            let unpacked = number(container, at + 56, 8)?;
            let content = &container[at + head..next];
            let content = match flags & (LZ4 | ZSTANDARD | LATER) {
                0 => content.to_vec(),
                flags => {
                    let content = content.get(..packed).ok_or(INVALID_IMAGE)?;
                    unpack(flags, content, unpacked)?
                }
            };
            let text = content.split(|&byte| byte == 0).next().unwrap_or_default();
            return String::from_utf8(text.to_vec()).map_err(|_| INVALID_IMAGE);
        }
        at = next;
    }
    // Machine code: nothing here could run it.
    Err(NO_BINARY_FOR_GPU)
}

/// Bytes of a container, of which 16 are there.
pub(crate) fn length(container: &[u8]) -> Outcome<usize> {
    Ok(number(container, 6, 2)? + number(container, 8, 8)?)
}

fn unpack(flags: u64, content: &[u8], bytes: usize) -> Outcome<Vec<u8>> {
    let mut unpacked = Vec::new();
    match flags {
        LZ4 => {
            unpacked = lz4_flex::block::decompress(content, bytes).map_err(|_| INVALID_IMAGE)?;
        }
        ZSTANDARD => {
            ruzstd::decoding::StreamingDecoder::new(content)
                .map_err(|_| INVALID_IMAGE)?
                .read_to_end(&mut unpacked)
                .map_err(|_| INVALID_IMAGE)?;
        }
        LATER => unpacked.extend(content.iter().map(|byte| !byte)),
        _ => return Err(INVALID_IMAGE),
    }
    if unpacked.len() == bytes { Ok(unpacked) } else { Err(INVALID_IMAGE) }
}

fn number(bytes: &[u8], at: usize, length: usize) -> Outcome<usize> {
    let mut number = [0; 8];
    let bytes = bytes.get(at..at + length).ok_or(INVALID_IMAGE)?;
    number[..length].copy_from_slice(bytes);
    usize::try_from(u64::from_le_bytes(number)).map_err(|_| INVALID_IMAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nvidias_tools_have_packed_is_taken() {
        for image in [
            &include_bytes!("../../../../preload/tests/interposer/images/lz4.fatbin")[..],
            include_bytes!("../../../../preload/tests/interposer/images/zstandard.fatbin"),
            include_bytes!("../../../../preload/tests/interposer/images/concatenated.fatbin"),
        ] {
            assert!(text(image).unwrap().contains(".entry acb_nop()"));
            assert_eq!(length(image), Ok(image.len()));
        }
        assert_eq!(text(b"short"), Err(INVALID_IMAGE));
        assert_eq!(
            text(&[0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Err(NO_BINARY_FOR_GPU)
        );
    }
}
