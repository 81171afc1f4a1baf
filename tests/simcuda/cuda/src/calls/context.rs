//! Contexts: primary and others, the calling thread's stack of them.
#![allow(unsafe_code)] // C pointers

use std::collections::HashMap;
use std::ffi::{c_int, c_uint};

use acb_cuda_abi::sys;

use super::device::attribute_of;
use super::{put, put_wanted};
use crate::code::{
    INVALID_CONTEXT, INVALID_DEVICE, INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY, Outcome,
    PEER_ACCESS_ALREADY_ENABLED, PEER_ACCESS_NOT_ENABLED, PEER_ACCESS_UNSUPPORTED,
    UNSUPPORTED_LIMIT,
};
use crate::driver::{self, Driver, Locked};
use crate::handles::Handle;
use crate::objects::{Context, Stream, StreamKind, Tables};
use crate::space::RegionKind;

const MAP_HOST: c_uint = 8;
const FLAGS: c_uint = 0x1ff;

calls! {
    fn cuDevicePrimaryCtxRetain(context: *mut sys::CUcontext, dev: c_int) {
        let driver = driver::get()?;
        driver.gpu(dev)?;
        if context.is_null() {
            return Err(INVALID_VALUE);
        }
        let mut tables = driver.lock();
        let handle = match tables.primaries[dev as usize].context {
            Some(handle) => handle,
            None => {
                let flags = tables.primaries[dev as usize].flags;
                let handle = create(driver, &mut tables, dev as usize, flags, true)?;
                tables.primaries[dev as usize].context = Some(handle);
                handle
            }
        };
        tables.primaries[dev as usize].retained += 1;
        put(context, handle.bits() as sys::CUcontext)
    }

    fn cuDevicePrimaryCtxRelease(dev: c_int) {
        cuDevicePrimaryCtxRelease_v2(dev)
    }

    fn cuDevicePrimaryCtxRelease_v2(dev: c_int) {
        let driver = driver::get()?;
        driver.gpu(dev)?;
        let mut tables = driver.lock();
        let primary = &mut tables.primaries[dev as usize];
        primary.retained = primary.retained.checked_sub(1).ok_or(INVALID_CONTEXT)?;
        if primary.retained == 0 && let Some(context) = primary.context.take() {
            destroy(driver, tables, context);
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxReset(dev: c_int) {
        cuDevicePrimaryCtxReset_v2(dev)
    }

    fn cuDevicePrimaryCtxReset_v2(dev: c_int) {
        let driver = driver::get()?;
        driver.gpu(dev)?;
        let mut tables = driver.lock();
        // Who has retained it still has to release it.
        if let Some(context) = tables.primaries[dev as usize].context.take() {
            destroy(driver, tables, context);
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxSetFlags(dev: c_int, flags: c_uint) {
        cuDevicePrimaryCtxSetFlags_v2(dev, flags)
    }

    fn cuDevicePrimaryCtxSetFlags_v2(dev: c_int, flags: c_uint) {
        let driver = driver::get()?;
        driver.gpu(dev)?;
        check_flags(flags)?;
        let mut tables = driver.lock();
        let primary = &mut tables.primaries[dev as usize];
        if primary.context.is_some() && primary.flags | MAP_HOST != flags | MAP_HOST {
            // Since CUDA 11 the flags of an active context may change.
            if let Some(context) = primary.context
                && let Some(context) = tables.contexts.get_mut(context)
            {
                context.flags = flags | MAP_HOST;
            }
        }
        tables.primaries[dev as usize].flags = flags;
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(dev: c_int, flags: *mut c_uint, active: *mut c_int) {
        let driver = driver::get()?;
        driver.gpu(dev)?;
        let tables = driver.lock();
        let primary = &tables.primaries[dev as usize];
        put(flags, primary.flags | MAP_HOST)?;
        put(active, c_int::from(primary.context.is_some()))
    }

    fn cuCtxCreate(context: *mut sys::CUcontext, flags: c_uint, dev: c_int) {
        cuCtxCreate_v2(context, flags, dev)
    }

    fn cuCtxCreate_v2(context: *mut sys::CUcontext, flags: c_uint, dev: c_int) {
        let driver = driver::get()?;
        driver.gpu(dev)?;
        check_flags(flags)?;
        if context.is_null() {
            return Err(INVALID_VALUE);
        }
        let handle = create(driver, &mut driver.lock(), dev as usize, flags, false)?;
        driver::with_stack(|stack| stack.push(handle));
        put(context, handle.bits() as sys::CUcontext)
    }

    fn cuCtxCreate_v3(
        context: *mut sys::CUcontext,
        _parameters: *mut sys::CUexecAffinityParam,
        count: c_int,
        flags: c_uint,
        dev: c_int,
    ) {
        if count != 0 {
            driver::get()?;
            return Err(NOT_SUPPORTED);
        }
        cuCtxCreate_v2(context, flags, dev)
    }

    fn cuCtxCreate_v4(
        context: *mut sys::CUcontext,
        _parameters: *mut sys::CUctxCreateParams,
        flags: c_uint,
        dev: c_int,
    ) {
        cuCtxCreate_v2(context, flags, dev)
    }

    fn cuCtxDestroy(context: sys::CUcontext) {
        cuCtxDestroy_v2(context)
    }

    fn cuCtxDestroy_v2(context: sys::CUcontext) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let handle = Handle::from_bits(context as u64);
        let primary = tables.contexts.get(handle).ok_or(INVALID_CONTEXT)?.primary;
        if primary {
            return Err(INVALID_CONTEXT);
        }
        destroy(driver, tables, handle);
        driver::with_stack(|stack| {
            if stack.last() == Some(&handle) {
                stack.pop();
            }
        });
        Ok(())
    }

    fn cuCtxAttach(context: *mut sys::CUcontext, flags: c_uint) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = driver.current(&tables)?;
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        let current = tables.contexts.get_mut(handle).ok_or(INVALID_CONTEXT)?;
        current.users += 1;
        put_wanted(context, handle.bits() as sys::CUcontext);
        Ok(())
    }

    fn cuCtxDetach(context: sys::CUcontext) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = Handle::from_bits(context as u64);
        let known = tables.contexts.get_mut(handle).ok_or(INVALID_CONTEXT)?;
        if known.primary || driver::with_stack(|stack| stack.last() != Some(&handle)) {
            return Err(INVALID_CONTEXT);
        }
        known.users -= 1;
        if known.users == 0 {
            destroy(driver, tables, handle);
            driver::with_stack(Vec::pop);
        }
        Ok(())
    }

    fn cuCtxPushCurrent_v2(context: sys::CUcontext) {
        let driver = driver::get()?;
        let handle = Handle::from_bits(context as u64);
        if !driver.lock().contexts.contains(handle) {
            return Err(INVALID_CONTEXT);
        }
        driver::with_stack(|stack| stack.push(handle));
        Ok(())
    }

    fn cuCtxPushCurrent(context: sys::CUcontext) {
        cuCtxPushCurrent_v2(context)
    }

    fn cuCtxPopCurrent_v2(context: *mut sys::CUcontext) {
        driver::get()?;
        let top = driver::with_stack(Vec::pop).ok_or(INVALID_CONTEXT)?;
        put_wanted(context, top.bits() as sys::CUcontext);
        Ok(())
    }

    fn cuCtxPopCurrent(context: *mut sys::CUcontext) {
        cuCtxPopCurrent_v2(context)
    }

    fn cuCtxSetCurrent(context: sys::CUcontext) {
        let driver = driver::get()?;
        let handle = Handle::from_bits(context as u64);
        if !context.is_null() && !driver.lock().contexts.contains(handle) {
            return Err(INVALID_CONTEXT);
        }
        driver::with_stack(|stack| {
            stack.pop();
            if !context.is_null() {
                stack.push(handle);
            }
        });
        Ok(())
    }

    fn cuCtxGetCurrent(context: *mut sys::CUcontext) {
        driver::get()?;
        let top = driver::with_stack(|stack| stack.last().map_or(0, |top| top.bits()));
        put(context, top as sys::CUcontext)
    }

    fn cuCtxGetDevice(dev: *mut c_int) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let context = driver.current(&tables)?;
        put(dev, tables.context(context)?.ordinal as c_int)
    }

    fn cuCtxGetDevice_v2(dev: *mut c_int, context: sys::CUcontext) {
        let (driver, context) = or_current(context)?;
        put(dev, driver.lock().context(context)?.ordinal as c_int)
    }

    fn cuCtxGetFlags(flags: *mut c_uint) {
        let (driver, context) = or_current(std::ptr::null_mut())?;
        put(flags, driver.lock().context(context)?.flags)
    }

    fn cuCtxSetFlags(flags: c_uint) {
        check_flags(flags)?;
        let (driver, context) = or_current(std::ptr::null_mut())?;
        if let Some(context) = driver.lock().contexts.get_mut(context) {
            context.flags = flags | MAP_HOST;
        }
        Ok(())
    }

    fn cuCtxGetId(context: sys::CUcontext, id: *mut u64) {
        let (driver, context) = or_current(context)?;
        put(id, driver.lock().context(context)?.id)
    }

    fn cuCtxGetApiVersion(context: sys::CUcontext, version: *mut c_uint) {
        let (driver, context) = or_current(context)?;
        driver.lock().context(context)?;
        put(version, 3020)
    }

    fn cuCtxSynchronize() {
        synchronize(std::ptr::null_mut())
    }

    fn cuCtxSynchronize_v2(context: sys::CUcontext) {
        synchronize(context)
    }

    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        or_current(std::ptr::null_mut())?;
        put_wanted(least, 0);
        put_wanted(greatest, -5);
        Ok(())
    }

    fn cuCtxGetCacheConfig(config: *mut c_uint) {
        or_current(std::ptr::null_mut())?;
        put(config, 0)
    }

    fn cuCtxSetCacheConfig(_config: c_uint) {
        or_current(std::ptr::null_mut()).map(drop)
    }

    fn cuCtxGetSharedMemConfig(config: *mut c_uint) {
        or_current(std::ptr::null_mut())?;
        put(config, 1)
    }

    fn cuCtxSetSharedMemConfig(_config: c_uint) {
        or_current(std::ptr::null_mut()).map(drop)
    }

    fn cuCtxResetPersistingL2Cache() {
        or_current(std::ptr::null_mut()).map(drop)
    }

    fn cuCtxGetLimit(value: *mut usize, limit: c_uint) {
        let (driver, context) = or_current(std::ptr::null_mut())?;
        let usual = usual_limit(limit)?;
        let tables = driver.lock();
        put(value, tables.context(context)?.limits.get(&limit).copied().unwrap_or(usual))
    }

    fn cuCtxSetLimit(limit: c_uint, value: usize) {
        let (driver, context) = or_current(std::ptr::null_mut())?;
        let usual = usual_limit(limit)?;
        let mut tables = driver.lock();
        let own = tables.context(context)?;
        let (gpu, ordinal) = (own.gpu, own.ordinal);
        let before = taken_by(limit, own.limits.get(&limit).copied().unwrap_or(usual), ordinal)?;
        let after = taken_by(limit, value, ordinal)?;
        if after > before {
            driver.state.take(driver.charge, gpu, after - before).map_err(|_| OUT_OF_MEMORY)?;
        } else {
            driver.state.give_back(driver.charge, gpu, before - after);
        }
        if let Some(context) = tables.contexts.get_mut(context) {
            context.limits.insert(limit, value);
        }
        Ok(())
    }

    fn cuCtxEnablePeerAccess(peer: sys::CUcontext, flags: c_uint) {
        let (driver, context) = or_current(std::ptr::null_mut())?;
        let peer = Handle::from_bits(peer as u64);
        let mut tables = driver.lock();
        let peer_gpu = tables.context(peer)?.gpu;
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        let own_gpu = tables.context(context)?.gpu;
        if peer_gpu == own_gpu || !driver.config.peers {
            return Err(PEER_ACCESS_UNSUPPORTED);
        }
        let own = tables.contexts.get_mut(context).ok_or(INVALID_CONTEXT)?;
        if own.peers.contains(&peer) {
            return Err(PEER_ACCESS_ALREADY_ENABLED);
        }
        own.peers.push(peer);
        tables.open_to_peers(peer, own_gpu, true);
        Ok(())
    }

    fn cuCtxDisablePeerAccess(peer: sys::CUcontext) {
        let (driver, context) = or_current(std::ptr::null_mut())?;
        let peer = Handle::from_bits(peer as u64);
        let mut tables = driver.lock();
        tables.context(peer)?;
        let own = tables.contexts.get_mut(context).ok_or(INVALID_CONTEXT)?;
        let at = own.peers.iter().position(|&other| other == peer);
        own.peers.remove(at.ok_or(PEER_ACCESS_NOT_ENABLED)?);
        let gpu = own.gpu;
        if tables.reached_from(peer) >> gpu & 1 == 0 {
            tables.open_to_peers(peer, gpu, false);
        }
        Ok(())
    }
}

