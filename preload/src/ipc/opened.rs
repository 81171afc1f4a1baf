//! What this process has opened of others.
//!
//! Owns: addresses of it, how often it was opened, and who counts it. Does not own: the exporter's part (`keeper`, `pager::handed`).
//!
//! It is never moved here: it stays where its exporter has it, and counts there, as long as that lives; then it counts here.

use super::handle::{HANDLE_BYTES, Handle, host, socket_name};
use super::keeper::{self, GONE, HERE, PLEASE};
use super::packet::{self, Kept};
use crate::log::warning;
use crate::memory::{Key, LEDGER};
use crate::pager::{Described, imported};
use crate::work;
use acb_cuda_abi::CuResult;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`
const LAZY_PEERS: u32 = 1;
/// Numbers of what is opened, apart from those of allocations.
const NUMBERS: u64 = 1 << 62;

struct Opened {
    handle: Handle,
    context: usize,
    /// Where its range of addresses begins, and how long that is.
    range: (u64, u64),
    /// The mappings in it, one behind the other.
    pieces: Vec<u64>,
    bytes: u64,
    device: u32,
    times: u32,
    number: u64,
    /// Its end tells the exporter that it is closed.
    connection: Arc<Kept>,
}

#[derive(Default)]
struct Register {
    /// By the address that the program has.
    opened: BTreeMap<u64, Opened>,
    made: u64,
}

static REGISTER: Mutex<Register> = Mutex::new(Register { opened: BTreeMap::new(), made: 0 });
/// One at a time: the same handle is opened once.
static OPENING: Mutex<()> = Mutex::new(());

fn register() -> MutexGuard<'static, Register> {
    REGISTER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// cuIpcOpenMemHandle; `None`: the handle is the driver's own.
pub(crate) fn open(bytes: &[u8; HANDLE_BYTES], flags: u32) -> Option<Result<u64, CuResult>> {
    let handle = Handle::parse(bytes)?;
    Some(open_ours(handle, flags))
}

fn open_ours(handle: Handle, flags: u32) -> Result<u64, CuResult> {
    let context = work::current_context();
    if context == 0 {
        return Err(CuResult::INVALID_CONTEXT);
    }
    if flags != LAZY_PEERS {
        return Err(CuResult::INVALID_VALUE);
    }
    if handle.host != host() {
        warning!(
            "cuIpcOpenMemHandle: this memory is another machine's, or was there before this one was started: \
             CUDA_ERROR_INVALID_VALUE is returned"
        );
        return Err(CuResult::INVALID_VALUE);
    }
    if keeper::is_own(&handle.token) {
        // It is there already, under its own address: as the driver has it.
        return Err(CuResult::INVALID_CONTEXT);
    }
    let _one = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    {
        let mut register = register();
        let mut known = register.opened.iter_mut();
        if let Some((address, opened)) =
            known.find(|(_, it)| it.handle == handle && it.context == context)
        {
            opened.times += 1;
            return Ok(*address);
        }
    }
    match fetch(handle, context) {
        Ok(address) => Ok(address),
        Err(Refusal::Driver(call, result)) => {
            warning!(
                "cuIpcOpenMemHandle: {call} of another process's memory failed ({}), which is returned: both must see that GPU, and \
                 it must reach the current one's memory",
                result.name().unwrap_or("an unknown error")
            );
            Err(result)
        }
        Err(Refusal::Other(why)) => {
            warning!(
                "cuIpcOpenMemHandle: the process that shares this memory does not give it ({why}), CUDA_ERROR_INVALID_VALUE is \
                 returned: it must live, have the memory still, be of this user, and not be in a container with a network of its \
                 own"
            );
            Err(CuResult::INVALID_VALUE)
        }
    }
}

enum Refusal {
    Driver(&'static str, CuResult),
    Other(String),
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Refusal::Other(error.to_string())
    }
}

fn fetch(handle: Handle, context: usize) -> Result<u64, Refusal> {
    let closed = || Refusal::Other("the program has closed the interposer's descriptors".into());
    let connection = Arc::new(packet::connect(&socket_name(&handle.token))?);
    let socket = connection.get().ok_or_else(closed)?;
    packet::send(socket, [PLEASE, handle.number, 0, 0], None)?;
    let ([answer, count, offset, bytes], _) = packet::receive(socket)?;
    if answer != HERE {
        return Err(Refusal::Other("it has freed it".into()));
    }
    let mut pieces = Vec::new();
    for _ in 0..count {
        match packet::receive(socket)? {
            ([HERE, bytes, ..], Some(descriptor)) => pieces.push((bytes, descriptor)),
            ([GONE, ..], _) => return Err(Refusal::Other("it has freed it".into())),
            _ => return Err(Refusal::Other("it has no descriptor for it".into())),
        }
    }
    let mapped = imported::map(pieces).map_err(|(call, result)| Refusal::Driver(call, result))?;
    let address = mapped.range.0 + offset;
    let mut register = register();
    register.made += 1;
    let number = NUMBERS | register.made;
    keeper::watch(Arc::clone(&connection), number).inspect_err(|_| mapped.unmap())?;
    let imported::Mapped { range, pieces, device } = mapped;
    let times = 1;
    let opened =
        Opened { handle, context, range, pieces, bytes, device, times, number, connection };
    register.opened.insert(address, opened);
    Ok(address)
}

impl Opened {
    /// Nothing of this process is at work in it any more.
    fn unmap(self, address: u64) {
        imported::Mapped { range: self.range, pieces: self.pieces, device: self.device }.unmap();
        self.connection.hang_up();
        if let Some(taken) = LEDGER.take(Key::Pointer(address)) {
            LEDGER.freed(taken);
        }
    }
}

/// cuIpcCloseMemHandle; `None`: it is none of ours.
pub(crate) fn close(address: u64) -> Option<CuResult> {
    let context = {
        let mut register = register();
        let opened = register.opened.get_mut(&address)?;
        if opened.times > 1 {
            opened.times -= 1;
            return Some(CuResult::SUCCESS);
        }
        opened.context
    };
    // The driver's own waits, too; to take a mapping away does not.
    let waited = work::with_context(context, imported::drain);
    if let Some(opened) = register().opened.remove(&address) {
        opened.unmap(address);
    }
    Some(waited)
}

/// A context is destroyed, and what was opened in it is closed.
pub(crate) fn context_gone(context: usize) {
    let mut register = register();
    let of = register.opened.iter().filter(|(_, opened)| opened.context == context);
    let addresses: Vec<u64> = of.map(|(address, _)| *address).collect();
    let gone: Vec<(u64, Opened)> = addresses
        .into_iter()
        .filter_map(|address| Some((address, register.opened.remove(&address)?)))
        .collect();
    drop(register);
    for (address, opened) in gone {
        opened.unmap(address);
    }
}

/// What is known of an address that was opened.
pub(crate) fn described(address: u64) -> Option<Described> {
    let register = register();
    let (start, opened) = register.opened.range(..=address).next_back()?;
    (address - start < opened.bytes.max(1)).then_some(Described {
        start: *start,
        bytes: opened.bytes,
        device: opened.device,
        context: opened.context,
        number: opened.number,
        pool: 0,
        handle_types: 0,
    })
}

/// The exporter has ended, and counts this memory no more. On the keeper's thread, which may wait for room.
pub(super) fn exporter_gone(number: u64) {
    let found = {
        let register = register();
        let mut all = register.opened.iter();
        let found = all.find(|(_, opened)| opened.number == number);
        found.map(|(address, it)| (*address, it.device, it.range.1, it.context))
    };
    let Some((address, device, bytes, context)) = found else { return };
    let Some(promise) = LEDGER.reserve_exactly("cuIpcOpenMemHandle", device as i32, bytes) else {
        return;
    };
    // It may have been closed meanwhile.
    let register = register();
    match register.opened.get(&address) {
        Some(opened) if opened.number == number => {
            LEDGER.allocated(promise, Key::Pointer(address), context);
        }
        _ => LEDGER.forget(promise),
    }
}
