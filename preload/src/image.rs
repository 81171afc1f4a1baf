//! How much memory the variables of a program's code take, as far as its image says.
//!
//! Owns: reading images: PTX and machine code (ELF). Does not own: containers of either (`container`), the account (`memory`),
//! what is done about an image that cannot be read (`hooks::module`).
//!
//! Code itself, constants and small variables are part of a context's size.
#![allow(unsafe_code)] // FFI: an image is a pointer without a length.

mod container;

use std::ffi::{CStr, c_void};

/// Variables that take less are not counted for themselves.
pub(crate) const LEAST: u64 = 1 << 20;

const ELF: u32 = u32::from_le_bytes(*b"\x7fELF");
const CONTAINER: u32 = 0xba55_ed50;
const WRAPPER: u32 = 0x4662_43b1;

/// What an image says of its variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variables {
    /// They take so many bytes; 0: none to speak of.
    Bytes(u64),
    /// It is in a form that is not known here; the driver may know it.
    Unknown,
}

/// The compute capability of the GPU that an image is for, as images have it: 90 for 9.0.
pub(crate) type Capability = u32;

/// The variables of an image in memory.
///
/// # Safety
/// `image` is NULL, or what cuModuleLoadData takes.
pub(crate) unsafe fn variables_at(
    image: *const c_void,
    gpu: impl FnOnce() -> Option<Capability>,
) -> Variables {
    if image.is_null() {
        return Variables::Bytes(0);
    }
    // SAFETY: the caller vouches for it.
    let bytes = unsafe { whole(image.cast()) };
    bytes.map_or(Variables::Unknown, |bytes| variables(bytes, gpu))
}

/// The same of an image that is all there; `gpu` is asked only where an image has to be chosen.
pub(crate) fn variables(image: &[u8], gpu: impl FnOnce() -> Option<Capability>) -> Variables {
    let bytes = match word(image, 0) {
        Some(ELF) => of_machine_code(image),
        Some(CONTAINER) => container::variables(image, gpu),
        _ => {
            let text = image.split(|byte| *byte == 0).next().unwrap_or_default();
            std::str::from_utf8(text).ok().map(of_text)
        }
    };
    match bytes {
        Some(bytes) => Variables::Bytes(if bytes >= LEAST { bytes } else { 0 }),
        None => Variables::Unknown,
    }
}

/// An image from its beginning to its end, which it says itself.
///
/// # Safety
/// `image` is what cuModuleLoadData takes.
unsafe fn whole<'a>(image: *const u8) -> Option<&'a [u8]> {
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
            let sections = u64::from(half(head, 58)?) * u64::from(half(head, 60)?);
            let table = long(head, 40)?.checked_add(sections)?;
            let head = piece(usize::try_from(table).ok()?);
            Some(piece(end_of_machine_code(head)?))
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

/// How long a file of machine code is, of which all is there to the end of the table of its sections.
fn end_of_machine_code(image: &[u8]) -> Option<usize> {
    let table = |at, entry, count| {
        let entries = u64::from(half(image, entry)?) * u64::from(half(image, count)?);
        long(image, at)?.checked_add(entries)
    };
    let content = sections(image)?.map(|section| section.end()).max().unwrap_or(0);
    let end = content.max(table(32, 54, 56)?).max(table(40, 58, 60)?);
    usize::try_from(end).ok()
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
    use Variables::Bytes;

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

    /// The GPU does not matter.
    fn read(image: &[u8]) -> Variables {
        variables(image, || None)
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
        assert_eq!(read(TEXT.as_bytes()), Bytes(expected));
        // SAFETY: a text with a zero at its end.
        assert_eq!(unsafe { variables_at(TEXT.as_ptr().cast(), || None) }, Bytes(expected));
        assert_eq!(read(b".version 6.4\n.global .u64 one;\n"), Bytes(0));
        assert_eq!(read(b""), Bytes(0));
        // SAFETY: NULL is an image like any other to a driver: a wrong one.
        assert_eq!(unsafe { variables_at(std::ptr::null(), || None) }, Bytes(0));
        assert_eq!(read(b"\xff\xfe is no text"), Variables::Unknown);
    }

    #[test]
    fn machine_code_says_what_its_variables_take() {
        let image = machine_code(5 * MIB);
        assert_eq!(read(&image), Bytes(5 * MIB));
        // SAFETY: an image that says where its tables end.
        assert_eq!(unsafe { variables_at(image.as_ptr().cast(), || None) }, Bytes(5 * MIB));
        assert_eq!(read(&machine_code(1000)), Bytes(0));
        assert_eq!(read(&image[..100]), Variables::Unknown);
    }

    #[test]
    fn the_largest_of_a_container_counts() {
        let (small, large) = (machine_code(2 * MIB), machine_code(3 * MIB));
        let image =
            container(&[(1, TEXT.as_bytes()), (2, &small), (2, &large), (8, b"(of a later kind)")]);
        assert_eq!(read(&image), Bytes(3 * MIB));
        let mut wrapper = WRAPPER.to_le_bytes().to_vec();
        wrapper.extend(1_u32.to_le_bytes());
        wrapper.extend((image.as_ptr() as u64).to_le_bytes());
        wrapper.extend([0; 8]);
        // SAFETY: a wrapper of an image that lives.
        assert_eq!(unsafe { variables_at(wrapper.as_ptr().cast(), || None) }, Bytes(3 * MIB));
        assert_eq!(read(&container(&[(1, TEXT.as_bytes())])), read(TEXT.as_bytes()));
        assert_eq!(read(&image[..200]), Variables::Unknown);
        assert_eq!(read(&container(&[(8, b"(of a later kind)")])), Variables::Unknown);
        assert_eq!(read(&container(&[])), Bytes(0));
    }
}