/// The driver and the context that a program names; null is the current one.
fn or_current(context: sys::CUcontext) -> Outcome<(&'static Driver, Handle<Context>)> {
    let driver = driver::get()?;
    if context.is_null() {
        let current = driver.current(&driver.lock())?;
        return Ok((driver, current));
    }
    Ok((driver, Handle::from_bits(context as u64)))
}

fn synchronize(context: sys::CUcontext) -> Outcome {
    let (driver, context) = or_current(context)?;
    let mut tables = driver.lock();
    tables.context(context)?;
    tables.check_context_waitable(context)?;
    let tables = driver.wait(tables, |tables| tables.is_drained(context));
    tables.context(context).map(drop)
}

fn check_flags(flags: c_uint) -> Outcome {
    // At most one way of waiting may be named.
    let ways = flags & 7;
    if flags & !FLAGS != 0 || !matches!(ways, 0 | 1 | 2 | 4) { Err(INVALID_VALUE) } else { Ok(()) }
}

fn usual_limit(limit: c_uint) -> Outcome<usize> {
    match limit {
        0 => Ok(1024),
        1 => Ok(8 << 20),
        2 => Ok(8 << 20),
        3 => Ok(2),
        4 => Ok(2048),
        5 => Ok(128),
        6 => Ok(0),
        7..=9 => Err(UNSUPPORTED_LIMIT),
        _ => Err(INVALID_VALUE),
    }
}

