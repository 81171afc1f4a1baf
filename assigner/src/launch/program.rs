//! The program to run: where it is, and whether the interposer gets into it.
//!
//! Owns what can be seen from the file alone: the dynamic loader ignores LD_PRELOAD in programs
//! with more rights than their user, and static programs have no dynamic loader.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// Interpreters of scripts that are followed, as the kernel does.
const MAX_SCRIPTS: usize = 5;
/// The kernel reads so much of a `#!` line.
const SCRIPT_LINE: usize = 256;

/// A program that exists and may be executed.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its file.
    pub path: PathBuf,
}

/// Why a program cannot be run, or not under the interposer.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// Not there.
    #[error("program `{}` is not found in PATH; give its path, or correct PATH", .0.display())]
    NotInPath(PathBuf),
    /// Not there.
    #[error("program {} cannot be run: {source}", path.display())]
    Unusable {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No execute permission.
    #[error("program {} is not executable; chmod +x it, or give its interpreter as the program", .0.display())]
    NotExecutable(PathBuf),
    /// More rights than its user.
    #[error("program {} has {what}, and the system loads no interposer into such programs: its GPU use would not be scheduled; run a copy without these rights, or use --without-aga", path.display())]
    Privileged {
        /// Its file.
        path: PathBuf,
        /// Which rights.
        what: &'static str,
    },
    /// No dynamic loader.
    #[error("program {} is statically linked, so that no interposer can be loaded into it: its GPU use would not be scheduled; link it dynamically, or use --without-aga", .0.display())]
    Static(PathBuf),
}

impl Program {
    /// Finds a program as the shell does: by path, or in PATH.
    pub fn find(name: &OsStr) -> Result<Program, ProgramError> {
        if name.as_bytes().contains(&b'/') {
            return Program::at(PathBuf::from(name));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut refused = None;
        for folder in std::env::split_paths(&path) {
            let file = folder.join(name);
            match Program::at(file) {
                Ok(program) => return Ok(program),
                Err(ProgramError::Unusable { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| ProgramError::NotInPath(PathBuf::from(name))))
    }

    fn at(path: PathBuf) -> Result<Program, ProgramError> {
        match fs::metadata(&path) {
            Err(source) => Err(ProgramError::Unusable { path, source }),
            Ok(metadata) if metadata.is_dir() => {
                Err(ProgramError::Unusable { path, source: io::ErrorKind::IsADirectory.into() })
            }
            Ok(_) if access(&path, Access::EXEC_OK).is_err() => {
                Err(ProgramError::NotExecutable(path))
            }
            Ok(_) => Ok(Program { path }),
        }
    }

    /// Fails for a program into which the interposer cannot be loaded; follows scripts.
    pub fn check_interposable(&self) -> Result<(), ProgramError> {
        let mut path = self.path.clone();
        for _ in 0..MAX_SCRIPTS {
            let unusable = |source| ProgramError::Unusable { path: path.clone(), source };
            check_rights(&path).map_err(unusable)?.map_or(Ok(()), |what| {
                Err(ProgramError::Privileged { path: path.clone(), what })
            })?;
            // A program that may be executed but not read cannot be judged.
            let Ok(mut file) = File::open(&path) else { return Ok(()) };
            match kind(&mut file).map_err(unusable)? {
                Kind::Static => return Err(ProgramError::Static(path)),
                Kind::Dynamic | Kind::Other => return Ok(()),
                Kind::Script(interpreter) => match Program::find(&interpreter) {
                    Ok(program) => path = program.path,
                    // The kernel will say so.
                    Err(_) => return Ok(()),
                },
            }
        }
        Ok(())
    }
}

fn check_rights(path: &Path) -> io::Result<Option<&'static str>> {
    let metadata = fs::metadata(path)?;
    let mode = metadata.permissions().mode();
    let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    // The loader compares real and effective ids: a file that is setuid to its own user gives nothing.
    if mode & 0o4000 != 0 && metadata.uid() != own.0 {
        return Ok(Some("the setuid bit"));
    }
    if mode & 0o2010 == 0o2010 && metadata.gid() != own.1 {
        return Ok(Some("the setgid bit"));
    }
    let mut capabilities = [0_u8; 64];
    match rustix::fs::getxattr(path, "security.capability", &mut capabilities) {
        Ok(length) if length > 0 => Ok(Some("file capabilities")),
        _ => Ok(None),
    }
}

/// What the first bytes of a file say.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// ELF with a dynamic loader.
    Dynamic,
    /// ELF without one.
    Static,
    /// `#!`: what runs it in the end.
    Script(OsString),
    /// Something else: the kernel or the shell will know.
    Other,
}

fn kind(file: &mut File) -> io::Result<Kind> {
    let mut head = Vec::new();
    file.take(SCRIPT_LINE as u64).read_to_end(&mut head)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        return Ok(script(line).map_or(Kind::Other, Kind::Script));
    }
    if !head.starts_with(b"\x7fELF") {
        return Ok(Kind::Other);
    }
    elf(file, &head)
}

