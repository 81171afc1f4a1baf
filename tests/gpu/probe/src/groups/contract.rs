//! Group `contract`: the contract tests of the software GPU, run on this machine's driver: what one
//! promises, the other must keep. Some of them once more under the interposer, beside a neighbour that needs the memory.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::bench::{Bench, MIB};
use crate::child;
use crate::crowd::{Crowd, Program};
use crate::moved::{gib, while_watched};
use crate::parts::Parts;
use crate::row::Row;

const PROGRAM: &str = "libexec/acb-tests/contract";

/// Cases that are run under the interposer, too, and whether they have memory that is to be moved.
pub(crate) const INTERPOSED: [(&str, bool); 2] = [
    ("starting::a_forked_child_has_no_driver", false),
    ("virtual_memory::memory_is_exported_with_its_content", true),
];

/// The part with all cases.
const ALL: &str = "all";

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let name = |case: &str| format!("interposed@{case}");
    let weights = INTERPOSED.map(|(case, _)| (name(case), 1.0));
    let parts = Parts::new(bench, [(ALL.to_owned(), 4.0)].into_iter().chain(weights));
    parts.run(ALL, |seconds| all(bench, seconds))?;
    for (case, has_memory) in INTERPOSED {
        let place = |column: &str| format!("interposed.{column}@{case}");
        let measured = parts.run(&name(case), |seconds| {
            let (why, moved) = interposed(bench, case, seconds)?;
            let moves = moved > 0 || !has_memory;
            let word = match (&why, moves) {
                (Some(_), _) => "FAILED",
                (None, false) => "ok, but NOTHING WAS MOVED",
                (None, true) => "ok",
            };
            let row = Row::text(bench.group, &place("result"), word);
            bench.row(row.verified(why.is_none() && moves).note(why.unwrap_or_default()));
            if has_memory {
                bench.value(&place("moved_gib"), "GiB", gib(moved));
            }
            Ok(())
        });
        if let Err(error) = measured {
            bench.missing(&place("result"), "text", format!("{error:#}"));
        }
    }
    Ok(())
}

/// One case under the interposer; before each of its calls a neighbour that needs all of the memory has its turn. What was not as
/// expected, and what was moved of the case's memory.
fn interposed(bench: &Bench, case: &str, seconds: f64) -> anyhow::Result<(Option<String>, u64)> {
    let program = bench.installed(PROGRAM);
    let program = program.ok_or_else(|| anyhow::anyhow!("there is no {PROGRAM} under --prefix"))?;
    let crowd = Crowd::gather(bench, bench.sizes()?, 256 * MIB, 2, 2 * MIB)?;
    let neighbour = crowd.partner(crowd.each, 5)?;
    let pid = neighbour.pid();
    let turns = bench.work.join("turns");
    let ran = |limit: Duration| -> anyhow::Result<Option<String>> {
        let mut command = crowd.assigner.run(&program);
        command.args(["--driver", "libcuda.so.1", "--only", case]).env("CONTRACT_TURNS", &turns);
        let mut said = Vec::new();
        let ending = child::run(&mut command, limit, |line| said.push(line.to_owned()))?;
        Ok((!ending.is_success()).then(|| format!("{} {}", said.join(" "), ending.why())))
    };
    let limit = Duration::from_secs_f64((seconds - 4.0).max(seconds / 2.0));
    let (ran, moved) =
        while_watched(&crowd.assigner, || offering(&turns, neighbour, || ran(limit)));
    let (ran, mut neighbour) = ran?;
    let why = ran?;
    let why = match neighbour.is_right()? {
        true => why,
        false => Some("the neighbour's memory is WRONG".to_owned()),
    };
    Ok((why, moved.but(pid)))
}

/// How long the neighbour's turn is waited for: beside memory that has to stay it may have none.
const PATIENCE: Duration = Duration::from_millis(500);

/// A neighbour's turns, from outside its thread.
struct Turns {
    go: Sender<()>,
    done: Receiver<()>,
    /// One has been asked for and is not over.
    at_it: bool,
}

impl Turns {
    fn take(&mut self) {
        self.at_it = self.at_it || self.go.send(()).is_ok();
        self.at_it &= self.done.recv_timeout(PATIENCE).is_err();
    }
}

