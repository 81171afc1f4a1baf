//! How much memory the variables of a program's code take, as far as its image says.
//!
//! Owns: reading images: PTX, machine code (ELF), and containers of either. Does not own: the account (`memory`).
//!
//! What is compressed in a container is not read. Code itself, constants and small variables are part of a context's size.
#![allow(unsafe_code)] // FFI: an image is a pointer without a length.

use std::ffi::{CStr, c_void};

/// Variables that take less are not counted for themselves.
const LEAST: u64 = 1 << 20;

const ELF: u32 = u32::from_le_bytes(*b"\x7fELF");
const CONTAINER: u32 = 0xba55_ed50;
const WRAPPER: u32 = 0x4662_43b1;

/// Bytes of the variables of an image in memory; 0: not many, or it does not say.
///
/// # Safety
/// `image` is NULL, or what cuModuleLoadData takes.
pub(crate) unsafe fn variables_at(image: *const c_void) -> u64 {
    // SAFETY: the caller vouches for it.
    let bytes = unsafe { whole(image.cast()) };
    bytes.map_or(0, variables)
}

/// The same of an image that is all there.
pub(crate) fn variables(image: &[u8]) -> u64 {
    let bytes = match word(image, 0) {
        Some(ELF) => of_machine_code(image),
        Some(CONTAINER) => of_container(image),
        _ => {
            let text = image.split(|byte| *byte == 0).next().unwrap_or_default();
            std::str::from_utf8(text).ok().map(of_text)
        }
    };
    bytes.filter(|bytes| *bytes >= LEAST).unwrap_or(0)
}

/// An image from its beginning to its end, which it says itself.
///
/// # Safety
/// As above.
unsafe fn whole<'a>(image: *const u8) -> Option<&'a [u8]> {
    if image.is_null() {
        return None;
    }
    let mut head = [0; 4];
    for (at, byte) in head.iter_mut().enumerate() {
        // SAFETY: a text ends with a zero, anything else is longer.
        *byte = unsafe { image.add(at).read() };
        if *byte == 0 {
            break;
        }
    }
    // SAFETY: this many bytes are there where the image says so; each is read only behind a head that does.
    let piece = |bytes: usize| unsafe { std::slice::from_raw_parts(image, bytes) };
    match u32::from_le_bytes(head) {
        ELF => {
            let head = piece(64);
            let table = long(head, 40)? + u64::from(half(head, 58)?) * u64::from(half(head, 60)?);
            let head = piece(usize::try_from(table).ok()?);
            let end = sections(head)?.map(|section| section.end()).max().unwrap_or(0);
            Some(piece(usize::try_from(end.max(table)).ok()?))
        }
        CONTAINER => {
            let head = piece(16);
            let bytes = u64::from(half(head, 6)?).checked_add(long(head, 8)?)?;
            Some(piece(usize::try_from(bytes).ok()?))
        }
        WRAPPER => {
            let inner = long(piece(24), 8)? as *const u8;
            // SAFETY: a wrapper's pointer is to a container.
            (!inner.is_null()
                && word(unsafe { std::slice::from_raw_parts(inner, 4) }, 0)? == CONTAINER)
                // SAFETY: as above.
                .then(|| unsafe { whole(inner) })
                .flatten()
        }
        // SAFETY: everything else is a text, which ends with a zero.
        _ => Some(unsafe { CStr::from_ptr(image.cast()) }.to_bytes()),
    }
}

/// A section of an ELF file.
struct Section {
    name: u32,
    has_content: bool,
    offset: u64,
    bytes: u64,
}

impl Section {
    fn end(&self) -> u64 {
        if self.has_content { self.offset.saturating_add(self.bytes) } else { 0 }
    }
}

