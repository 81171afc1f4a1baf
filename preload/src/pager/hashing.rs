//! The hash kernel in the program's contexts: loaded as each is made, and tried before it is trusted.
//!
//! Owns: module, results, launches. Does not own: what follows from a hash (`table`).
//! Where the kernel cannot be loaded, or computes something else than it should, every chunk counts as changed.
//!
//! A driver that loads code may wait for the program's kernels, and lets nobody in meanwhile. So it is done before there are any; where
//! the GPU is full then, or nobody knew of the context, while the gate is closed.
//! The trial's launch makes the kernel resident, where code is loaded lazily. Nobody waits for its result but the first page-out.
//! ```text
//!  made ──► due ──► trying ──► tried: of use, or not
//!            └─ full: due again, once for each time that the gate was open
//! ```

use super::device::{self, Answer};
use super::ranges::GRANULE;
use crate::log::info;
use acb_cuda_abi::CuResult;
use acb_cuda_abi::hash::{self, Hash128, hash128};
use std::collections::BTreeMap;

/// Results that one pass can have: chunks of 80 GB in pieces of 2 MiB.
const SLOTS: u64 = 48 << 10;
/// What the kernel and its results take on a GPU, in each context; asked for with the context's own room.
pub(crate) const OVERHEAD: u64 = 2 << 20;
/// What the kernel is tried with.
const TRIAL_WORDS: u64 = 8 << 10;
const SEED: u64 = 0xACB0_0001;
/// Pairs that one thread should have, at least.
const PAIRS_A_THREAD: u64 = 8;
const MOST_BLOCKS: u64 = 2048;

/// The kernel in one context. All of it dies with the context.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hasher {
    function: usize,
    /// On the device, and its copy on the host.
    results: u64,
    landed: usize,
}

/// What is known of the kernel in a context.
#[derive(Debug)]
enum State {
    /// To be loaded at once: somebody waits for it.
    Due,
    /// There was no memory for it, at this opening of the gate.
    Full(u64),
    Trying(Trial),
    Tried(Option<Hasher>),
}

/// By the numbers of contexts.
#[derive(Debug, Default)]
pub(super) struct Hashers {
    hashers: BTreeMap<u64, State>,
}

/// What is found when the kernel is needed.
#[derive(Debug)]
pub(super) enum Found {
    Ready(Hasher),
    /// The trial, to be looked at without the books.
    Trying(Trial),
    Nothing,
}

impl Hashers {
    pub(super) const fn new() -> Self {
        Hashers { hashers: BTreeMap::new() }
    }

    pub(super) fn knows(&self, context: u64) -> bool {
        self.hashers.contains_key(&context)
    }

    /// It has just been made.
    pub(super) fn expect(&mut self, context: u64) {
        self.hashers.insert(context, State::Due);
    }

    pub(super) fn is_due(&self, context: u64) -> bool {
        matches!(self.hashers.get(&context), Some(State::Due))
    }

    /// A context for which somebody waits.
    pub(super) fn due(&self) -> Option<u64> {
        self.hashers.iter().find(|(_, state)| matches!(state, State::Due)).map(|(id, _)| *id)
    }

    /// Whether it should be loaded when nothing runs; the gate was opened so often.
    pub(super) fn lacks(&self, context: u64, openings: u64) -> bool {
        match self.hashers.get(&context) {
            None => true,
            Some(State::Full(at)) => *at != openings,
            Some(_) => false,
        }
    }

    /// What came of loading it.
    pub(super) fn loaded(&mut self, context: u64, loaded: Answer<Trial>, openings: u64) {
        let state = match loaded {
            Ok(trial) => State::Trying(trial),
            Err(CuResult::OUT_OF_MEMORY) => State::Full(openings),
            Err(_) => State::Tried(None),
        };
        self.hashers.insert(context, state);
    }

    pub(super) fn find(&mut self, context: u64) -> Found {
        match self.hashers.remove(&context) {
            Some(State::Trying(trial)) => {
                self.hashers.insert(context, State::Tried(None));
                Found::Trying(trial)
            }
            Some(State::Tried(hasher)) => {
                self.hashers.insert(context, State::Tried(hasher));
                hasher.map_or(Found::Nothing, Found::Ready)
            }
            Some(state) => {
                self.hashers.insert(context, state);
                Found::Nothing
            }
            None => Found::Nothing,
        }
    }

    /// Its result has not come.
    pub(super) fn try_on(&mut self, context: u64, trial: Trial) {
        self.hashers.insert(context, State::Trying(trial));
    }

    pub(super) fn tried(&mut self, context: u64, hasher: Option<Hasher>) {
        self.hashers.insert(context, State::Tried(hasher));
    }

    /// Nobody will load any.
    pub(super) fn despair(&mut self) {
        for state in self.hashers.values_mut().filter(|state| matches!(state, State::Due)) {
            *state = State::Tried(None);
        }
    }

    pub(super) fn remove(&mut self, context: u64) {
        self.hashers.remove(&context);
    }
}