fn script(line: &[u8]) -> Option<OsString> {
    let line = line.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let interpreter = words.next()?;
    let is_env = interpreter.ends_with(b"/env");
    // `env` looks in PATH for the first word that is neither an option nor a variable.
    let through_env = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='));
    let word = match through_env.filter(|_| is_env) {
        Some(program) => program,
        None => interpreter,
    };
    Some(OsString::from_vec(word.to_vec()))
}

/// Whether an ELF file names a loader: a program header of type PT_INTERP.
fn elf(file: &mut File, head: &[u8]) -> io::Result<Kind> {
    const PT_INTERP: u64 = 3;
    let is_64 = head.get(4) == Some(&2);
    let is_little = head.get(5) == Some(&1);
    let number = |bytes: &[u8]| {
        let fold = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        if is_little { bytes.iter().rev().fold(0, fold) } else { bytes.iter().fold(0, fold) }
    };
    let field = |at: usize, length: usize| head.get(at..at + length).map(number);
    let table = match is_64 {
        true => field(32, 8).zip(field(54, 2)).zip(field(56, 2)),
        false => field(28, 4).zip(field(42, 2)).zip(field(44, 2)),
    };
    let Some(((offset, size), count)) = table else { return Ok(Kind::Other) };
    for index in 0..count {
        let mut kind = [0; 4];
        file.seek(SeekFrom::Start(offset.saturating_add(index * size)))?;
        if file.read_exact(&mut kind).is_err() {
            return Ok(Kind::Other); // cut off: the kernel will say so
        }
        if number(&kind) == PT_INTERP {
            return Ok(Kind::Dynamic);
        }
    }
    Ok(Kind::Static)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executable(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// An ELF file of one program header of this type.
    fn elf_with(header_type: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&header_type.to_le_bytes());
        bytes
    }

    #[test]
    fn programs_that_take_no_interposer_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let check =
            |path: &Path| Program::find(path.as_os_str()).and_then(|it| it.check_interposable());
        let fixed = executable(folder.path(), "static", &elf_with(1));
        let dynamic = executable(folder.path(), "dynamic", &elf_with(3));
        assert!(matches!(check(&fixed), Err(ProgramError::Static(_))));
        assert!(check(&dynamic).is_ok());
        let script = format!("#! {} -x\necho", fixed.display());
        let script = executable(folder.path(), "script", script.as_bytes());
        assert!(matches!(check(&script), Err(ProgramError::Static(path)) if path == fixed));
        let cut = executable(folder.path(), "cut", &elf_with(1)[..40]);
        assert!(check(&cut).is_ok());
    }

    #[test]
    fn rights_of_another_user_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = executable(folder.path(), "program", &elf_with(3));
        if std::os::unix::fs::chown(&path, Some(12345), Some(12345)).is_err() {
            return; // only root can make such a file
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
        let error = Program::find(path.as_os_str()).unwrap().check_interposable().unwrap_err();
        assert!(error.to_string().contains("setuid"), "{error}");
    }

    #[test]
    fn what_cannot_be_run_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        fs::write(&plain, "x").unwrap();
        let find = |path: &Path| Program::find(path.as_os_str()).unwrap_err();
        assert!(matches!(find(&plain), ProgramError::NotExecutable(_)));
        assert!(matches!(find(&folder.path().join("none")), ProgramError::Unusable { .. }));
        assert!(matches!(find(folder.path()), ProgramError::Unusable { .. }));
        assert!(matches!(find(Path::new("no-such-program-anywhere")), ProgramError::NotInPath(_)));
    }

    #[test]
    fn scripts_name_what_runs_them() {
        let word =
            |line: &str| script(line.as_bytes()).map(|word| word.to_string_lossy().into_owned());
        assert_eq!(word(" /bin/sh -e\nx"), Some("/bin/sh".into()));
        assert_eq!(word("/usr/bin/env -S A=1 python3 -u\n"), Some("python3".into()));
        assert_eq!(word("\n"), None);
    }
}
