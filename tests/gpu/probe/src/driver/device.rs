//! A GPU with its primary context, and owners of what lives in it: memory, streams, events, kernels.
//! Each gives its thing back when dropped. Mapped memory is `driver::mapped`.
// The driver's handles get owners.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_uint, c_void};
use std::sync::OnceLock;

use super::table::{DevicePtr, Driver, DriverError, Handle, NOT_READY};

type Result<T> = std::result::Result<T, DriverError>;

/// CU_STREAM_NON_BLOCKING.
const NON_BLOCKING: c_uint = 1;

static DRIVER: OnceLock<Driver> = OnceLock::new();

/// The driver, initialised, opened at the first call.
pub(crate) fn driver() -> Result<&'static Driver> {
    if let Some(driver) = DRIVER.get() {
        return Ok(driver);
    }
    let driver = Driver::open()?;
    // SAFETY: 0 is the only flag there is.
    unsafe { driver.cuInit(0) }?;
    Ok(DRIVER.get_or_init(|| driver))
}

/// A device attribute's number in `CUdevice_attribute`.
#[derive(Clone, Copy)]
pub(crate) enum Attribute {
    Multiprocessors = 16,
    Major = 75,
    Minor = 76,
    MemoryManagement = 102,
}

/// Device 0 with its primary context current in this thread.
pub(crate) struct Gpu {
    pub(crate) driver: &'static Driver,
    pub(crate) ordinal: i32,
    device: i32,
}

/// Free and total bytes of the device.
#[derive(Clone, Copy)]
pub(crate) struct MemoryInfo {
    pub(crate) free: u64,
    pub(crate) total: u64,
}

impl Gpu {
    /// Device 0; its primary context becomes current.
    pub(crate) fn open() -> Result<Self> {
        let driver = driver()?;
        let mut device = 0;
        let mut context = std::ptr::null_mut();
        // SAFETY: pointers to live locals; the context that is made current was just retained.
        unsafe {
            driver.cuDeviceGet(&mut device, 0)?;
            driver.cuDevicePrimaryCtxRetain(&mut context, device)?;
            driver.cuCtxSetCurrent(context)?;
        }
        Ok(Self { driver, ordinal: 0, device })
    }

    pub(crate) fn name(&self) -> Result<String> {
        let mut text = [0; 256];
        // SAFETY: a buffer of the length that is passed.
        unsafe { self.driver.cuDeviceGetName(text.as_mut_ptr(), 256, self.device) }?;
        // SAFETY: the driver terminates it within the buffer.
        Ok(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
    }

    /// `0000:3b:00.0`, in lower case as /sys writes it.
    pub(crate) fn pci(&self) -> Result<String> {
        let mut text = [0; 64];
        // SAFETY: a buffer of the length that is passed.
        unsafe { self.driver.cuDeviceGetPCIBusId(text.as_mut_ptr(), 64, self.device) }?;
        // SAFETY: the driver terminates it within the buffer.
        Ok(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().to_lowercase())
    }

    pub(crate) fn uuid(&self) -> Result<String> {
        let mut bytes = [0u8; 16];
        // SAFETY: a live local of 16 bytes.
        unsafe { self.driver.cuDeviceGetUuid_v2(&mut bytes, self.device) }?;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        Ok(format!("GPU-{}", parts.join("-")))
    }

    pub(crate) fn attribute(&self, attribute: Attribute) -> Result<i32> {
        let mut value = 0;
        // SAFETY: a live local.
        unsafe { self.driver.cuDeviceGetAttribute(&mut value, attribute as i32, self.device) }?;
        Ok(value)
    }

    pub(crate) fn memory(&self) -> Result<MemoryInfo> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: live locals.
        unsafe { self.driver.cuMemGetInfo_v2(&mut free, &mut total) }?;
        Ok(MemoryInfo { free: free as u64, total: total as u64 })
    }

    /// Plain device memory.
    pub(crate) fn allocate(&self, bytes: u64) -> Result<DeviceMemory> {
        let mut at = 0;
        // SAFETY: a live local.
        unsafe { self.driver.cuMemAlloc_v2(&mut at, bytes as usize) }?;
        Ok(DeviceMemory { driver: self.driver, at, bytes })
    }

    /// Page-locked host memory of the driver's own.
    pub(crate) fn pinned(&self, bytes: u64) -> Result<Pinned> {
        let mut at = std::ptr::null_mut();
        // SAFETY: a live local; portable (1), so that any context may use it.
        unsafe { self.driver.cuMemHostAlloc(&mut at, bytes as usize, 1) }?;
        Ok(Pinned { driver: self.driver, at: at.cast(), bytes })
    }

