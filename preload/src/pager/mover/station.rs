//! Streams and events of the pager's in one context of the program.
//!
//! Owns: them, and being in the context: while it is, the context is not destroyed. Does not own: what is queued.

use crate::pager::PAGER;
use crate::pager::contexts::Carrier;
use crate::pager::device::{self, Answer};
use acb_cuda_abi::CuResult;

pub(super) struct Station {
    pub(super) carrier: Carrier,
    inside: bool,
    streams: Option<Streams>,
    /// Events that nobody uses.
    events: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Streams {
    inward: usize,
    outward: usize,
    hashing: usize,
}

impl Station {
    pub(super) fn new(carrier: Carrier) -> Self {
        Station { carrier, inside: false, streams: None, events: Vec::new() }
    }

    /// False: the context is going.
    pub(super) fn enter(&mut self) -> bool {
        self.inside = self.inside || PAGER.enter(self.carrier);
        self.inside
    }

    pub(super) fn leave(&mut self) {
        if std::mem::take(&mut self.inside) {
            PAGER.leave(self.carrier);
        }
    }

    pub(super) fn is_built(&self) -> bool {
        self.streams.is_some()
    }

    /// Makes the streams, in the current context, or says why it cannot be done.
    pub(super) fn build(&mut self) -> CuResult {
        if let Some(streams) = self.streams {
            // The context may have broken since.
            return device::state(streams.outward);
        }
        device::relax_capture();
        let made = || -> Answer<Streams> {
            let (inward, outward) = (device::stream()?, device::stream()?);
            Ok(Streams { inward, outward, hashing: device::stream()? })
        };
        match made() {
            Ok(streams) => {
                self.streams = Some(streams);
                CuResult::SUCCESS
            }
            Err(result) => result,
        }
    }

    pub(super) fn inward(&self) -> usize {
        self.streams.map_or(0, |streams| streams.inward)
    }

    pub(super) fn outward(&self) -> usize {
        self.streams.map_or(0, |streams| streams.outward)
    }

    pub(super) fn hashing(&self) -> usize {
        self.streams.map_or(0, |streams| streams.hashing)
    }

    /// An event that comes after everything that is in a stream now.
    pub(super) fn mark(&mut self, stream: usize) -> Answer<usize> {
        let event = match self.events.pop() {
            Some(event) => event,
            None => device::event()?,
        };
        device::record(event, stream).inspect_err(|_| device::destroy_event(event))?;
        Ok(event)
    }

    pub(super) fn done_with(&mut self, event: usize) {
        self.events.push(event);
    }
}
