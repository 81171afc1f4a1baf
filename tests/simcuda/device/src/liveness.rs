//! Whether a process that left its mark in the shared state still lives. A pid
//! alone does not say so: it may have been given to another process since, so
//! the start time is compared too.

use std::fs;

/// A process, told apart from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start: u64,
}

impl Process {
    /// The calling process.
    #[must_use]
    pub fn this() -> Process {
        let pid = std::process::id();
        let start = stat(pid).map_or(0, |(_, start)| start);
        Process { pid, start }
    }

    /// Whether it still runs. A zombie does not: its memory is gone.
    #[must_use]
    pub fn lives(self) -> bool {
        match stat(self.pid) {
            Some((state, start)) => start == self.start && !matches!(state, b'Z' | b'X' | b'x'),
            None => false,
        }
    }
}

fn stat(pid: u32) -> Option<(u8, u64)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and parentheses; what follows the last one is regular.
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(text.get(end + 2..)?).ok()?;
    let mut fields = rest.split(' ');
    let state = *fields.next()?.as_bytes().first()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_a_later_one_with_its_pid_is_another() {
        let this = Process::this();
        assert!(this.start > 0);
        assert!(this.lives());
        let other = Process { start: this.start + 1, ..this };
        assert!(!other.lives());
    }

    #[test]
    fn a_zombie_is_dead() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        while stat(pid).is_some_and(|(state, _)| state != b'Z') {
            std::thread::yield_now();
        }
        let (_, start) = stat(pid).unwrap();
        assert!(!Process { pid, start }.lives());
        child.wait().unwrap();
    }
}