/// The kernel, and its hash of a pattern, which is on its way. What it took goes with the context, if nobody asks.
#[derive(Debug)]
pub(super) struct Trial {
    hasher: Hasher,
    words: Vec<u64>,
    data: u64,
    stream: usize,
    event: usize,
}

/// Loads the kernel into the current context and has it hash something; a line in the log where it is of no use.
pub(super) fn load() -> Answer<Trial> {
    let module = device::load(hash::PTX);
    let trial =
        module.and_then(|module| Trial::begin(module).inspect_err(|_| device::unload(module)));
    trial.inspect_err(|result| match *result {
        CuResult::OUT_OF_MEMORY => info!("there is no memory for the hash kernel; it is loaded later"),
        result => info!(
            "the hash kernel cannot be used here ({}): all memory counts as changed when it is moved to the host",
            device::name(result)
        ),
    })
}

/// The hashes of zeros, for all sizes of chunks. That takes milliseconds, and nobody waits for it.
pub(super) fn zeros(chunk_bytes: u64) -> BTreeMap<u64, Hash128> {
    let pairs = GRANULE / 16;
    let mut sum = Hash128::default();
    let part = |granule: u64| {
        for place in granule * pairs..(granule + 1) * pairs {
            sum = sum.plus(hash::hash_pair([0, 0], place, SEED));
        }
        ((granule + 1) * GRANULE, sum)
    };
    (0..chunk_bytes / GRANULE).map(part).collect()
}

impl Trial {
    fn begin(module: usize) -> Answer<Trial> {
        let function = device::function(module, c"acb_hash128")?;
        let results = device::allocate(SLOTS * 16)?;
        let landed = device::allocate_host(SLOTS * 16).inspect_err(|_| device::free(results))?;
        let hasher = Hasher { function, results, landed };
        Trial::hash(hasher).inspect_err(|_| {
            device::free(results);
            device::free_host(landed);
        })
    }

    fn hash(hasher: Hasher) -> Answer<Trial> {
        let words: Vec<u64> = (1..=TRIAL_WORDS)
            .map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17))
            .collect();
        let data = device::allocate(TRIAL_WORDS * 8)?;
        let stream = device::stream().inspect_err(|_| device::free(data))?;
        let event = device::copy_in(data, words.as_ptr() as usize, TRIAL_WORDS * 8, stream)
            .and_then(|()| hasher.begin(1, stream))
            .and_then(|()| hasher.launch(0, data, TRIAL_WORDS * 8, stream))
            .and_then(|()| hasher.collect(0, 1, stream));
        let event = event.inspect_err(|_| {
            device::drain(stream);
            device::destroy_stream(stream);
            device::free(data);
        })?;
        Ok(Trial { hasher, words, data, stream, event })
    }

    /// Whether the result is there; asked in the same context.
    pub(super) fn has_come(&self) -> bool {
        device::has_come(self.event) != Ok(false)
    }

    /// The kernel, if it computes what it should.
    pub(super) fn outcome(self) -> Option<Hasher> {
        let come = device::has_come(self.event);
        device::destroy_event(self.event);
        device::destroy_stream(self.stream);
        device::free(self.data);
        let right = self.hasher.result(0) == hash128(&self.words, 0, SEED);
        if come != Ok(true) || !right {
            info!(
                "the hash kernel computes something else here than it should: all memory counts as changed when it is moved \
                 to the host"
            );
            return None;
        }
        Some(self.hasher)
    }
}

impl Hasher {
    pub(super) const fn slots() -> u64 {
        SLOTS
    }

    /// Before the launches of a pass of `count` chunks.
    pub(super) fn begin(&self, count: u64, stream: usize) -> Answer<()> {
        device::clear(self.results, count * 16, stream)
    }

    pub(super) fn launch(&self, slot: u64, address: u64, bytes: u64, stream: usize) -> Answer<()> {
        let pairs = bytes / 16;
        let threads = u64::from(hash::THREADS);
        let blocks = (pairs / (threads * PAIRS_A_THREAD)).clamp(1, MOST_BLOCKS) as u32;
        let mut parameters = [address, pairs, SEED, self.results + slot * 16];
        device::launch(self.function, blocks, hash::THREADS, stream, &mut parameters)
    }

    /// After the launches of some slots: an event that comes when their results have landed.
    pub(super) fn collect(&self, from: u64, to: u64, stream: usize) -> Answer<usize> {
        let (landed, results) = (self.landed + from as usize * 16, self.results + from * 16);
        device::copy_out(landed, results, (to - from) * 16, stream)?;
        let event = device::event()?;
        device::record(event, stream).inspect_err(|_| device::destroy_event(event))?;
        Ok(event)
    }

    /// When they have.
    pub(super) fn result(&self, slot: u64) -> Hash128 {
        Hash128(device::read_host(self.landed + slot as usize * 16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_have_the_hash_that_the_kernel_computes_of_them() {
        let zeros = zeros(3 * GRANULE);
        assert_eq!(zeros.len(), 3);
        for (bytes, hash) in zeros {
            let words = vec![0; bytes as usize / 8];
            assert_eq!(hash, hash128(&words, 0, SEED), "{bytes}");
        }
    }
}
