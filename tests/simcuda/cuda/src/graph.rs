//! Stream capture.

use crate::code::Outcome;
use crate::handles::Handle;
use crate::objects::{Context, Event, EventState, Stream, Tables};

impl Tables {
    pub(crate) fn abandon_capture(&mut self, _stream: Handle<Stream>) {}
    pub(crate) fn refuse_while_capturing(&self, _stream: Handle<Stream>) -> Outcome {
        Ok(())
    }
    pub(crate) fn refuse_in_capture(&self, _context: Handle<Context>) -> Outcome {
        Ok(())
    }
    pub(crate) fn capture_wait(
        &mut self,
        _stream: Handle<Stream>,
        _state: &EventState,
    ) -> Outcome<bool> {
        Ok(false)
    }
    pub(crate) fn capture_record(
        &mut self,
        _stream: Handle<Stream>,
        _event: Handle<Event>,
    ) -> Outcome<bool> {
        Ok(false)
    }
}
