//! The kernels that the software GPU knows, by name (docs/architecture.md has the
//! list; `tests/workloads/kernels.ptx` is the same for real GPUs): how long they
//! take, and what they do.
#![allow(unsafe_code)] // reads and writes simulated device memory through pointers

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use acb_cuda_abi::hash;
use simcuda_device::fault::{Call, FaultKind, Faults};
use simcuda_device::{GpuConfig, Nanos, engine};

use crate::code::{ILLEGAL_ADDRESS, LAUNCH_FAILED, MISALIGNED_ADDRESS, Outcome};
use crate::conditions;
use crate::physical::Segment;
use crate::ptx::Parameter;
use crate::space::Access;

/// A kernel, by what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    Nop,
    Spin,
    Fill,
    Step,
    Sum,
    Endless,
    Hash,
    Condition,
    Multicast,
    Unknown,
}

impl Kernel {
    /// The kernel of that name, if it also has the parameters it must have.
    pub(crate) fn of(name: &str, parameters: &[Parameter]) -> Kernel {
        let (kernel, count) = match name {
            "acb_nop" => (Kernel::Nop, 0),
            "acb_spin" => (Kernel::Spin, 1),
            "acb_fill" => (Kernel::Fill, 3),
            "acb_step" => (Kernel::Step, 4),
            "acb_sum" => (Kernel::Sum, 3),
            "acb_endless" => (Kernel::Endless, 1),
            "acb_condition" => (Kernel::Condition, 3),
            "acb_multicast" => (Kernel::Multicast, 3),
            hash::KERNEL => (Kernel::Hash, 4),
            _ => return Kernel::Unknown,
        };
        if parameters.len() == count && parameters.iter().all(|parameter| parameter.size == 8) {
            kernel
        } else {
            Kernel::Unknown
        }
    }
}

/// A launch.
#[derive(Clone)]
pub(crate) struct KernelCall {
    pub(crate) kernel: Kernel,
    pub(crate) name: Arc<str>,
    pub(crate) arguments: [u64; 4],
    /// How many blocks lie above each other.
    pub(crate) rows: u32,
    /// A scripted fault.
    pub(crate) fault: LaunchFault,
    /// As the program asked for it; kept for nodes of graphs only.
    pub(crate) asked: Option<Arc<Asked>>,
}

/// A launch as the program asked for it, to be told again.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The function's handle, or the kernel's.
    pub(crate) function: u64,
    pub(crate) shape: [u32; 6],
    pub(crate) shared: u32,
    values: Vec<Box<[u8]>>,
    /// Where the values lie, as programs list them.
    pointers: Vec<usize>,
}

impl Asked {
    pub(crate) fn new(
        function: u64,
        shape: [u32; 6],
        shared: u32,
        values: Vec<Box<[u8]>>,
    ) -> Asked {
        let pointers = values.iter().map(|value| value.as_ptr() as usize).collect();
        Asked { function, shape, shared, values, pointers }
    }

    /// The list of pointers to the arguments; it lives as long as this does.
    pub(crate) fn list(&self) -> *const usize {
        if self.values.is_empty() { std::ptr::null() } else { self.pointers.as_ptr() }
    }
}

/// What goes wrong with a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaunchFault {
    None,
    Fails,
    Endless,
    /// It finds the same for all memory.
    Lies,
}

/// Memory that a kernel touches.
pub(crate) struct Need {
    pub(crate) address: u64,
    pub(crate) length: usize,
    pub(crate) access: Access,
}

