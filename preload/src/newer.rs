//! A driver that is newer than the list of functions: what it exports that the interposer does not.
//!
//! Owns: reading the dynamic symbols of the driver's file, and the one warning. Does not own: what `cuGetProcAddress` answers
//! (`hooks::resolve`), by which the runtime library and most programs find functions; those pass through.

use crate::driver;
use crate::hooks::resolve::driver_version;
use crate::log::{info, warning};
use acb_cuda_abi::FUNCTIONS;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const HEADER: usize = 64;
const SECTION: usize = 64;
const SYMBOL: usize = 24;
const SHT_DYNSYM: u64 = 11;
/// Larger than the tables of any driver.
const LARGEST: u64 = 64 << 20;

/// Says once what programs that look functions up by `dlsym` will not find.
pub(crate) fn tell() {
    let version = driver_version();
    let known = FUNCTIONS.iter().map(|function| function.version).max().unwrap_or(0);
    let is_newer = version > known && version != u32::MAX;
    let Some(handle) = driver::handle().filter(|_| is_newer) else { return };
    let listed: BTreeSet<&str> = FUNCTIONS.iter().map(|function| function.symbol).collect();
    let (path, is, knows) = (&handle.path, numbered(version), numbered(known));
    let Some(exported) = exported(Path::new(path)) else {
        return info!(
            "the driver {path} is of CUDA {is}, newer than CUDA {knows}; what it exports cannot be read"
        );
    };
    let mut missing = exported.iter().filter(|name| is_of_cuda(name) && !listed.contains(&***name));
    match missing.next() {
        Some(first) => warning!(
            "the driver {path} is of CUDA {is}, and this slurm-acb knows CUDA {knows}: {} of its functions are missing here, the \
             first is {first}. A program that asks for one by dlsym does not find it: update slurm-acb",
            1 + missing.count()
        ),
        None => {
            info!("the driver {path} is of CUDA {is}, newer than CUDA {knows}, and exports no more")
        }
    }
}

/// `cuInit`, but neither `cudbg…` nor data.
fn is_of_cuda(name: &str) -> bool {
    name.strip_prefix("cu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// 12090 is 12.9.
fn numbered(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Names of the functions that a library defines and exports; `None`: that cannot be read.
fn exported(path: &Path) -> Option<BTreeSet<String>> {
    let file = File::open(path).ok()?;
    let header = read(&file, 0, HEADER as u64)?;
    if header[..6] != *b"\x7fELF\x02\x01" {
        return None;
    }
    let (at, count) = (number(&header, 0x28, 8)?, number(&header, 0x3C, 2)?);
    let sections = read(&file, at, count * SECTION as u64)?;
    let mut sections = sections.chunks_exact(SECTION);
    let all: Vec<&[u8]> = sections.by_ref().collect();
    let table = all.iter().find(|section| number(section, 4, 4) == Some(SHT_DYNSYM))?;
    let names = all.get(usize::try_from(number(table, 0x28, 4)?).ok()?)?;
    let content =
        |section: &[u8]| read(&file, number(section, 0x18, 8)?, number(section, 0x20, 8)?);
    let (symbols, names) = (content(table)?, content(names)?);
    let functions = symbols.chunks_exact(SYMBOL).filter(|symbol| {
        let (kind, binding) = (symbol[4] & 15, symbol[4] >> 4);
        let defined = number(symbol, 6, 2) != Some(0);
        (kind == 2 || kind == 10) && (binding == 1 || binding == 2) && defined
    });
    let name = |symbol: &[u8]| {
        let rest = names.get(usize::try_from(number(symbol, 0, 4)?).ok()?..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    };
    Some(functions.filter_map(name).collect())
}

fn read(file: &File, at: u64, bytes: u64) -> Option<Vec<u8>> {
    let mut content = vec![0; usize::try_from(bytes).ok().filter(|_| bytes <= LARGEST)?];
    file.read_exact_at(&mut content, at).ok()?;
    Some(content)
}

fn number(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let field = bytes.get(at..at + width)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn what_a_library_exports_is_read_from_its_file() {
        let is_libc = |path: &PathBuf| path.to_string_lossy().contains("/libc.so");
        let libc = crate::paths::loaded().into_iter().find(is_libc).expect("every program has one");
        let names = exported(&libc).unwrap();
        assert!(["malloc", "printf", "fork"].iter().all(|name| names.contains(*name)));
        assert!(!names.contains("environ"), "data is not a function");
    }

    #[test]
    fn what_is_no_library_has_none() {
        assert_eq!(exported(Path::new("/proc/self/cmdline")), None);
        assert_eq!(exported(Path::new("/nonexistent")), None);
    }

    #[test]
    fn functions_of_cuda_are_known_by_their_names() {
        assert!(is_of_cuda("cuInit") && !is_of_cuda("cudbgMain") && !is_of_cuda("_init"));
        assert_eq!(numbered(12090), "12.9");
    }
}
