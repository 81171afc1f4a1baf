//! Containers of code ("fat binaries"): the same code for several kinds of GPU, in several forms.
//!
//! Owns: walking through one, choosing, unpacking. Does not own: reading what is in it (`image`).
//!
//! No manual describes the form. What is read here is what NVIDIA's own `fatbinary` writes (the files in
//! `tests/interposer/images` are its work), from CUDA 12 and 13: a head of 16 bytes, then entries, each with a head of its own that
//! says how long it is. Pieces are compressed as one LZ4 block or one Zstandard frame; with `--concat` several files of machine
//! code are compressed as one.

use super::{Capability, ELF, end_of_machine_code, half, long, of_machine_code, of_text, word};
use std::io::Read;

const TEXT: u16 = 1;
const MACHINE_CODE: u16 = 2;

/// Of an entry's flags.
const LZ4: u64 = 1 << 13;
const ZSTANDARD: u64 = 1 << 15;

/// More is not unpacked: no code is so large.
const MOST: u64 = 1 << 30;

struct Entry<'a> {
    kind: u16,
    capability: Capability,
    flags: u64,
    /// Bytes of the content as it is, and unpacked; 0: it is not packed.
    packed: u64,
    unpacked: u64,
    content: &'a [u8],
}

/// The bytes of the variables; `None`: nothing in it can be read.
pub(super) fn variables(image: &[u8], gpu: impl FnOnce() -> Option<Capability>) -> Option<u64> {
    let entries = entries(image)?;
    if entries.is_empty() {
        return Some(0);
    }
    // It is the same code in each: what need not be unpacked is not.
    if let Some(bytes) = largest(entries.iter().filter(|entry| !entry.is_packed())) {
        return Some(bytes);
    }
    let gpu = gpu();
    largest(entries.iter().filter(|entry| gpu.is_some_and(|gpu| entry.is_for(gpu))))
        .or_else(|| largest(entries.iter()))
}

fn largest<'a>(entries: impl Iterator<Item = &'a Entry<'a>>) -> Option<u64> {
    entries.filter_map(Entry::variables).max()
}

fn entries(image: &[u8]) -> Option<Vec<Entry<'_>>> {
    let mut at = usize::from(half(image, 6)?);
    let end = at.checked_add(usize::try_from(long(image, 8)?).ok()?)?;
    let mut entries = Vec::new();
    while at < end {
        let entry = image.get(at..end)?;
        let (head, bytes) = (word(entry, 4)? as usize, usize::try_from(long(entry, 8)?).ok()?);
        let next = head.checked_add(bytes)?;
        entries.push(Entry {
            kind: half(entry, 0)?,
            packed: word(entry, 16)?.into(),
            capability: word(entry, 28)?,
            flags: long(entry, 40)?,
            unpacked: long(entry, 56)?,
            content: entry.get(head..next)?,
        });
        at = at.checked_add(next).filter(|_| next > 0)?;
    }
    Some(entries)
}

impl Entry<'_> {
    fn is_packed(&self) -> bool {
        self.packed > 0 || self.unpacked > 0
    }

    /// Whether a driver would take it for this GPU: machine code of the same generation.
    fn is_for(&self, gpu: Capability) -> bool {
        let is_of_generation = self.capability / 10 == gpu / 10 && self.capability <= gpu;
        self.kind == MACHINE_CODE && is_of_generation
    }

    fn variables(&self) -> Option<u64> {
        let unpacked;
        let content = match self.is_packed() {
            true => {
                unpacked = self.unpack()?;
                &unpacked[..]
            }
            false => self.content,
        };
        if word(content, 0) == Some(ELF) {
            return of_files(content);
        }
        let text = content.split(|byte| *byte == 0).next()?;
        (self.kind == TEXT && text.is_ascii())
            .then(|| std::str::from_utf8(text).ok().map(of_text))
            .flatten()
    }

    fn unpack(&self) -> Option<Vec<u8>> {
        let packed = self.content.get(..usize::try_from(self.packed).ok()?)?;
        let bytes = usize::try_from(self.unpacked).ok().filter(|_| self.unpacked <= MOST)?;
        let content = match self.flags & (LZ4 | ZSTANDARD) {
            LZ4 => lz4_flex::block::decompress(packed, bytes).ok()?,
            ZSTANDARD => {
                let mut content = Vec::with_capacity(bytes);
                let frame = ruzstd::decoding::StreamingDecoder::new(packed).ok()?;
                frame.take(MOST).read_to_end(&mut content).ok()?;
                content
            }
            _ => return None,
        };
        (content.len() == bytes).then_some(content)
    }
}

/// Files of machine code, one behind the other, for several kinds of GPU.
fn of_files(mut content: &[u8]) -> Option<u64> {
    let mut most = 0;
    while content.iter().any(|byte| *byte != 0) {
        if word(content, 0) != Some(ELF) {
            return None;
        }
        most = most.max(of_machine_code(content)?);
        content = content.get(end_of_machine_code(content)?..)?;
    }
    Some(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    macro_rules! image {
        ($name:literal) => {
            include_bytes!(concat!("../../tests/interposer/images/", $name, ".fatbin"))
        };
    }

    #[test]
    fn what_nvidias_tools_have_packed_is_read() {
        let zstandard: &[u8] = image!("zstandard");
        // 3 MiB for 8.0, 5 MiB for 9.0, where its text (for 7.5) has 7.
        for image in [zstandard, image!("lz4"), image!("concatenated")] {
            assert_eq!(variables(image, || None), Some(7 * MIB));
        }
        for image in [zstandard, image!("lz4")] {
            assert_eq!(variables(image, || Some(80)), Some(3 * MIB));
            assert_eq!(variables(image, || Some(89)), Some(3 * MIB));
            assert_eq!(variables(image, || Some(90)), Some(5 * MIB));
            // Nothing but the text is for it.
            assert_eq!(variables(image, || Some(75)), Some(7 * MIB));
        }
    }

    #[test]
    fn what_is_packed_in_another_way_is_not_guessed() {
        let image: &[u8] = image!("zstandard");
        let mut later = image.to_vec();
        let mut at = 16;
        while at < later.len() {
            let next =
                at + word(image, at + 4).unwrap() as usize + word(image, at + 8).unwrap() as usize;
            later[at + 41] = 0x40;
            at = next;
        }
        assert_eq!(variables(&later, || None), None);
        // Every way to be cut short or spoilt is either seen or harmless.
        for at in 0..image.len() {
            let _ = variables(&image[..at], || None);
            let mut spoilt = image.to_vec();
            spoilt[at] ^= 0x55;
            let _ = variables(&spoilt, || None);
        }
    }
}