impl KernelCall {
    /// As rules look at it.
    pub(crate) fn as_call(&self) -> Call<'_> {
        Call { kernel: Some(&self.name), ..Call::default() }
    }

    /// What befalls it this time. People are told of kernels that are not known.
    pub(crate) fn meet_faults(&mut self, faults: &Faults) {
        if faults.strikes(FaultKind::LaunchFails, Some(&self.name)) {
            self.fault = LaunchFault::Fails;
        }
        if faults.strikes(FaultKind::Endless, Some(&self.name)) {
            self.fault = LaunchFault::Endless;
        }
        if self.kernel == Kernel::Hash && faults.strikes(FaultKind::HashLies, None) {
            self.fault = LaunchFault::Lies;
        }
        if self.kernel == Kernel::Unknown {
            name_once(&self.name);
        }
    }

    /// How long it has the compute engine.
    pub(crate) fn length(&self, gpu: &GpuConfig) -> Nanos {
        if self.fault == LaunchFault::Endless {
            return engine::ENDLESS;
        }
        let bytes = |words: u64| span(words.saturating_mul(8), gpu.memory_bandwidth);
        let own = match self.kernel {
            Kernel::Nop | Kernel::Condition => 0,
            Kernel::Spin => self.arguments[0].min(engine::ENDLESS / 2),
            Kernel::Fill | Kernel::Sum | Kernel::Multicast => bytes(self.arguments[1]),
            Kernel::Step => self.arguments[3].min(engine::ENDLESS / 2),
            Kernel::Endless => return engine::ENDLESS,
            Kernel::Hash => bytes(self.pairs().saturating_mul(2)),
            Kernel::Unknown => gpu.unknown_kernel_ns,
        };
        own + gpu.launch_ns
    }

    /// How many pairs of words are hashed, in all chunks.
    fn pairs(&self) -> u64 {
        self.arguments[1].saturating_mul(u64::from(self.rows))
    }

    /// The memory that it touches, or how it fails.
    pub(crate) fn needs(&self) -> Outcome<Vec<Need>> {
        if self.fault == LaunchFault::Fails {
            return Err(LAUNCH_FAILED);
        }
        let [p, n, ..] = self.arguments;
        let words = |address: u64, count: u64, access| {
            if !address.is_multiple_of(8) {
                return Err(MISALIGNED_ADDRESS);
            }
            let length = count.checked_mul(8).ok_or(ILLEGAL_ADDRESS)? as usize;
            Ok(Need { address, length, access })
        };
        match self.kernel {
            Kernel::Nop | Kernel::Spin | Kernel::Unknown => Ok(Vec::new()),
            Kernel::Fill | Kernel::Step | Kernel::Multicast if n == 0 => Ok(Vec::new()),
            Kernel::Multicast => Ok(vec![words(p, n, Access::Multicast)?]),
            Kernel::Fill | Kernel::Step => Ok(vec![words(p, n, Access::Write)?]),
            Kernel::Sum if n == 0 => Ok(vec![words(self.arguments[2], 1, Access::Write)?]),
            Kernel::Sum => {
                Ok(vec![words(self.arguments[2], 1, Access::Write)?, words(p, n, Access::Read)?])
            }
            // There is nothing else that it could set.
            Kernel::Condition if !conditions::exists(n) => Err(LAUNCH_FAILED),
            Kernel::Condition => Ok(vec![words(p, 1, Access::Write)?]),
            Kernel::Endless => Ok(vec![words(p, 1, Access::Read)?]),
            Kernel::Hash => {
                let out = words(self.arguments[3], 2 * u64::from(self.rows), Access::Write)?;
                if !p.is_multiple_of(16) {
                    // It loads pairs.
                    return Err(MISALIGNED_ADDRESS);
                }
                let count = self.pairs().checked_mul(2).ok_or(ILLEGAL_ADDRESS)?;
                if n == 0 { Ok(vec![out]) } else { Ok(vec![out, words(p, count, Access::Read)?]) }
            }
        }
    }

    /// Whether no memory changes by it.
    pub(crate) fn touches_nothing(&self) -> bool {
        let plain = matches!(self.kernel, Kernel::Nop | Kernel::Spin | Kernel::Unknown);
        plain && self.fault == LaunchFault::None
    }

    /// Whether it runs until memory says otherwise.
    pub(crate) fn is_endless(&self) -> bool {
        self.fault == LaunchFault::Endless || self.kernel == Kernel::Endless
    }

    /// Does what it does, once, at its end.
    pub(crate) fn run(&self, runs: &[Vec<Segment>]) {
        let [_, n, third, _] = self.arguments;
        if n == 0 {
            return;
        }
        match self.kernel {
            Kernel::Fill => each_word(&runs[0], |at, word| {
                word.store(splitmix64(third.wrapping_add(at)), Ordering::Relaxed);
            }),
            // The same for each GPU of the object.
            Kernel::Multicast => runs.iter().for_each(|run| {
                each_word(run, |at, word| {
                    word.store(splitmix64(third.wrapping_add(at)), Ordering::Relaxed);
                });
            }),
            Kernel::Step => each_word(&runs[0], |_, word| {
                let value = word.load(Ordering::Relaxed);
                let next = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(third);
                word.store(next, Ordering::Relaxed);
            }),
            Kernel::Sum => {
                let mut sum = 0_u64;
                each_word(&runs[1], |_, word| {
                    sum = sum.wrapping_add(word.load(Ordering::Relaxed));
                });
                each_word(&runs[0], |_, word| {
                    word.fetch_add(sum, Ordering::Relaxed);
                });
            }
            Kernel::Hash => {
                let mut sums = vec![[0_u64; 2]; self.rows as usize];
                // No division for each pair: this is to keep up with the memory that is modelled.
                let (mut row, mut place) = (0, 0);
                each_pair(&runs[1], |_, pair| {
                    let sum: &mut [u64; 2] = &mut sums[row];
                    let hash::Hash128([low, high]) = hash::hash_pair(pair, place, third);
                    *sum = [sum[0].wrapping_add(low), sum[1].wrapping_add(high)];
                    place += 1;
                    if place == n {
                        (row, place) = (row + 1, 0);
                    }
                });
                if self.fault == LaunchFault::Lies {
                    sums.fill([1; 2]);
                }
                each_word(&runs[0], |at, word| {
                    word.fetch_add(sums[at as usize / 2][at as usize % 2], Ordering::Relaxed);
                });
            }
            // cudaGraphSetConditional(second, first -= third)
            Kernel::Condition => each_word(&runs[0], |_, word| {
                let left = word.fetch_sub(third, Ordering::Relaxed).wrapping_sub(third);
                conditions::set(n, left as u32);
            }),
            Kernel::Nop | Kernel::Spin | Kernel::Endless | Kernel::Unknown => {}
        }
    }
}