/// Does some work while a neighbour has its turn whenever somebody asks for one on the socket.
fn offering<T>(
    socket: &PathBuf,
    mut neighbour: Program,
    work: impl FnOnce() -> T,
) -> anyhow::Result<(T, Program)> {
    // Of the case before.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    let (go, asked) = mpsc::channel();
    let (finished, done) = mpsc::channel();
    let (turns, over) = (Mutex::new(Turns { go, done, at_it: false }), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let playing = scope.spawn(move || -> anyhow::Result<Program> {
            for () in asked {
                neighbour.touch()?;
                // At the end nobody waits for it any more.
                let _ = finished.send(());
            }
            Ok(neighbour)
        });
        let (turns, over) = (&turns, &over);
        scope.spawn(move || {
            for stream in listener.incoming().map_while(std::io::Result::ok) {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                // A case may consist of several processes.
                scope.spawn(move || offered(stream, turns));
            }
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        // That ends the wait for more; if it fails, the socket has gone, and with it the wait.
        drop(UnixStream::connect(socket));
        // And that ends the neighbour's turns.
        turns.lock().unwrap_or_else(PoisonError::into_inner).go = mpsc::channel().0;
        let neighbour =
            playing.join().unwrap_or_else(|_| anyhow::bail!("the neighbour's thread panicked"));
        Ok((done, neighbour?))
    })
}

/// A turn of the neighbour for every byte.
fn offered(mut stream: UnixStream, turns: &Mutex<Turns>) {
    while stream.read_exact(&mut [0]).is_ok() {
        turns.lock().unwrap_or_else(PoisonError::into_inner).take();
        if stream.write_all(b"!").is_err() {
            break;
        }
    }
}

fn all(bench: &Bench, seconds: f64) -> anyhow::Result<()> {
    let Some(program) = bench.installed(PROGRAM) else {
        for name in ["contract_passed", "contract_failed"] {
            bench.missing(name, "count", format!("there is no {PROGRAM} under --prefix"));
        }
        return Ok(());
    };
    let mut lines = Vec::new();
    let limit = Duration::from_secs_f64((seconds - 2.0).max(1.0));
    // A case that hangs leaves time for the others.
    let each = (limit.as_secs() / 4).clamp(3, 15).to_string();
    let ending = child::run(Command::new(program).args(["--timeout", &each]), limit, |line| {
        lines.push(line.to_owned())
    })?;
    let verdicts = Verdicts::read(&lines);
    let failed: Vec<String> = verdicts
        .cases
        .iter()
        .filter_map(|(name, failure)| Some(format!("{name}: {}", failure.as_ref()?)))
        .collect();
    let passed = verdicts.cases.len() - failed.len();
    if verdicts.cases.is_empty() {
        for name in ["contract_passed", "contract_failed"] {
            bench.missing(name, "count", format!("the program reported no test: {}", ending.why()));
        }
        return Ok(());
    }
    let note = if ending.is_success() { String::new() } else { ending.why() };
    bench.row(Row::value(bench.group, "contract_passed", "count", passed as f64).note(note));
    bench.row(
        Row::value(bench.group, "contract_failed", "count", failed.len() as f64)
            .verified(failed.is_empty() && ending.is_success())
            .note(failed.join(" ")),
    );
    for (name, failure) in &verdicts.cases {
        let row = Row::text(
            bench.group,
            &format!("contract.case@{name}"),
            match failure {
                None => "ok",
                Some(_) => "FAILED",
            },
        );
        bench.row(row.verified(failure.is_none()).note(failure.clone().unwrap_or_default()));
    }
    bench.detail(serde_json::json!({ "output": lines }));
    Ok(())
}

/// What the program's table says: a line `NAME ok` or `NAME failed REASON` a case.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdicts {
    /// Name, and what was not as expected.
    cases: Vec<(String, Option<String>)>,
}

impl Verdicts {
    fn read(lines: &[String]) -> Self {
        let mut verdicts = Self::default();
        for line in lines {
            let mut words = line.split_whitespace();
            let (Some(name), Some(verdict)) = (words.next(), words.next()) else { continue };
            if !name.contains("::") {
                continue;
            }
            match verdict {
                "ok" => verdicts.cases.push((name.to_owned(), None)),
                "failed" => {
                    let reason: Vec<&str> = words.collect();
                    verdicts.cases.push((name.to_owned(), Some(reason.join(" "))));
                }
                _ => {}
            }
        }
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let text = " starting::init   ok \n order::events   failed   the second came first \n\n1 passed, 1 failed";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let cases = vec![
            ("starting::init".to_owned(), None),
            ("order::events".to_owned(), Some("the second came first".to_owned())),
        ];
        assert_eq!(Verdicts::read(&lines), Verdicts { cases });
    }
}
