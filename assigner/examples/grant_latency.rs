//! Measures the time from release to grant between two processes, through a running assigner.
//!
//! `grant_latency CLIENT_SOCKET [ROUNDS]` prints one JSON line with p50 and p99 in microseconds.
//! Two processes hand one GPU to each other; each notes when it writes Release and when it has
//! read Granted. Owns the measurement; asserts nothing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use acb_wire::frame::{self, Decoder};
use acb_wire::v1::{self, assigner_message, client_message};
use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (socket, rest) =
        arguments.split_first().context("usage: grant_latency CLIENT_SOCKET [ROUNDS]")?;
    let rounds = rest.first().map_or(Ok(2000), |rounds| rounds.parse())?;
    if rest.get(1).is_some_and(|role| role == "second") {
        for (released, granted) in play(socket, rounds)? {
            println!("{granted} {released}");
        }
        return Ok(());
    }
    let second = Command::new(std::env::current_exe()?)
        .args([socket.as_str(), &rounds.to_string(), "second"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut spans = play(socket, rounds)?;
    let output = second.wait_with_output()?;
    for line in String::from_utf8(output.stdout)?.lines() {
        let (granted, released) = line.split_once(' ').context("the second process is silent")?;
        spans.push((released.parse()?, granted.parse()?));
    }
    // In the order of time every grant follows the release of the other process.
    spans.sort_by_key(|(_, granted)| *granted);
    let mut latencies: Vec<u64> =
        spans.windows(2).filter_map(|pair| pair[1].1.checked_sub(pair[0].0)).collect();
    latencies.sort_unstable();
    let at =
        |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    println!(
        "{{\"grants\":{},\"grant_p50_us\":{:.1},\"grant_p99_us\":{:.1}}}",
        latencies.len(),
        at(0.5),
        at(0.99)
    );
    Ok(())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    since.as_nanos() as u64
}

/// Acquires, waits until the other one wants the lease, and releases; the moments of each round.
fn play(socket: &str, rounds: usize) -> Result<Vec<(u64, u64)>> {
    let mut client = Client { stream: UnixStream::connect(socket)?, decoder: Decoder::new() };
    client.send(client_message::Kind::Hello(v1::Hello {
        protocol: acb_wire::PROTOCOL,
        program: "grant_latency".to_owned(),
        ..v1::Hello::default()
    }))?;
    client.send(client_message::Kind::Bind(v1::Bind {}))?;
    let mut moments = Vec::with_capacity(rounds);
    for round in 0..rounds {
        client.send(client_message::Kind::Acquire(v1::Acquire {}))?;
        // The other one may have finished when the last round comes: nobody would want the lease.
        let (mut granted, mut epoch, mut wanted) = (0, 0, round + 1 == rounds);
        while granted == 0 || !wanted {
            match client.next()? {
                assigner_message::Kind::Granted(lease) => (granted, epoch) = (now(), lease.epoch),
                assigner_message::Kind::Wanted(_) | assigner_message::Kind::Recall(_) => {
                    wanted = true;
                }
                assigner_message::Kind::Refused(refused) => bail!(refused.reason),
                _ => {}
            }
        }
        moments.push((now(), granted));
        client
            .send(client_message::Kind::Release(v1::Release { epoch, ..v1::Release::default() }))?;
    }
    Ok(moments)
}

struct Client {
    stream: UnixStream,
    decoder: Decoder,
}

impl Client {
    fn send(&mut self, kind: client_message::Kind) -> Result<()> {
        Ok(self.stream.write_all(&frame::encode(&v1::ClientMessage { kind: Some(kind) }))?)
    }

    fn next(&mut self) -> Result<assigner_message::Kind> {
        loop {
            if let Some(message) = self.decoder.next::<v1::AssignerMessage>()? {
                return message.kind.context("a message without a kind");
            }
            let mut part = [0; 4096];
            let count = self.stream.read(&mut part)?;
            if count == 0 {
                bail!("the assigner closed the connection");
            }
            self.decoder.extend(&part[..count]);
        }
    }
}
