//! Processes as /proc shows them.
//!
//! Owns: reading them. A pid alone names no process: pids are used again. With the start time it does.

use std::fs;

/// A process, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Process id.
    pub(crate) pid: u32,
    /// Field 22 of /proc/PID/stat, clock ticks since boot.
    pub(crate) start_time: u64,
}

impl Identity {
    /// That of a process that exists.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Process::read(pid).map(|process| process.identity)
    }
}

/// What a sweep has to know of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) identity: Identity,
    /// Parent.
    pub(crate) parent: u32,
    /// Session: the pid of the process that began it.
    pub(crate) session: u32,
    /// Real user.
    pub(crate) uid: u32,
}

impl Process {
    /// Every process of this machine that is not a zombie.
    pub(crate) fn all() -> Vec<Self> {
        fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(Self::read)
            .collect()
    }

    fn read(pid: u32) -> Option<Self> {
        // A process can give itself a name that is no text, and is not to be overlooked for that.
        let read = |file| fs::read(format!("/proc/{pid}/{file}")).ok();
        let (stat, status) = (read("stat")?, read("status")?);
        Self::parse(pid, &String::from_utf8_lossy(&stat), &String::from_utf8_lossy(&status))
    }

    fn parse(pid: u32, stat: &str, status: &str) -> Option<Self> {
        // The name stands in parentheses and may hold anything, even parentheses and blanks.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        if matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        Some(Self {
            identity: Identity { pid, start_time: fields.get(19)?.parse().ok()? },
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            uid: uid.split_whitespace().next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (a) b (c)) S 1 42 40 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3";

    #[test]
    fn names_may_hold_anything() {
        let process = Process::parse(42, STAT, "Name:\ta\nUid:\t1001\t0\t0\t0\n");
        let identity = Identity { pid: 42, start_time: 987_654 };
        assert_eq!(process, Some(Process { identity, parent: 1, session: 40, uid: 1001 }));
    }

    #[test]
    fn zombies_and_garbage_are_nobody() {
        assert_eq!(Process::parse(42, &STAT.replace(" S ", " Z "), "Uid:\t0\n"), None);
        assert_eq!(Process::parse(42, "42 (a", "Uid:\t0\n"), None);
        assert_eq!(Process::parse(42, STAT, ""), None);
    }

    #[test]
    fn a_name_that_is_no_text_hides_nobody() {
        let own = std::process::id();
        let before = Identity::of(own);
        let thread = std::fs::read_link("/proc/thread-self").unwrap();
        // The first thread's name is the process's.
        fs::write(format!("/proc/{own}/task/{own}/comm"), b"\xff\xfe").unwrap();
        assert!(thread.starts_with(own.to_string()));
        assert!(before.is_some() && Identity::of(own) == before);
    }

    #[test]
    fn this_process_is_found() {
        let own = Identity::of(std::process::id()).unwrap();
        assert!(Process::all().iter().any(|process| process.identity == own));
    }
}
