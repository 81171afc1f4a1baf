//! Whether threads of this program want to run and do not get a processor.
//!
//! Owns: what the kernel says of them. Does not own: what follows (`watch`).
//! A program that is only slow in coming back to its GPU is not idle; on a crowded machine a thread can wait for a processor for
//! longer than counts as idle, between two calls.

use std::collections::BTreeMap;
use std::time::Duration;

/// Of a program with more threads nobody knows which matters, and to look at all would take too long.
const MOST_THREADS: usize = 64;

/// For each thread how long it has run so far; `None`: it is not known.
#[derive(Debug, Default)]
pub(super) struct Threads(BTreeMap<u32, Thread>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Thread {
    /// On a processor, or waiting for one.
    wants_to_run: bool,
    on_processor: Duration,
}

impl Threads {
    /// All but this one.
    pub(super) fn now() -> Threads {
        let own = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        let Ok(folder) = std::fs::read_dir("/proc/self/task") else { return Threads::default() };
        let numbers = folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let numbers: Vec<u32> = numbers.filter(|number| *number != own).collect();
        if numbers.len() > MOST_THREADS {
            return Threads::default();
        }
        Threads(numbers.into_iter().filter_map(|it| Some((it, Thread::read(it)?))).collect())
    }

    /// Whether one of them wants to run and has had a processor for less than half of `time`, which has passed since `then`.
    pub(super) fn is_starving(&self, then: &Threads, time: Duration) -> bool {
        self.0.iter().any(|(number, now)| {
            let before = then.0.get(number);
            let had = before.map(|before| now.on_processor.saturating_sub(before.on_processor));
            now.wants_to_run && had.is_some_and(|had| had < time / 2)
        })
    }
}

impl Thread {
    fn read(number: u32) -> Option<Thread> {
        let read = |name| std::fs::read_to_string(format!("/proc/self/task/{number}/{name}")).ok();
        Thread::parse(&read("stat")?, &read("schedstat")?)
    }

    fn parse(stat: &str, times: &str) -> Option<Thread> {
        let (_, after_name) = stat.rsplit_once(") ")?;
        let on_processor = times.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Thread {
            wants_to_run: after_name.starts_with('R'),
            on_processor: Duration::from_nanos(on_processor),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_millis(4);

    fn one(state: char, on_processor_ms: u64) -> Threads {
        let stat = format!("7 (a) R (b) {state} 1 2 3");
        let thread = Thread::parse(&stat, &format!("{} 5 6\n", on_processor_ms * 1_000_000));
        Threads(BTreeMap::from([(7, thread.expect("it is as the kernel says it"))]))
    }

    #[test]
    fn who_sleeps_or_computes_does_not_starve() {
        assert!(!one('S', 10).is_starving(&one('R', 10), TIME));
        assert!(!one('R', 13).is_starving(&one('R', 10), TIME));
        assert!(one('R', 11).is_starving(&one('R', 10), TIME));
        assert!(one('R', 10).is_starving(&one('S', 10), TIME), "it has woken up");
        assert!(!one('R', 10).is_starving(&Threads::default(), TIME), "it has only begun");
    }

    #[test]
    fn this_program_is_seen() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv());
        let threads = Threads::now();
        // Unless the tests run with so many threads that nothing is known.
        assert!(
            !threads.0.is_empty()
                || std::fs::read_dir("/proc/self/task").unwrap().count() > MOST_THREADS
        );
        drop(stop);
        let _ = thread.join();
    }
}