/// The sections of an image that is there as far as to the end of their table.
fn sections(image: &[u8]) -> Option<impl Iterator<Item = Section> + '_> {
    const WITHOUT_CONTENT: u32 = 8;
    let table = usize::try_from(long(image, 40)?).ok()?;
    let (size, count) = (half(image, 58)? as usize, half(image, 60)? as usize);
    Some((0..count).filter_map(move |at| {
        let entry = image.get(table.checked_add(at * size)?..)?;
        Some(Section {
            name: word(entry, 0)?,
            has_content: word(entry, 4)? != WITHOUT_CONTENT,
            offset: long(entry, 24)?,
            bytes: long(entry, 32)?,
        })
    }))
}

/// Machine code keeps its variables in `.nv.global`, those with a value in `.nv.global.init`.
fn of_machine_code(image: &[u8]) -> Option<u64> {
    let names = sections(image)?.nth(half(image, 62)? as usize)?;
    let names =
        image.get(usize::try_from(names.offset).ok()?..usize::try_from(names.end()).ok()?)?;
    let mut all = 0_u64;
    for section in sections(image)? {
        let name = names.get(section.name as usize..)?.split(|byte| *byte == 0).next()?;
        if name.starts_with(b".nv.global") {
            all = all.saturating_add(section.bytes);
        }
    }
    Some(all)
}

/// A container has the same code for several kinds of GPU: the largest counts.
fn of_container(image: &[u8]) -> Option<u64> {
    const TEXT: u16 = 1;
    let end = usize::from(half(image, 6)?).checked_add(usize::try_from(long(image, 8)?).ok()?)?;
    let mut at = usize::from(half(image, 6)?);
    let mut most = 0;
    while at < end {
        let entry = image.get(at..)?;
        let (kind, head) = (half(entry, 0)?, word(entry, 4)? as usize);
        let bytes = usize::try_from(long(entry, 8)?).ok()?;
        let content = entry.get(head..head.checked_add(bytes)?)?;
        if word(content, 0) == Some(ELF) {
            most = most.max(of_machine_code(content)?);
        } else if kind == TEXT
            && let Some(text) = content.split(|byte| *byte == 0).next()
            && text.is_ascii()
        {
            most = most.max(std::str::from_utf8(text).map_or(0, of_text));
        }
        at = at.checked_add(head)?.checked_add(bytes)?;
        if head + bytes == 0 {
            return None;
        }
    }
    Some(most)
}

/// Declarations such as `.global .align 4 .b8 table[12][3] = …;` outside of all functions.
fn of_text(text: &str) -> u64 {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    let mut depth = 0_u32;
    let mut all = 0_u64;
    let mut from = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            // The values that a variable begins with, or a function.
            b'{' => {
                if depth == 0 && text[from..at].contains('=') {
                    all = all.saturating_add(declared(&text[from..at]).unwrap_or(0));
                }
                depth += 1;
            }
            b'}' => depth = depth.saturating_sub(1),
            b';' if depth == 0 => {
                all = all.saturating_add(declared(&text[from..at]).unwrap_or(0));
            }
            _ => continue,
        }
        from = at + 1;
    }
    all
}

