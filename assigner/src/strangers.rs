//! Processes that use a GPU of this assigner's past it: they have opened the driver by a path, or go on without scheduling.
//!
//! The interposer tells such a program itself, but one that never comes to it, and is killed or runs for days, tells nobody. NVML
//! knows it.
//!
//! Owns: looking now and then, and who has been told of. Does not own: NVML ([`crate::meter`]), who is a client
//! ([`crate::broker`]).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use acb_core::Gpu;
use tokio::time::MissedTickBehavior;

use crate::broker::{Broker, size};
use crate::launch::environment::interposer_folder;
use crate::meter::{Meter, User};
use crate::process::{ProcessId, name_of, parent_of, uid_of};

/// Each look costs a call of NVML for each GPU.
const PAUSE: Duration = Duration::from_secs(5);

/// Looks for as long as the worker lives.
pub async fn watch(broker: Rc<RefCell<Broker>>) {
    let mut known = Known::default();
    let mut clock = tokio::time::interval(PAUSE);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let (meter, gpus) = broker.borrow().gpus_to_watch();
        let look = move || (users(&meter, &gpus), in_use(&meter, &gpus));
        let (seen, used) = tokio::task::spawn_blocking(look).await.unwrap_or_default();
        for (gpu, used) in used {
            // What programs outside have grown by comes out of the headroom.
            broker.borrow_mut().in_use(gpu, Some(used));
        }
        // Asked after NVML: who has joined meanwhile is no stranger.
        let clients = broker.borrow().processes();
        for stranger in known.news(seen, &clients) {
            tell(&stranger);
        }
    }
}

/// A process that uses a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stranger {
    process: ProcessId,
    /// Those from which it comes, the nearest first.
    ancestors: Vec<u32>,
    uuid: String,
    bytes: u64,
}

/// The processes whose clients are known, of both kinds.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    /// Each is a client itself.
    pub processes: BTreeSet<u32>,
    /// Those who ask for others, too: programs in manual mode.
    pub families: BTreeSet<u32>,
}

#[derive(Debug, Default)]
struct Known {
    /// At the last look; whoever is leaving, or not a client yet, is not here at the next one.
    before: BTreeSet<ProcessId>,
    told: BTreeSet<ProcessId>,
}

impl Known {
    /// Who is seen for the second time, is no client, and has not been told of.
    fn news(&mut self, seen: Vec<Stranger>, clients: &Clients) -> Vec<Stranger> {
        let strange = |stranger: &Stranger| {
            !clients.processes.contains(&stranger.process.pid)
                && !clients.families.contains(&stranger.process.pid)
                && !stranger.ancestors.iter().any(|pid| clients.families.contains(pid))
        };
        let seen: Vec<Stranger> = seen.into_iter().filter(strange).collect();
        let now: BTreeSet<ProcessId> = seen.iter().map(|stranger| stranger.process).collect();
        self.told.retain(|process| now.contains(process));
        let mut news = seen;
        news.retain(|stranger| {
            self.before.contains(&stranger.process) && self.told.insert(stranger.process)
        });
        self.before = now;
        news
    }
}

/// How much of each GPU is in use, where NVML tells.
fn in_use(meter: &Meter, gpus: &[String]) -> Vec<(Gpu, u64)> {
    let gpus = (0..).map(Gpu).zip(gpus);
    gpus.filter_map(|(gpu, uuid)| Some((gpu, meter.used(uuid)?))).collect()
}

/// Who uses the GPUs, of those whom this assigner could have as clients.
fn users(meter: &Arc<Meter>, gpus: &[String]) -> Vec<Stranger> {
    let own = rustix::process::getuid().as_raw();
    let all = gpus.iter().flat_map(|uuid| {
        let users = meter.users_of(uuid);
        users.into_iter().map(move |user| (uuid, user))
    });
    all.filter(|(_, User { pid, .. })| own == 0 || uid_of(*pid) == Some(own))
        .filter_map(|(uuid, User { pid, bytes })| {
            let process = ProcessId::of(pid)?;
            let ancestors = std::iter::successors(parent_of(pid), |pid| parent_of(*pid)).collect();
            Some(Stranger { process, ancestors, uuid: uuid.clone(), bytes })
        })
        .collect()
}

fn tell(stranger: &Stranger) {
    let pid = stranger.process.pid;
    let name = name_of(pid).unwrap_or_default();
    let driver = match driver_of(pid) {
        Some(path) => format!("the CUDA driver that it has opened is {}", path.display()),
        None => "which CUDA driver it has opened cannot be seen".to_owned(),
    };
    tracing::warn!(
        "process {pid} ({name}) uses {} of GPU {} and is no client: {driver}. What it does is not scheduled and may meet others on \
         the GPU; have it open libcuda.so.1 by that name, or start it with `agarun --audit` or `--acb=audit=on`",
        size(stranger.bytes),
        stranger.uuid
    );
}

/// The driver of a process.
fn driver_of(pid: u32) -> Option<PathBuf> {
    driver_in(&fs::read_to_string(format!("/proc/{pid}/maps")).ok()?, &interposer_folder())
}

/// The driver in a map of memory: not the interposer, which is mapped into everything.
fn driver_in(maps: &str, interposers: &Path) -> Option<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let is_driver = |path: &&Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let version = name.strip_prefix("libcuda.so");
        let ours = path.parent() == Some(interposers);
        !ours && version.is_some_and(|it| it.chars().all(|c| c.is_ascii_digit() || c == '.'))
    };
    paths.into_iter().find(is_driver).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(pid: u32, ancestors: &[u32]) -> Stranger {
        let process = ProcessId { pid, start_time: 1 };
        Stranger { process, ancestors: ancestors.to_vec(), uuid: "GPU-1".into(), bytes: 5 }
    }

    fn pids(news: &[Stranger]) -> Vec<u32> {
        news.iter().map(|stranger| stranger.process.pid).collect()
    }

    #[test]
    fn who_is_no_client_at_two_looks_is_told_once() {
        let clients = Clients { processes: [10].into(), families: [20].into() };
        let mut known = Known::default();
        let seen = vec![user(10, &[1]), user(21, &[20, 1]), user(30, &[1]), user(31, &[10, 1])];
        assert!(known.news(seen.clone(), &clients).is_empty());
        assert_eq!(pids(&known.news(seen.clone(), &clients)), [30, 31]);
        assert!(known.news(seen, &clients).is_empty());
        // A client that is leaving is seen once.
        let none = Clients::default();
        assert!(known.news(vec![user(10, &[])], &none).is_empty());
        assert!(known.news(vec![], &none).is_empty());
        assert!(known.news(vec![user(10, &[])], &none).is_empty());
        assert_eq!(pids(&known.news(vec![user(10, &[])], &none)), [10]);
    }

    #[test]
    fn the_driver_is_told_from_the_interposer() {
        let maps = "7f10-7f20 r--p 00000000 08:01 12 /opt/acb/lib/acb/libcuda.so.1\n\
            7f20-7f30 r--p 00000000 08:01 13 /usr/lib/libcudart.so.12\n\
            7f30-7f40 r-xp 00001000 08:01 14 /usr/lib x/libcuda.so.570.86.10\n7f40-7f50 rw-p 0 00:00 0 [heap]\n";
        let ours = Path::new("/opt/acb/lib/acb");
        assert_eq!(driver_in(maps, ours), Some(PathBuf::from("/usr/lib x/libcuda.so.570.86.10")));
        assert_eq!(driver_in("7f40-7f50 rw-p 00000000 00:00 0 [heap]\n", ours), None);
    }
}
