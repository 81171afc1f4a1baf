//! The dynamic symbols that a 64-bit ELF library exports. Pure: bytes in, names out.

/// What is wrong with the file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ElfError {
    /// Not what can be read here.
    #[error("not a 64-bit little-endian ELF file")]
    NotElf64,
    /// An offset or size points outside the file.
    #[error("the file ends before its {0}")]
    Short(&'static str),
    /// No section with dynamic symbols.
    #[error("the file has no dynamic symbols")]
    NoSymbols,
}

const SHT_DYNSYM: u32 = 11;

/// Names of the functions that the library defines and exports, sorted.
pub(crate) fn exported_functions(file: &[u8]) -> Result<Vec<String>, ElfError> {
    if file.len() < 64 || file[..6] != *b"\x7fELF\x02\x01" {
        return Err(ElfError::NotElf64);
    }
    let sections = number(file, 0x28, 8, "header")?;
    let size = number(file, 0x3A, 2, "header")?;
    let count = number(file, 0x3C, 2, "header")?;
    let section = |index: u64, offset: u64, bytes: usize| {
        number(file, sections.saturating_add(index * size + offset), bytes, "section table")
    };
    for index in 0..count {
        if section(index, 4, 4)? as u32 != SHT_DYNSYM {
            continue;
        }
        let symbols = (section(index, 0x18, 8)?, section(index, 0x20, 8)?);
        let strings = section(section(index, 0x28, 4)?.min(count), 0x18, 8)?;
        let mut names = Vec::new();
        for at in (symbols.0..symbols.0.saturating_add(symbols.1)).step_by(24) {
            let kind = number(file, at.saturating_add(4), 1, "symbols")? as u8;
            let defined = number(file, at.saturating_add(6), 2, "symbols")? != 0;
            let (function, global) =
                (kind & 15 == 2 || kind & 15 == 10, kind >> 4 == 1 || kind >> 4 == 2);
            if function && global && defined {
                names.push(name(file, strings.saturating_add(number(file, at, 4, "symbols")?))?);
            }
        }
        names.sort();
        names.dedup();
        return Ok(names);
    }
    Err(ElfError::NoSymbols)
}

fn number(file: &[u8], at: u64, bytes: usize, what: &'static str) -> Result<u64, ElfError> {
    let at = usize::try_from(at).map_err(|_| ElfError::Short(what))?;
    let end = at.checked_add(bytes).ok_or(ElfError::Short(what))?;
    let slice = file.get(at..end).ok_or(ElfError::Short(what))?;
    Ok(slice.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn name(file: &[u8], at: u64) -> Result<String, ElfError> {
    let rest =
        usize::try_from(at).ok().and_then(|at| file.get(at..)).ok_or(ElfError::Short("names"))?;
    let end = rest.iter().position(|byte| *byte == 0).ok_or(ElfError::Short("names"))?;
    Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C library of this machine.
    fn libc_file() -> Vec<u8> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let path = maps
            .lines()
            .filter_map(|l| l.split_whitespace().nth(5))
            .find(|p| p.contains("libc.so"));
        std::fs::read(path.unwrap()).unwrap()
    }

    #[test]
    fn the_c_library_exports_what_it_is_known_for() {
        let names = exported_functions(&libc_file()).unwrap();
        for name in ["malloc", "printf", "memcpy", "fork"] {
            assert!(names.iter().any(|n| n == name), "{name}");
        }
        assert!(names.len() > 1000);
        assert!(!names.iter().any(|n| n == "environ"), "data is not a function");
    }

    #[test]
    fn garbage_is_refused_without_a_panic() {
        assert_eq!(exported_functions(b""), Err(ElfError::NotElf64));
        assert_eq!(exported_functions(&[0x7f; 100]), Err(ElfError::NotElf64));
        let whole = libc_file();
        for end in [64, 100, 1000, whole.len() / 2] {
            assert!(exported_functions(&whole[..end]).is_err(), "cut at {end}");
        }
        let mut broken = whole;
        for i in (0x20..0x40).chain(0x1000..0x9000) {
            broken[i] ^= 0xA5;
        }
        let _ = exported_functions(&broken);
    }
}