/// Memory beyond the context's own that a limit takes: stacks for all threads that fit on the
/// GPU, the queue of printf, the heap.
fn taken_by(limit: c_uint, value: usize, ordinal: usize) -> Outcome<u64> {
    const MULTIPROCESSORS: c_uint = 16;
    const THREADS: c_uint = 39;
    let more = value.saturating_sub(usual_limit(limit)?) as u64;
    Ok(match limit {
        0 => {
            let each = |attribute| attribute_of(attribute, ordinal).map(|value| value as u64);
            more.saturating_mul(each(MULTIPROCESSORS)? * each(THREADS)?)
        }
        1 | 2 => more,
        _ => 0,
    })
}

fn create(
    driver: &Driver,
    tables: &mut Tables,
    ordinal: usize,
    flags: c_uint,
    primary: bool,
) -> Outcome<Handle<Context>> {
    let gpu = *driver.devices.get(ordinal).ok_or(INVALID_DEVICE)?;
    let cost = driver.config.gpus[gpu].context_bytes;
    driver.state.take(driver.charge, gpu, cost).map_err(|_| OUT_OF_MEMORY)?;
    let id = tables.next_id();
    let context = tables.contexts.insert(Context {
        ordinal,
        gpu,
        primary,
        users: 1,
        flags: flags | MAP_HOST,
        broken: None,
        pending: 0,
        legacy: Handle::from_bits(0),
        per_thread: HashMap::new(),
        streams: Vec::new(),
        limits: HashMap::new(),
        peers: Vec::new(),
        id,
    });
    let legacy = tables.add_stream(context, StreamKind::Legacy, 0, 0);
    if let Some(context) = tables.contexts.get_mut(context) {
        context.legacy = legacy;
    }
    note(driver, tables, gpu);
    Ok(context)
}