fn declared(statement: &str) -> Option<u64> {
    let start = statement.rfind(".global")?;
    let declaration = statement[start..].split('=').next()?;
    let element = declaration.split_whitespace().find_map(|word| match word {
        ".b8" | ".u8" | ".s8" => Some(1),
        ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => Some(2),
        ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" => Some(4),
        ".b64" | ".u64" | ".s64" | ".f64" => Some(8),
        ".b128" => Some(16),
        _ => None,
    })?;
    declaration.split('[').skip(1).try_fold(element, |bytes: u64, part| {
        let count: u64 = part.split(']').next()?.trim().parse().ok()?;
        Some(bytes.saturating_mul(count))
    })
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const TEXT: &str = ".version 6.4\n.target sm_52\n// .global .b8 none[9000000];\n.visible .global .align 8 .b64 a[131072];\n\
        .global .f32 b[2][1024] = {1.0, 2.0};\n.global .u64 one;\n.const .b8 c[65536];\n\
        .entry k() { .shared .b8 s[9000000]; ld.global.u64 %r, [a]; ret; }\n\0";

    /// An ELF file with one section of variables that has no content.
    fn machine_code(variables: u64) -> Vec<u8> {
        let names = b"\0.shstrtab\0.nv.global\0";
        let mut image = vec![0; 64 + names.len()];
        image[..4].copy_from_slice(b"\x7fELF");
        image[64..].copy_from_slice(names);
        let table = image.len() as u64;
        image[40..48].copy_from_slice(&table.to_le_bytes());
        for (at, number) in [(58, 64_u16), (60, 3), (62, 1)] {
            image[at..at + 2].copy_from_slice(&number.to_le_bytes());
        }
        let sections =
            [(0, 0, 0, 0), (1, 3_u32, 64_u64, names.len() as u64), (11, 8, 64, variables)];
        for (name, kind, offset, bytes) in sections {
            let mut entry = [0; 64];
            entry[..4].copy_from_slice(&u32::to_le_bytes(name));
            entry[4..8].copy_from_slice(&kind.to_le_bytes());
            entry[24..32].copy_from_slice(&offset.to_le_bytes());
            entry[32..40].copy_from_slice(&bytes.to_le_bytes());
            image.extend(entry);
        }
        image
    }

    fn container(entries: &[(u16, &[u8])]) -> Vec<u8> {
        let mut files = Vec::new();
        for (kind, content) in entries {
            let mut head = [0; 64];
            head[..2].copy_from_slice(&kind.to_le_bytes());
            head[4..8].copy_from_slice(&64_u32.to_le_bytes());
            head[8..16].copy_from_slice(&(content.len() as u64).to_le_bytes());
            files.extend(head);
            files.extend(*content);
        }
        let mut image = CONTAINER.to_le_bytes().to_vec();
        image.extend([1, 0, 16, 0]);
        image.extend((files.len() as u64).to_le_bytes());
        image.extend(files);
        image
    }

    #[test]
    fn declarations_of_a_text_are_added_up() {
        let expected = 131_072 * 8 + 2 * 1024 * 4 + 8;
        assert_eq!(variables(TEXT.as_bytes()), expected);
        // SAFETY: a text with a zero at its end.
        assert_eq!(unsafe { variables_at(TEXT.as_ptr().cast()) }, expected);
        assert_eq!(variables(b".version 6.4\n.global .u64 one;\n"), 0);
        assert_eq!(variables(b""), 0);
    }

    #[test]
    fn machine_code_says_what_its_variables_take() {
        let image = machine_code(5 * MIB);
        assert_eq!(variables(&image), 5 * MIB);
        // SAFETY: an image that says where its tables end.
        assert_eq!(unsafe { variables_at(image.as_ptr().cast()) }, 5 * MIB);
        assert_eq!(variables(&machine_code(1000)), 0);
        assert_eq!(variables(&image[..100]), 0);
    }

    #[test]
    fn the_largest_of_a_container_counts() {
        let (small, large) = (machine_code(2 * MIB), machine_code(3 * MIB));
        let image =
            container(&[(1, TEXT.as_bytes()), (2, &small), (2, &large), (2, b"(compressed)")]);
        assert_eq!(variables(&image), 3 * MIB);
        let mut wrapper = WRAPPER.to_le_bytes().to_vec();
        wrapper.extend(1_u32.to_le_bytes());
        wrapper.extend((image.as_ptr() as u64).to_le_bytes());
        wrapper.extend([0; 8]);
        // SAFETY: a wrapper of an image that lives.
        assert_eq!(unsafe { variables_at(wrapper.as_ptr().cast()) }, 3 * MIB);
        assert_eq!(variables(&container(&[(1, TEXT.as_bytes())])), variables(TEXT.as_bytes()));
        assert_eq!(variables(&image[..200]), 0);
    }
}
