//! Stream capture: which streams record instead of running, into which graph, and
//! what spoils it. The rules are those of the driver's documentation.
//!
//! ```text
//! none --begin--> active --end--> none        (a graph)
//!                   |
//!                   +-- a call that must not be --> invalid --end--> none (no graph)
//! ```

use crate::code::{
    CAPTURED_EVENT, ILLEGAL_STATE, INVALID_HANDLE, INVALID_VALUE, Outcome, STREAM_CAPTURE_IMPLICIT,
    STREAM_CAPTURE_INVALIDATED, STREAM_CAPTURE_ISOLATION, STREAM_CAPTURE_MERGE,
    STREAM_CAPTURE_UNJOINED, STREAM_CAPTURE_UNMATCHED, STREAM_CAPTURE_UNSUPPORTED,
    STREAM_CAPTURE_WRONG_THREAD,
};
use crate::graph::{Graph, Node, Task};
use crate::handles::{Handle, Slab, Tag};
use crate::objects::{Context, Event, EventState, Stream, StreamKind, Tables};

/// `CUstreamCaptureMode`: whose other calls a capture forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    /// Everybody's.
    #[default]
    Global,
    /// Those of the thread that captures.
    ThreadLocal,
    /// Nobody's.
    Relaxed,
}

impl Mode {
    /// As programs pass it.
    pub(crate) fn from_bits(bits: u32) -> Outcome<Mode> {
        match bits {
            0 => Ok(Mode::Global),
            1 => Ok(Mode::ThreadLocal),
            2 => Ok(Mode::Relaxed),
            _ => Err(INVALID_VALUE),
        }
    }
}

/// A capture under way.
pub(crate) struct Capture {
    pub(crate) id: u64,
    pub(crate) graph: Handle<Graph>,
    /// Whether the graph is the program's already.
    given: bool,
    origin: Handle<Stream>,
    mode: Mode,
    thread: u64,
    /// It cannot become a graph any more.
    pub(crate) invalid: bool,
    streams: Vec<Handle<Stream>>,
}

/// A stream's part in a capture.
pub(crate) struct Part {
    pub(crate) capture: Handle<Capture>,
    /// What the next node will wait for.
    pub(crate) behind: Vec<Handle<Node>>,
    /// The same as the program was last shown it.
    pub(crate) shown: Vec<u64>,
}

/// Who asks for something that a capture may forbid.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) thread: u64,
    pub(crate) mode: Mode,
}

/// All captures.
pub(crate) struct Captures {
    slab: Slab<Capture>,
    count: usize,
}

impl Captures {
    pub(crate) fn new() -> Captures {
        Captures { slab: Slab::new(Tag::Capture), count: 0 }
    }

    /// Whether there is any: the usual case is quick.
    pub(crate) fn any(&self) -> bool {
        self.count > 0
    }

    pub(crate) fn get(&self, capture: Handle<Capture>) -> Option<&Capture> {
        self.slab.get(capture)
    }
}