fn note(driver: &Driver, tables: &Tables, gpu: usize) {
    let contexts = tables.contexts.iter().filter(|(_, context)| context.gpu == gpu).count();
    driver.state.note_contexts(driver.charge, gpu, contexts as u32);
}

/// Ends a context with all that belongs to it, once its work is over.
fn destroy(driver: &Driver, tables: Locked<'_>, handle: Handle<Context>) {
    let mut tables = driver.wait(tables, |tables| tables.is_drained(handle));
    let Some(context) = tables.contexts.remove(handle) else { return };
    for stream in context.streams {
        tables.streams.remove(stream);
    }
    let events: Vec<_> = tables
        .events
        .iter()
        .filter(|(_, event)| event.context == handle)
        .map(|(event, _)| event)
        .collect();
    for event in events {
        tables.events.remove(event);
    }
    let modules: Vec<_> = tables
        .modules
        .iter()
        .filter(|(_, module)| module.context == handle)
        .map(|(module, _)| module)
        .collect();
    for module in modules {
        tables.unload(module);
    }
    tables.remove_arrays(handle);
    let regions: Vec<u64> = tables
        .space
        .regions()
        .filter(|(_, region)| {
            matches!(
                region.kind,
                RegionKind::Allocation { context, .. } | RegionKind::Imported { context }
                    if context == handle
            )
        })
        .map(|(start, _)| start)
        .collect();
    for start in regions {
        tables.space.remove(start);
        tables.opened.remove(&start);
    }
    let limits = context.limits.iter();
    let limits: u64 =
        limits.filter_map(|(limit, value)| taken_by(*limit, *value, context.ordinal).ok()).sum();
    let cost = driver.config.gpus[context.gpu].context_bytes + limits;
    driver.state.give_back(driver.charge, context.gpu, cost);
    note(driver, &tables, context.gpu);
}

