//! What is asked about two GPUs, and about NVLink.

use std::ffi::c_uint;

use simcuda_device::connection::{Ancestor, Connection, NVLINKS_MAX, NvLinkEnd};
use simcuda_device::identity::pci_bus;

use crate::device::{Handle, Pci, of, pci};
use crate::{INVALID_ARGUMENT, NOT_SUPPORTED, Outcome, exports, put};

/// The PCI bus of the first NVLink switch: behind those of all GPUs.
const SWITCH_BUS: u32 = 0xc0;
const GPU_DEVICE: u32 = 0;
const SWITCH_DEVICE: u32 = 2;

/// Numbers of nvmlGpuP2PCapsIndex_t and nvmlGpuP2PStatus_t.
const P2P_NVLINK: c_uint = 2;
const P2P_ATOMICS: c_uint = 3;
const P2P_UNKNOWN: c_uint = 5;
const P2P_STATUS_OK: c_uint = 0;
const P2P_STATUS_NOT_SUPPORTED: c_uint = 5;

exports! {
    fn nvmlDeviceGetTopologyCommonAncestor(one: Handle, other: Handle, level: *mut c_uint) {
        let (session, at) = of(one)?;
        let to = of(other)?.1;
        let gpus = &session.config.gpus;
        let ancestor = if at == to {
            Ancestor::Itself
        } else {
            gpus[at].connection.ancestor(&gpus[to].connection)
        };
        // INTERNAL, SINGLE, NODE, SYSTEM
        put(level, match ancestor {
            Ancestor::Itself => 0,
            Ancestor::Switch => 10,
            Ancestor::Node => 40,
            Ancestor::System => 50,
        })
    }

    fn nvmlDeviceGetP2PStatus(one: Handle, other: Handle, index: c_uint, status: *mut c_uint) {
        let (session, at) = of(one)?;
        let to = of(other)?.1;
        if at == to || index >= P2P_UNKNOWN || status.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        if !session.config.p2p_status {
            return Err(NOT_SUPPORTED);
        }
        let gpus = &session.config.gpus;
        let linked = gpus[at].connection.reaches(to, &gpus[to].connection);
        let ok = !matches!(index, P2P_NVLINK | P2P_ATOMICS) || linked;
        put(status, if ok { P2P_STATUS_OK } else { P2P_STATUS_NOT_SUPPORTED })
    }

    fn nvmlDeviceGetNvLinkState(device: Handle, link: c_uint, active: *mut c_uint) {
        end(device, link)?;
        put(active, 1)
    }

    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(device: Handle, link: c_uint, info: *mut Pci) {
        let bus = match end(device, link)? {
            NvLinkEnd::Gpu(index) => pci_bus(index),
            NvLinkEnd::Switch(number) => SWITCH_BUS + number as u32,
        };
        put(info, pci(bus))
    }

    fn nvmlDeviceGetNvLinkRemoteDeviceType(device: Handle, link: c_uint, kind: *mut c_uint) {
        put(kind, match end(device, link)? {
            NvLinkEnd::Gpu(_) => GPU_DEVICE,
            NvLinkEnd::Switch(_) => SWITCH_DEVICE,
        })
    }
}

/// The other end of a link.
fn end(device: Handle, link: c_uint) -> Outcome<NvLinkEnd> {
    let (session, index) = of(device)?;
    let Connection { nvlinks, .. } = &session.config.gpus[index].connection;
    if link as usize >= NVLINKS_MAX {
        return Err(INVALID_ARGUMENT);
    }
    if nvlinks.is_empty() {
        return Err(NOT_SUPPORTED);
    }
    nvlinks.get(link as usize).copied().ok_or(INVALID_ARGUMENT)
}
