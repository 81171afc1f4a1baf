//! A client of the assigner that computes nothing: it takes the lease, holds it a moment, gives it
//! back, and notes when, to measure the way from a release to the next grant.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use acb_wire::PROTOCOL;
use acb_wire::frame::{Decoder, encode};
use acb_wire::v1::assigner_message::Kind as From;
use acb_wire::v1::client_message::Kind as To;
use acb_wire::v1::{Acquire, AssignerMessage, Bind, ClientMessage, Hello, Release, ReleaseReason};
use anyhow::Context;

use crate::host::monotonic_ns;

/// How long the lease is held: far longer than a grant takes, so that the other one waits by then.
const HOLD: Duration = Duration::from_micros(500);

/// One lease: when it was granted and when it was given back, on the clock of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    granted_ns: u64,
    released_ns: u64,
}

/// A line that is no turn.
#[derive(Debug)]
pub(crate) struct NoTurn;

impl FromStr for Turn {
    type Err = NoTurn;

    fn from_str(line: &str) -> Result<Self, NoTurn> {
        let (granted, released) = line.split_once(' ').ok_or(NoTurn)?;
        let number = |text: &str| text.parse().map_err(|_| NoTurn);
        Ok(Self { granted_ns: number(granted)?, released_ns: number(released)? })
    }
}

/// Microseconds from a release of one to the next grant of the other, where that was already waiting:
/// its own last release lies before the first one's grant.
pub(crate) fn latencies_us(one: &[Turn], other: &[Turn]) -> Vec<f64> {
    let mut turns: Vec<(usize, Turn)> =
        one.iter().map(|t| (0, *t)).chain(other.iter().map(|t| (1, *t))).collect();
    turns.sort_by_key(|(_, turn)| turn.granted_ns);
    turns
        .windows(3)
        .filter(|w| w[0].0 != w[1].0 && w[1].0 != w[2].0)
        .filter(|w| w[2].1.granted_ns >= w[1].1.released_ns)
        .map(|w| (w[2].1.granted_ns - w[1].1.released_ns) as f64 / 1e3)
        .collect()
}

/// `probe lease-peer ROUNDS`, under agarun, which names the socket: a line for each turn.
pub(crate) fn peer(rounds: u32) -> anyhow::Result<()> {
    let socket =
        std::env::var_os("ACB_SOCKET").context("ACB_SOCKET is not set: run it under agarun")?;
    let mut connection = Connection::open(Path::new(&socket))?;
    connection.send(To::Hello(hello()?))?;
    connection.wait(|message| matches!(message, From::Welcome(_)).then_some(()))?;
    connection.send(To::Bind(Bind {}))?;
    connection.wait(|message| matches!(message, From::Bound(_)).then_some(()))?;
    let mut turns = Vec::new();
    for _ in 0..rounds {
        connection.send(To::Acquire(Acquire {}))?;
        let epoch = connection.wait(|message| match message {
            From::Granted(granted) => Some(granted.epoch),
            _ => None,
        })?;
        let granted_ns = monotonic_ns();
        let begin = Instant::now();
        while begin.elapsed() < HOLD {
            std::hint::spin_loop();
        }
        let released_ns = monotonic_ns();
        let reason = ReleaseReason::Idle as i32;
        connection.send(To::Release(Release { epoch, reason, busy_ns: HOLD.as_nanos() as u64 }))?;
        turns.push(Turn { granted_ns, released_ns });
    }
    for turn in turns {
        println!("{} {}", turn.granted_ns, turn.released_ns);
    }
    Ok(())
}

fn hello() -> anyhow::Result<Hello> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("reading /proc/self/stat")?;
    // Field 22; the second one, in parentheses, may hold anything.
    let start_time = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19));
    Ok(Hello {
        protocol: PROTOCOL,
        pid: std::process::id(),
        start_time: start_time.context("no start time in /proc/self/stat")?.parse()?,
        program: "acb-gpu-probe".into(),
        gpus: 1,
        ..Hello::default()
    })
}

struct Connection {
    stream: UnixStream,
    decoder: Decoder,
}

impl Connection {
    fn open(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream, decoder: Decoder::new() })
    }

    fn send(&mut self, kind: To) -> anyhow::Result<()> {
        Ok(self.stream.write_all(&encode(&ClientMessage { kind: Some(kind) }))?)
    }

    /// Reads until a message is the one that is waited for; others (Wanted, notices) are let go.
    fn wait<T>(&mut self, wanted: impl Fn(&From) -> Option<T>) -> anyhow::Result<T> {
        let mut buffer = [0u8; 4096];
        loop {
            while let Some(message) = self.decoder.next::<AssignerMessage>()? {
                match message.kind {
                    Some(From::Refused(refused)) => anyhow::bail!("refused: {}", refused.reason),
                    Some(kind) => {
                        if let Some(found) = wanted(&kind) {
                            return Ok(found);
                        }
                    }
                    None => {}
                }
            }
            let count = self.stream.read(&mut buffer).context("waiting for the assigner")?;
            anyhow::ensure!(count > 0, "the assigner closed the connection");
            self.decoder.extend(&buffer[..count]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(granted_ns: u64, released_ns: u64) -> Turn {
        Turn { granted_ns, released_ns }
    }

    #[test]
    fn only_turns_that_were_waited_for_count() {
        let one = [turn(0, 1000), turn(2500, 3000), turn(9000, 9500)];
        let other = [turn(1500, 2000), turn(20_000, 21_000), turn(30_000, 31_000)];
        // One's second follows other's first; other's second follows one's third after one's second:
        // between those the other did nothing, so it was not waiting.
        assert_eq!(latencies_us(&one, &other), [0.5]);
    }

    #[test]
    fn lines_are_turns() {
        let parsed: Turn = "12 34".parse().unwrap();
        assert_eq!(parsed, turn(12, 34));
        assert!("12".parse::<Turn>().is_err() && "a b".parse::<Turn>().is_err());
    }
}