impl Tables {
    /// Whether a context has no work left.
    pub(crate) fn is_drained(&self, context: Handle<Context>) -> bool {
        self.contexts.get(context).is_none_or(|context| context.pending == 0)
    }

    /// A new stream.
    pub(crate) fn add_stream(
        &mut self,
        context: Handle<Context>,
        kind: StreamKind,
        flags: u32,
        priority: i32,
    ) -> Handle<Stream> {
        let id = self.next_id();
        let stream = self.streams.insert(Stream {
            context,
            kind,
            flags,
            priority,
            id,
            tail: None,
            pending: 0,
            part: None,
        });
        if let Some(context) = self.contexts.get_mut(context) {
            context.streams.push(stream);
        }
        stream
    }

    /// The default stream of a thread.
    pub(crate) fn per_thread_stream(
        &mut self,
        context: Handle<Context>,
        thread: u64,
    ) -> Handle<Stream> {
        let known = self.contexts.get(context).and_then(|c| c.per_thread.get(&thread).copied());
        known.unwrap_or_else(|| {
            let stream = self.add_stream(context, StreamKind::Blocking, 0, 0);
            if let Some(context) = self.contexts.get_mut(context) {
                context.per_thread.insert(thread, stream);
            }
            stream
        })
    }

    /// Lets GPU `gpu` reach the allocations of context `owner`, or no longer.
    fn open_to_peers(&mut self, owner: Handle<Context>, gpu: usize, open: bool) {
        let regions: Vec<(u64, usize)> = self
            .space
            .regions()
            .filter(|(_, region)| {
                matches!(region.kind, RegionKind::Allocation { context, .. } if context == owner)
            })
            .map(|(start, region)| (start, region.length))
            .collect();
        for (start, length) in regions {
            // An allocation is one mapping as long as its region.
            let _ = self.space.set_access(start, length, gpu, open, open);
        }
    }
}
