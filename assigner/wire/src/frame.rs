//! Length-delimited protobuf frames: a varint length, then the message.
//!
//! Owns: turning messages into bytes and a stream of bytes back into messages. Does not own: the
//! socket they travel on. A peer that sends garbage gets an error, never a panic, and never makes
//! the decoder hold more than [`MAX_FRAME`] bytes.

use prost::Message;

/// Longest message accepted, in bytes. The largest real one (a Hello with every UUID of a node) is
/// a few kilobytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// What can be wrong with incoming bytes. After an error the stream is useless: close it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length prefix is not a varint or exceeds [`MAX_FRAME`].
    #[error("frame of impossible length")]
    Length,
    /// The body is not a message of the expected type.
    #[error("frame that is no message: {0}")]
    Body(#[from] prost::DecodeError),
}

/// The frame of one message.
pub fn encode<M: Message>(message: &M) -> Vec<u8> {
    message.encode_length_delimited_to_vec()
}

/// Collects bytes and hands out the messages that are complete.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that were handed out already.
    consumed: usize,
}

impl Decoder {
    /// A decoder with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes as they came from the peer.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that were taken and not handed out: of a message that is not complete, or not asked for.
    pub fn remaining(&self) -> usize {
        self.buffer.len() - self.consumed
    }

    /// The next complete message, or `None` when more bytes are needed.
    #[expect(clippy::should_implement_trait, reason = "it fails, and the caller names the message")]
    pub fn next<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let rest = &self.buffer[self.consumed..];
        let Some((length, prefix)) = read_length(rest)? else { return Ok(None) };
        let Some(body) = rest.get(prefix..prefix + length) else { return Ok(None) };
        let message = M::decode(body)?;
        self.consumed += prefix + length;
        Ok(Some(message))
    }
}

/// The length at the front of `bytes` and how many bytes it takes; `None` when it is not complete.
fn read_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
    let mut length = 0usize;
    for (position, byte) in bytes.iter().enumerate() {
        if position == 4 {
            return Err(FrameError::Length);
        }
        length |= usize::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return if length > MAX_FRAME {
                Err(FrameError::Length)
            } else {
                Ok(Some((length, position + 1)))
            };
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{ClientMessage, Hello, client_message::Kind};
    use proptest::prelude::*;

    fn hello(program: &str) -> ClientMessage {
        ClientMessage {
            kind: Some(Kind::Hello(Hello { program: program.into(), ..Hello::default() })),
        }
    }

    proptest! {
        #[test]
        fn messages_survive_any_cut(names in prop::collection::vec(".{0,40}", 0..8), cut in 1usize..9) {
            let bytes: Vec<u8> = names.iter().flat_map(|name| encode(&hello(name))).collect();
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            for part in bytes.chunks(cut) {
                decoder.extend(part);
                while let Some(message) = decoder.next::<ClientMessage>().unwrap() {
                    seen.push(message);
                }
            }
            prop_assert_eq!(decoder.remaining(), 0);
            prop_assert_eq!(seen, names.iter().map(|name| hello(name)).collect::<Vec<_>>());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::new();
            decoder.extend(&bytes);
            while let Ok(Some(_)) = decoder.next::<ClientMessage>() {}
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_body_comes() {
        let mut decoder = Decoder::new();
        decoder.extend(&[0x81, 0x80, 0x04]);
        assert_eq!(decoder.next::<ClientMessage>(), Err(FrameError::Length));
    }
}