impl Tables {
    /// Starts a capture.
    pub(crate) fn begin_capture(
        &mut self,
        stream: Handle<Stream>,
        caller: Caller,
        mode: Mode,
        into: Option<(Handle<Graph>, Vec<Handle<Node>>)>,
    ) -> Outcome {
        let found = self.streams.get(stream).ok_or(INVALID_HANDLE)?;
        if found.kind == StreamKind::Legacy {
            return Err(STREAM_CAPTURE_UNSUPPORTED);
        }
        if found.part.is_some() {
            return Err(ILLEGAL_STATE);
        }
        let given = into.is_some();
        let (graph, behind) = match into {
            Some((graph, behind)) => {
                self.graphs.get(graph).ok_or(INVALID_VALUE)?;
                if behind.iter().any(|&n| self.nodes.get(n).is_none_or(|n| n.graph != graph)) {
                    return Err(INVALID_VALUE);
                }
                (graph, behind)
            }
            None => (self.graphs.insert(Graph::default()), Vec::new()),
        };
        let id = self.next_id();
        let capture = self.captures.slab.insert(Capture {
            id,
            graph,
            given,
            origin: stream,
            mode,
            thread: caller.thread,
            invalid: false,
            streams: vec![stream],
        });
        self.captures.count += 1;
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.part = Some(Part { capture, behind, shown: Vec::new() });
        }
        Ok(())
    }

    /// Ends a capture where it began.
    pub(crate) fn end_capture(
        &mut self,
        stream: Handle<Stream>,
        caller: Caller,
    ) -> Outcome<Handle<Graph>> {
        let part = self.streams.get(stream).ok_or(INVALID_HANDLE)?.part.as_ref();
        let handle = part.ok_or(ILLEGAL_STATE)?.capture;
        let capture = self.captures.slab.get(handle).ok_or(ILLEGAL_STATE)?;
        if capture.origin != stream {
            self.spoil(handle);
            return Err(STREAM_CAPTURE_UNMATCHED);
        }
        if capture.mode != Mode::Relaxed && capture.thread != caller.thread {
            self.spoil(handle);
            return Err(STREAM_CAPTURE_WRONG_THREAD);
        }
        let end = if capture.invalid {
            Err(STREAM_CAPTURE_INVALIDATED)
        } else if self.is_joined(capture) {
            Ok(capture.graph)
        } else {
            Err(STREAM_CAPTURE_UNJOINED)
        };
        if let Some(capture) = self.captures.slab.remove(handle) {
            self.captures.count -= 1;
            for stream in capture.streams {
                if let Some(stream) = self.streams.get_mut(stream) {
                    stream.part = None;
                }
            }
            if end.is_err() && !capture.given {
                self.remove_graph(capture.graph);
            }
        }
        end
    }

    /// Whether all that was captured ends before the stream where it began.
    fn is_joined(&self, capture: &Capture) -> bool {
        let behind = |stream: Handle<Stream>| {
            let part = self.streams.get(stream).and_then(|stream| stream.part.as_ref());
            part.map_or(&[][..], |part| &part.behind[..])
        };
        let mut reached: std::collections::HashSet<Handle<Node>> = std::collections::HashSet::new();
        let mut next: Vec<Handle<Node>> = behind(capture.origin).to_vec();
        while let Some(node) = next.pop() {
            if reached.insert(node)
                && let Some(node) = self.nodes.get(node)
            {
                next.extend(&node.after);
            }
        }
        capture.streams.iter().all(|&stream| behind(stream).iter().all(|n| reached.contains(n)))
    }

    /// From now on the capture can only be ended.
    pub(crate) fn spoil(&mut self, capture: Handle<Capture>) {
        if let Some(capture) = self.captures.slab.get_mut(capture) {
            capture.invalid = true;
        }
    }

    fn spoil_where(&mut self, which: impl Fn(&Tables, &Capture) -> bool) -> bool {
        let found: Vec<_> = self
            .captures
            .slab
            .iter()
            .filter(|(_, capture)| which(self, capture))
            .map(|(handle, _)| handle)
            .collect();
        for &capture in &found {
            self.spoil(capture);
        }
        !found.is_empty()
    }

    /// The capture that a stream records into, if any.
    pub(crate) fn recording(&self, stream: Handle<Stream>) -> Outcome<Option<Handle<Capture>>> {
        let part = self.streams.get(stream).and_then(|stream| stream.part.as_ref());
        let Some(part) = part else { return Ok(None) };
        match self.captures.get(part.capture) {
            Some(capture) if capture.invalid => Err(STREAM_CAPTURE_INVALIDATED),
            _ => Ok(Some(part.capture)),
        }
    }

    /// The legacy stream would wait for blocking streams, which it cannot while
    /// one of them captures.
    pub(crate) fn check_legacy(&mut self, stream: Handle<Stream>) -> Outcome {
        let Some(Stream { kind: StreamKind::Legacy, context, .. }) = self.streams.get(stream)
        else {
            return Ok(());
        };
        let context = *context;
        let drawn_in = |tables: &Tables, capture: &Capture| {
            capture.streams.iter().any(|&stream| {
                tables.streams.get(stream).is_some_and(|stream| {
                    stream.context == context && stream.kind == StreamKind::Blocking
                })
            })
        };
        if self.spoil_where(drawn_in) { Err(STREAM_CAPTURE_IMPLICIT) } else { Ok(()) }
    }

    /// Whether the legacy stream is barred, without harm to anybody.
    pub(crate) fn legacy_is_barred(&self, stream: Handle<Stream>) -> bool {
        let Some(Stream { kind: StreamKind::Legacy, context, .. }) = self.streams.get(stream)
        else {
            return false;
        };
        self.captures.slab.iter().any(|(_, capture)| {
            capture.streams.iter().any(|&stream| {
                self.streams.get(stream).is_some_and(|stream| {
                    stream.context == *context && stream.kind == StreamKind::Blocking
                })
            })
        })
    }

    /// A stream that captures has nothing to wait for.
    pub(crate) fn check_waitable(&mut self, stream: Handle<Stream>) -> Outcome {
        if !self.captures.any() {
            return Ok(());
        }
        self.check_legacy(stream)?;
        if let Some(capture) = self.recording(stream)? {
            self.spoil(capture);
            return Err(STREAM_CAPTURE_UNSUPPORTED);
        }
        Ok(())
    }

    /// Nor has a context in which one does.
    pub(crate) fn check_context_waitable(&mut self, context: Handle<Context>) -> Outcome {
        let inside = |tables: &Tables, capture: &Capture| {
            capture
                .streams
                .iter()
                .any(|&stream| tables.streams.get(stream).is_some_and(|s| s.context == context))
        };
        if self.captures.any() && self.spoil_where(inside) {
            return Err(STREAM_CAPTURE_UNSUPPORTED);
        }
        Ok(())
    }

    /// Calls that may wait for the GPU behind the program's back.
    pub(crate) fn check_unsafe(&mut self, caller: Caller) -> Outcome {
        if !self.captures.any() || caller.mode == Mode::Relaxed {
            return Ok(());
        }
        let forbids = |_: &Tables, capture: &Capture| {
            let own = capture.thread == caller.thread && capture.mode != Mode::Relaxed;
            own || (caller.mode == Mode::Global && capture.mode == Mode::Global)
        };
        if self.spoil_where(forbids) { Err(STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// An event recorded in a capture is no moment in time.
    pub(crate) fn check_event(&mut self, event: Handle<Event>) -> Outcome {
        if let EventState::Captured(capture, _) = self.event(event)?.state {
            self.spoil(capture);
            return Err(CAPTURED_EVENT);
        }
        Ok(())
    }

    /// Records a task at the end of a stream.
    pub(crate) fn record(
        &mut self,
        stream: Handle<Stream>,
        capture: Handle<Capture>,
        task: Task,
    ) -> Outcome<Handle<Node>> {
        let graph = self.captures.get(capture).ok_or(ILLEGAL_STATE)?.graph;
        let part = self.streams.get(stream).and_then(|stream| stream.part.as_ref());
        let behind = part.ok_or(ILLEGAL_STATE)?.behind.clone();
        let node = self.add_node(graph, &behind, task)?;
        if let Some(part) = self.streams.get_mut(stream).and_then(|stream| stream.part.as_mut()) {
            part.behind = vec![node];
        }
        Ok(node)
    }

    /// An event is recorded in a stream that captures.
    pub(crate) fn capture_event(
        &mut self,
        stream: Handle<Stream>,
        capture: Handle<Capture>,
        event: Handle<Event>,
    ) {
        let part = self.streams.get(stream).and_then(|stream| stream.part.as_ref());
        let behind = part.map_or(Vec::new(), |part| part.behind.clone());
        if let Some(event) = self.events.get_mut(event) {
            event.state = EventState::Captured(capture, behind);
        }
    }

    /// A stream waits for an event, and one of the two is captured. True: nothing
    /// is left to do.
    pub(crate) fn capture_wait(
        &mut self,
        stream: Handle<Stream>,
        event: Handle<Event>,
    ) -> Outcome<bool> {
        let own = self.recording(stream)?;
        let state = self.event(event)?.state.clone();
        let (capture, nodes) = match (own, state) {
            (None, EventState::Captured(capture, nodes)) => (capture, nodes),
            (None, _) => return Ok(false),
            (Some(own), EventState::Captured(capture, nodes)) if own == capture => (capture, nodes),
            (Some(own), EventState::Captured(other, _)) => {
                let over = self.captures.get(other).is_none();
                self.spoil(own);
                self.spoil(other);
                return Err(if over { CAPTURED_EVENT } else { STREAM_CAPTURE_MERGE });
            }
            (Some(_), EventState::Unrecorded) => return Ok(true),
            (Some(own), _) => {
                self.spoil(own);
                return Err(STREAM_CAPTURE_ISOLATION);
            }
        };
        let Some(found) = self.captures.slab.get_mut(capture) else {
            return Err(CAPTURED_EVENT);
        };
        if found.invalid {
            return Err(STREAM_CAPTURE_INVALIDATED);
        }
        let Some(joining) = self.streams.get_mut(stream) else { return Err(INVALID_HANDLE) };
        if joining.kind == StreamKind::Legacy {
            found.invalid = true;
            return Err(STREAM_CAPTURE_UNSUPPORTED);
        }
        if !found.streams.contains(&stream) {
            found.streams.push(stream);
        }
        let part = joining.part.get_or_insert_with(|| Part {
            capture,
            behind: Vec::new(),
            shown: Vec::new(),
        });
        for node in nodes {
            if !part.behind.contains(&node) {
                part.behind.push(node);
            }
        }
        Ok(true)
    }

    /// The program sets what the next node of a stream waits for.
    pub(crate) fn set_behind(
        &mut self,
        stream: Handle<Stream>,
        nodes: Vec<Handle<Node>>,
        add: bool,
    ) -> Outcome {
        let capture = self.recording(stream)?.ok_or(ILLEGAL_STATE)?;
        let graph = self.captures.get(capture).ok_or(ILLEGAL_STATE)?.graph;
        if nodes.iter().any(|&node| self.nodes.get(node).is_none_or(|node| node.graph != graph)) {
            return Err(INVALID_VALUE);
        }
        let part = self.streams.get_mut(stream).and_then(|stream| stream.part.as_mut());
        let part = part.ok_or(ILLEGAL_STATE)?;
        if !add {
            part.behind.clear();
        }
        for node in nodes {
            if !part.behind.contains(&node) {
                part.behind.push(node);
            }
        }
        Ok(())
    }

    /// A stream goes: a capture that it takes part in cannot be ended well.
    pub(crate) fn leave_capture(&mut self, stream: Handle<Stream>) {
        let part = self.streams.get_mut(stream).and_then(|stream| stream.part.take());
        let Some(part) = part else { return };
        let Some(capture) = self.captures.slab.get_mut(part.capture) else { return };
        capture.invalid = true;
        capture.streams.retain(|&other| other != stream);
        if capture.origin == stream {
            // Nobody can end it any more.
            let streams = std::mem::take(&mut capture.streams);
            for stream in streams {
                if let Some(stream) = self.streams.get_mut(stream) {
                    stream.part = None;
                }
            }
            if let Some(capture) = self.captures.slab.remove(part.capture) {
                self.captures.count -= 1;
                if !capture.given {
                    self.remove_graph(capture.graph);
                }
            }
        }
    }
}