/// Kernels that are not known take their time and write nothing; people are told,
/// once for each name.
fn name_once(name: &Arc<str>) {
    static NAMED: Mutex<Option<HashSet<Arc<str>>>> = Mutex::new(None);
    let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    if named.get_or_insert_default().insert(Arc::clone(name)) {
        crate::driver::say(&format!(
            "simcuda: kernel {name} is not known to the software GPU: it takes its modelled time and writes nothing"
        ));
    }
}

/// Whether the endless kernel's flag is set.
pub(crate) fn flag_is_set(run: &[Segment]) -> bool {
    let mut set = false;
    each_word(run, |_, word| set |= word.load(Ordering::Relaxed) != 0);
    set
}

/// How long `bytes` take at `per_second`.
pub(crate) fn span(bytes: u64, per_second: u64) -> Nanos {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(per_second);
    Nanos::try_from(nanos).unwrap_or(engine::ENDLESS / 2).min(engine::ENDLESS / 2)
}

/// Calls `one` for every 64-bit word of a run. Words are atomic, as other engines
/// and the host may touch the same memory at the same time.
fn each_word(run: &[Segment], mut one: impl FnMut(u64, &AtomicU64)) {
    let mut at = 0;
    for segment in run {
        let words = segment.pointer().cast::<AtomicU64>();
        for word in 0..segment.len() / 8 {
            // SAFETY: inside a live segment; runs of words begin at multiples of
            // 8, which `needs` checked, and mappings at multiples of 512.
            let word = unsafe { &*words.add(word) };
            one(at, word);
            at += 1;
        }
    }
}

/// Calls `one` for every pair of 64-bit words of a run.
fn each_pair(run: &[Segment], mut one: impl FnMut(u64, [u64; 2])) {
    let mut at = 0;
    for segment in run {
        // Segments end at multiples of 512 bytes or with the run, so no pair is cut.
        let words = segment.pointer().cast::<AtomicU64>();
        for pair in 0..segment.len() / 16 {
            // SAFETY: inside a live segment; `needs` checked the alignment.
            let pair = unsafe { [&*words.add(2 * pair), &*words.add(2 * pair + 1)] };
            one(at, pair.map(|word| word.load(Ordering::Relaxed)));
            at += 1;
        }
    }
}

/// The generator of Steele, Lea and Flood; the same as in `kernels.ptx`.
pub(crate) fn splitmix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_is_the_published_one() {
        // First outputs of the reference generator seeded with 0.
        assert_eq!(splitmix64(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix64(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn bandwidth_gives_time() {
        assert_eq!(span(24_000_000, 24_000_000_000), 1_000_000);
        assert_eq!(span(0, 1), 0);
        assert_eq!(span(u64::MAX, 1), engine::ENDLESS / 2);
    }
}
