//! Memory shared by handles of the old kind (cuIpcGetMemHandle), which the driver gives of its own allocations alone: emulated with
//! file descriptors.
//!
//! ```text
//!  exporter                                              importer
//!  cuIpcGetMemHandle: its chunks stay ("ipc");           cuIpcOpenMemHandle: asks at the socket that the handle names,
//!    64 bytes name a socket and an allocation              imports each chunk, maps them one behind the other
//!  its keeper answers ◄── request ── descriptors ──►     keeps the connection until cuIpcCloseMemHandle
//!  it frees, and others have it open: counted until      its keeper hears the exporter's end: counts the memory itself
//!    their connections end
//! ```
//! Owns: the handle (`handle`), the thread that answers and hears ends (`keeper`), what is open here (`opened`), packets with
//! descriptors (`packet`). Does not own: chunks (`pager::handed`).
//!
//! What is shared is on the GPU as long as the exporter has it, so neither side waits for the other's turn: both run in turns.

mod handle;
mod keeper;
mod opened;
mod packet;

pub(crate) use handle::HANDLE_BYTES;
pub(crate) use keeper::{close_inherited, end};
pub(crate) use opened::{close, context_gone, described, open};

use crate::log::warning;
use acb_cuda_abi::CuResult;
use handle::Handle;

/// A handle of an allocation whose memory stays; its keeper is there from now on.
pub(crate) fn handle_of(number: u64) -> Result<[u8; HANDLE_BYTES], CuResult> {
    match keeper::serve() {
        Ok(token) => Ok(Handle { host: handle::host(), token, number }.bytes()),
        Err(error) => {
            warning!(
                "cuIpcGetMemHandle: memory cannot be offered to other processes ({error}), CUDA_ERROR_OPERATING_SYSTEM is returned; \
                 raise the limits of open files and processes (ulimit -n, -u)"
            );
            Err(CuResult::OPERATING_SYSTEM)
        }
    }
}