    pub(crate) fn stream(&self) -> Result<Stream> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a live local.
        unsafe { self.driver.cuStreamCreate(&mut handle, NON_BLOCKING) }?;
        Ok(Stream { driver: self.driver, handle })
    }

    pub(crate) fn event(&self) -> Result<Event> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a live local.
        unsafe { self.driver.cuEventCreate(&mut handle, 0) }?;
        Ok(Event { driver: self.driver, handle })
    }

    /// Loads PTX. Modules stay for the life of the process.
    pub(crate) fn module(&self, ptx: &str) -> Result<Module> {
        let text = CString::new(ptx).expect("the probe's PTX has no NUL bytes");
        let mut handle = std::ptr::null_mut();
        // SAFETY: NUL-terminated PTX, which the driver copies; a live local.
        unsafe { self.driver.cuModuleLoadData(&mut handle, text.as_ptr().cast()) }?;
        Ok(Module { driver: self.driver, handle })
    }

    /// Blocking copy to the device.
    pub(crate) fn write(&self, to: DevicePtr, from: &[u64]) -> Result<()> {
        // SAFETY: the slice is live for the blocking call; a bad device address is the driver's error.
        unsafe { self.driver.cuMemcpyHtoD_v2(to, from.as_ptr().cast(), size_of_val(from)) }
    }

    /// Blocking copy from the device.
    pub(crate) fn read(&self, from: DevicePtr, words: u64) -> Result<Vec<u64>> {
        let mut data = vec![0u64; words as usize];
        // SAFETY: a live vector of that size.
        unsafe { self.driver.cuMemcpyDtoH_v2(data.as_mut_ptr().cast(), from, words as usize * 8) }?;
        Ok(data)
    }
}

/// Plain device memory, freed when dropped.
pub(crate) struct DeviceMemory {
    driver: &'static Driver,
    pub(crate) at: DevicePtr,
    pub(crate) bytes: u64,
}

impl DeviceMemory {
    /// Gives it back, with the driver's word on it.
    pub(crate) fn free(mut self) -> Result<()> {
        let at = std::mem::take(&mut self.at);
        // SAFETY: this allocation, given up here once.
        unsafe { self.driver.cuMemFree_v2(at) }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.at != 0 {
            // SAFETY: this allocation, given up here once. A failure has no remedy.
            let _ = unsafe { self.driver.cuMemFree_v2(self.at) };
        }
    }
}

/// Page-locked host memory of the driver's, freed when dropped.
pub(crate) struct Pinned {
    driver: &'static Driver,
    at: *mut u8,
    pub(crate) bytes: u64,
}

impl Pinned {
    pub(crate) fn at(&self, offset: u64) -> *mut c_void {
        assert!(offset <= self.bytes, "offset {offset} is beyond the {} bytes", self.bytes);
        // SAFETY: within the allocation or one past its end.
        unsafe { self.at.add(offset as usize) }.cast()
    }

    /// As words. Only while nothing on the device writes to it.
    pub(crate) fn words(&mut self) -> &mut [u64] {
        // SAFETY: the driver's allocation of this size, page-aligned, borrowed for as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast(), self.bytes as usize / 8) }
    }

    /// Gives it back, with the driver's word on it.
    pub(crate) fn free(mut self) -> Result<()> {
        let at = std::mem::replace(&mut self.at, std::ptr::null_mut());
        // SAFETY: this allocation, given up here once.
        unsafe { self.driver.cuMemFreeHost(at.cast()) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if !self.at.is_null() {
            // SAFETY: this allocation, given up here once. A failure has no remedy.
            let _ = unsafe { self.driver.cuMemFreeHost(self.at.cast()) };
        }
    }
}

/// A non-blocking stream.
pub(crate) struct Stream {
    driver: &'static Driver,
    pub(crate) handle: Handle,
}

impl Stream {
    pub(crate) fn synchronize(&self) -> Result<()> {
        // SAFETY: a live stream.
        unsafe { self.driver.cuStreamSynchronize(self.handle) }
    }

    pub(crate) fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: a live stream and event.
        unsafe { self.driver.cuStreamWaitEvent(self.handle, event.handle, 0) }
    }

    /// Queues a copy to the device; the host memory outlives the stream's work (the caller synchronises).
    pub(crate) fn copy_in(&self, to: DevicePtr, from: &Pinned, at: u64, bytes: u64) -> Result<()> {
        assert!(at + bytes <= from.bytes, "copy beyond pinned memory");
        // SAFETY: within the pinned allocation; the probe synchronises before it frees anything.
        unsafe { self.driver.cuMemcpyHtoDAsync_v2(to, from.at(at), bytes as usize, self.handle) }
    }

    /// Queues a copy from the device, as `copy_in`.
    pub(crate) fn copy_out(&self, to: &Pinned, at: u64, from: DevicePtr, bytes: u64) -> Result<()> {
        assert!(at + bytes <= to.bytes, "copy beyond pinned memory");
        // SAFETY: as in `copy_in`.
        unsafe { self.driver.cuMemcpyDtoHAsync_v2(to.at(at), from, bytes as usize, self.handle) }
    }

