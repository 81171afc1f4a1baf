//! A client of an assigner that speaks the protocol itself, so that the moments of its messages are known.
//!
//! Owns: the conversation. Does not own: what is measured with it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use acb_wire::frame::{self, Decoder};
use acb_wire::v1::{
    Acquire, AssignerMessage, Bind, ClientMessage, Hello, Release, ReleaseReason, ReleaseSoon,
    RoomKind, RoomRequest, RoomReturn, RoomVerdict, assigner_message::Kind as Said,
    client_message::Kind as Say,
};
use anyhow::{Context, Result, anyhow, bail};

use super::outside::Outside;

/// How long before its end an idle lease is announced to end, as the interposer does it.
const ANNOUNCED: Duration = Duration::from_micros(100);

/// A client that speaks the protocol itself.
pub struct WireClient {
    socket: UnixStream,
    decoder: Decoder,
}

impl WireClient {
    /// Connects, and is bound to a GPU.
    ///
    /// # Errors
    /// The assigner refuses.
    pub fn join(outside: &Outside) -> Result<Self> {
        let socket = UnixStream::connect(outside.socket()).context("connect to the assigner")?;
        socket.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut client = Self { socket, decoder: Decoder::new() };
        client.say(Say::Hello(Hello {
            protocol: acb_wire::PROTOCOL,
            pid: std::process::id(),
            start_time: start_time()?,
            program: "acb-bench".into(),
            gpus: 1,
            ..Hello::default()
        }))?;
        client.until(|said| matches!(said, Said::Welcome(_)).then_some(()))?;
        client.say(Say::Bind(Bind {}))?;
        client.until(|said| matches!(said, Said::Bound(_)).then_some(()))?;
        Ok(client)
    }

    /// Asks for the lease and waits for it; its epoch.
    ///
    /// # Errors
    /// The connection fails.
    pub fn acquire(&mut self) -> Result<u64> {
        self.say(Say::Acquire(Acquire {}))?;
        self.until(|said| match said {
            Said::Granted(granted) => Some(granted.epoch),
            _ => None,
        })
    }

    /// Says that the lease will be given back, and waits as long as a program under the interposer does then.
    ///
    /// # Errors
    /// The connection fails.
    pub fn release_soon(&mut self, epoch: u64) -> Result<()> {
        self.say(Say::ReleaseSoon(ReleaseSoon { epoch }))?;
        std::thread::sleep(ANNOUNCED);
        Ok(())
    }

    /// Gives the lease back.
    ///
    /// # Errors
    /// The connection fails.
    pub fn release(&mut self, epoch: u64) -> Result<()> {
        self.say(Say::Release(Release {
            epoch,
            reason: ReleaseReason::Idle.into(),
            ..Release::default()
        }))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The connection fails.
    pub fn say(&mut self, kind: Say) -> Result<()> {
        let bytes = frame::encode(&ClientMessage { kind: Some(kind) });
        self.socket.write_all(&bytes).context("write to the assigner")
    }

    /// Claims paged memory while the lease is held, and waits until there is room for all of it.
    ///
    /// # Errors
    /// The claim is denied, or the connection fails.
    pub fn claim(&mut self, bytes: u64) -> Result<()> {
        let kind = RoomKind::Paged.into();
        self.say(Say::RoomRequest(RoomRequest { bytes, kind, ..RoomRequest::default() }))?;
        let mut credited = 0;
        while credited < bytes {
            credited += self.until(|said| match said {
                Said::Credit(credit) => Some(Ok(credit.bytes)),
                Said::RoomReply(reply) if reply.verdict() != RoomVerdict::Granted => {
                    Some(Err(anyhow!("the claim of {bytes} bytes is denied: {}", reply.reason)))
                }
                _ => None,
            })??;
        }
        Ok(())
    }

    /// Gives a claim and the room for it back.
    ///
    /// # Errors
    /// The connection fails.
    pub fn give_up(&mut self, bytes: u64) -> Result<()> {
        let kind = RoomKind::Paged.into();
        self.say(Say::RoomReturn(RoomReturn { bytes, kind, resident: bytes, device: 0 }))
    }

    /// Reads until a message is the wanted one.
    ///
    /// # Errors
    /// The connection fails, or the assigner refuses.
    pub fn until<T>(&mut self, wanted: impl Fn(&Said) -> Option<T>) -> Result<T> {
        let mut bytes = [0; 4096];
        loop {
            while let Some(message) = self.decoder.next::<AssignerMessage>()? {
                match message.kind {
                    Some(Said::Refused(refused)) => {
                        bail!("the assigner refused: {}", refused.reason)
                    }
                    Some(said) => {
                        if let Some(value) = wanted(&said) {
                            return Ok(value);
                        }
                    }
                    None => {}
                }
            }
            let count = self.socket.read(&mut bytes).context("wait for the assigner")?;
            if count == 0 {
                bail!("the assigner closed the connection");
            }
            self.decoder.extend(&bytes[..count]);
        }
    }
}

/// Field 22 of /proc/self/stat.
fn start_time() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name in parentheses may hold blanks.
    let fields = stat.rsplit_once(')').context("/proc/self/stat")?.1;
    fields.split_whitespace().nth(19).context("/proc/self/stat")?.parse().context("/proc/self/stat")
}