    pub(crate) fn copy_within(&self, to: DevicePtr, from: DevicePtr, bytes: u64) -> Result<()> {
        // SAFETY: device addresses: a bad one is the driver's error.
        unsafe { self.driver.cuMemcpyDtoDAsync_v2(to, from, bytes as usize, self.handle) }
    }

    pub(crate) fn clear(&self, at: DevicePtr, bytes: u64) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.driver.cuMemsetD8Async(at, 0, bytes as usize, self.handle) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: this stream, given up here once. A failure has no remedy.
        let _ = unsafe { self.driver.cuStreamDestroy_v2(self.handle) };
    }
}

/// An event with a time stamp.
pub(crate) struct Event {
    driver: &'static Driver,
    handle: Handle,
}

impl Event {
    pub(crate) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: a live event and stream.
        unsafe { self.driver.cuEventRecord(self.handle, stream.handle) }
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        // SAFETY: a live event.
        unsafe { self.driver.cuEventSynchronize(self.handle) }
    }

    /// Whether the work before it is done.
    pub(crate) fn done(&self) -> Result<bool> {
        // SAFETY: a live event.
        match unsafe { self.driver.cuEventQuery(self.handle) } {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Some(NOT_READY) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Seconds of device time since an earlier event; both are done.
    pub(crate) fn seconds_since(&self, earlier: &Event) -> Result<f64> {
        let mut ms = 0f32;
        // SAFETY: live events and a live local.
        unsafe { self.driver.cuEventElapsedTime(&mut ms, earlier.handle, self.handle) }?;
        Ok(f64::from(ms) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: this event, given up here once. A failure has no remedy.
        let _ = unsafe { self.driver.cuEventDestroy_v2(self.handle) };
    }
}

/// A loaded module.
pub(crate) struct Module {
    driver: &'static Driver,
    handle: Handle,
}

impl Module {
    pub(crate) fn kernel(&self, name: &str) -> Result<Kernel> {
        let name = CString::new(name).expect("kernel names have no NUL bytes");
        let mut handle = std::ptr::null_mut();
        // SAFETY: a live module, a C string, a live local.
        unsafe { self.driver.cuModuleGetFunction(&mut handle, self.handle, name.as_ptr()) }?;
        Ok(Kernel { driver: self.driver, handle })
    }
}

/// A kernel whose parameters are all 64 bits wide.
pub(crate) struct Kernel {
    driver: &'static Driver,
    handle: Handle,
}

/// Blocks in x and y, and threads of a block.
#[derive(Clone, Copy)]
pub(crate) struct Grid(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl Kernel {
    pub(crate) fn launch(&self, stream: &Stream, grid: Grid, arguments: &[u64]) -> Result<()> {
        let mut values = [0u64; 8];
        values[..arguments.len()].copy_from_slice(arguments);
        let mut pointers: [*mut c_void; 8] = std::array::from_fn(|i| (&raw mut values[i]).cast());
        // SAFETY: the driver copies the parameters before it returns; all the probe's kernels take 64-bit ones,
        // eight at most.
        unsafe {
            self.driver.cuLaunchKernel(
                self.handle,
                grid.0,
                grid.1,
                1,
                grid.2,
                1,
                1,
                0,
                stream.handle,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
    }
}

/// A step of the driver's checkpoint of another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CheckpointStep {
    Lock,
    Checkpoint,
    Restore,
    Unlock,
}

/// Takes another process through a step of the driver's checkpoint.
pub(crate) fn checkpoint(driver: &Driver, pid: u32, step: CheckpointStep) -> Result<()> {
    // Every step's arguments have 64 bytes, zero but for the lock's time limit in milliseconds at their beginning.
    let mut arguments = [0u64; 8];
    if step == CheckpointStep::Lock {
        arguments[0] = 10_000;
    }
    let pointer = arguments.as_mut_ptr().cast::<c_void>();
    let pid = pid as i32;
    // SAFETY: arguments of the size and alignment that the driver's header gives.
    unsafe {
        match step {
            CheckpointStep::Lock => driver.cuCheckpointProcessLock(pid, pointer),
            CheckpointStep::Checkpoint => driver.cuCheckpointProcessCheckpoint(pid, pointer),
            CheckpointStep::Restore => driver.cuCheckpointProcessRestore(pid, pointer),
            CheckpointStep::Unlock => driver.cuCheckpointProcessUnlock(pid, pointer),
        }
    }
}

/// State of another process's checkpoint: running, locked, checkpointed, failed.
pub(crate) fn checkpoint_state(driver: &Driver, pid: u32) -> Result<i32> {
    let mut state = 0;
    // SAFETY: a live local.
    unsafe { driver.cuCheckpointProcessGetState(pid as i32, &mut state) }?;
    Ok(state)
}

/// The CUDA version of the driver: 12090 for 12.9.
pub(crate) fn version(driver: &Driver, version: &mut i32) -> Result<()> {
    // SAFETY: a live reference.
    unsafe { driver.cuDriverGetVersion(version) }
}
