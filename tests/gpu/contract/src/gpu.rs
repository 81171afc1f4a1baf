//! The driver as cases use it: values instead of pointers, and codes as errors.
#![allow(unsafe_code)] // reads and writes pinned memory

use std::ffi::{CString, c_void};
use std::path::Path;

use crate::driver::{Address, Driver, Handle};

/// What a call gives, or the driver's code.
pub(crate) type Answer<T = ()> = Result<T, u32>;

/// The codes that cases expect.
pub(crate) mod code {
    pub(crate) const INVALID_VALUE: u32 = 1;
    pub(crate) const OUT_OF_MEMORY: u32 = 2;
    pub(crate) const NOT_INITIALIZED: u32 = 3;
    pub(crate) const INVALID_IMAGE: u32 = 200;
    pub(crate) const INVALID_CONTEXT: u32 = 201;
    pub(crate) const NO_BINARY: u32 = 209;
    pub(crate) const FILE_NOT_FOUND: u32 = 301;
    pub(crate) const INVALID_PTX: u32 = 218;
    pub(crate) const INVALID_HANDLE: u32 = 400;
    pub(crate) const NOT_FOUND: u32 = 500;
    pub(crate) const NOT_READY: u32 = 600;
    pub(crate) const ILLEGAL_ADDRESS: u32 = 700;
    pub(crate) const ALREADY_REGISTERED: u32 = 712;
    pub(crate) const NOT_REGISTERED: u32 = 713;
    pub(crate) const MISALIGNED_ADDRESS: u32 = 716;
    pub(crate) const CAPTURE_UNSUPPORTED: u32 = 900;
    pub(crate) const CAPTURE_INVALIDATED: u32 = 901;
    pub(crate) const CAPTURE_MERGE: u32 = 902;
    pub(crate) const CAPTURE_UNMATCHED: u32 = 903;
    pub(crate) const CAPTURE_UNJOINED: u32 = 904;
    pub(crate) const CAPTURE_ISOLATION: u32 = 905;
    pub(crate) const CAPTURE_IMPLICIT: u32 = 906;
    pub(crate) const CAPTURED_EVENT: u32 = 907;
    pub(crate) const CAPTURE_WRONG_THREAD: u32 = 908;
    pub(crate) const UPDATE_FAILURE: u32 = 910;
}

/// The kernels, as text that ends with a zero.
pub(crate) const KERNELS: &str = concat!(include_str!("../../../workloads/kernels.ptx"), "\0");

/// A driver with device 0's primary context current and the kernels loaded.
pub(crate) struct Gpu {
    pub(crate) driver: Driver,
    pub(crate) context: Handle,
    pub(crate) module: Handle,
}

pub(crate) fn check(code: u32) -> Answer {
    if code == 0 { Ok(()) } else { Err(code) }
}

impl Gpu {
    /// Brings everything up.
    pub(crate) fn open(path: &Path) -> Result<Gpu, String> {
        let driver = Driver::open(path)?;
        let say = |call: &'static str| move |code: u32| format!("{call}: error {code}");
        check(driver.cuInit(0)).map_err(say("cuInit"))?;
        let mut context = 0;
        check(driver.cuDevicePrimaryCtxRetain(&raw mut context, 0))
            .map_err(say("cuDevicePrimaryCtxRetain"))?;
        check(driver.cuCtxSetCurrent(context)).map_err(say("cuCtxSetCurrent"))?;
        let mut module = 0;
        check(driver.cuModuleLoadData(&raw mut module, KERNELS.as_ptr().cast()))
            .map_err(say("cuModuleLoadData"))?;
        Ok(Gpu { driver, context, module })
    }

    pub(crate) fn alloc(&self, bytes: usize) -> Answer<Address> {
        let mut pointer = 0;
        check(self.driver.cuMemAlloc_v2(&raw mut pointer, bytes)).map(|()| pointer)
    }

    pub(crate) fn free(&self, pointer: Address) -> Answer {
        check(self.driver.cuMemFree_v2(pointer))
    }

    pub(crate) fn memory(&self) -> Answer<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        check(self.driver.cuMemGetInfo_v2(&raw mut free, &raw mut total)).map(|()| (free, total))
    }

    pub(crate) fn write(&self, to: Address, words: &[u64]) -> Answer {
        check(self.driver.cuMemcpyHtoD_v2(to, words.as_ptr().cast(), size_of_val(words)))
    }

    pub(crate) fn read(&self, from: Address, count: usize) -> Answer<Vec<u64>> {
        let mut words = vec![0_u64; count];
        let bytes = size_of_val(words.as_slice());
        check(self.driver.cuMemcpyDtoH_v2(words.as_mut_ptr().cast(), from, bytes)).map(|()| words)
    }

    pub(crate) fn copy(&self, to: Address, from: Address, bytes: usize) -> Answer {
        check(self.driver.cuMemcpyDtoD_v2(to, from, bytes))
    }

    pub(crate) fn synchronize(&self) -> Answer {
        check(self.driver.cuCtxSynchronize())
    }

    pub(crate) fn function(&self, name: &str) -> Answer<Handle> {
        let name = CString::new(name).map_err(|_| code::INVALID_VALUE)?;
        let mut function = 0;
        check(self.driver.cuModuleGetFunction(&raw mut function, self.module, name.as_ptr()))
            .map(|()| function)
    }

    /// Launches a kernel with 64-bit arguments.
    pub(crate) fn launch(&self, stream: Handle, name: &str, arguments: &[u64]) -> Answer {
        self.launch_shaped(self.function(name)?, stream, [64, 1, 1, 128, 1, 1], arguments)
    }

    pub(crate) fn launch_shaped(
        &self,
        function: Handle,
        stream: Handle,
        [gx, gy, gz, bx, by, bz]: [u32; 6],
        arguments: &[u64],
    ) -> Answer {
        let mut list: Vec<*mut c_void> =
            arguments.iter().map(|argument| (&raw const *argument).cast_mut().cast()).collect();
        let list = if list.is_empty() { std::ptr::null_mut() } else { list.as_mut_ptr() };
        let none = std::ptr::null_mut();
        check(self.driver.cuLaunchKernel(function, gx, gy, gz, bx, by, bz, 0, stream, list, none))
    }

    /// A flag for `acb_endless`.
    pub(crate) fn held(&self) -> Answer<Held<'_>> {
        let flag = self.pinned(1)?;
        flag.set(0, 0);
        Ok(Held(flag))
    }

    /// Holds a stream: what is handed in behind this waits until it is let go.
    pub(crate) fn hold(&self, stream: Handle) -> Answer<Held<'_>> {
        let held = self.held()?;
        let endless = self.function("acb_endless")?;
        self.launch_shaped(endless, stream, [1; 6], &[held.flag()]).map(|()| held)
    }

    pub(crate) fn stream(&self, flags: u32) -> Answer<Handle> {
        let mut stream = 0;
        check(self.driver.cuStreamCreate(&raw mut stream, flags)).map(|()| stream)
    }

    pub(crate) fn wait(&self, stream: Handle) -> Answer {
        check(self.driver.cuStreamSynchronize(stream))
    }

    pub(crate) fn query(&self, stream: Handle) -> Answer {
        check(self.driver.cuStreamQuery(stream))
    }

    pub(crate) fn event(&self) -> Answer<Handle> {
        let mut event = 0;
        check(self.driver.cuEventCreate(&raw mut event, 0)).map(|()| event)
    }

    pub(crate) fn record(&self, event: Handle, stream: Handle) -> Answer {
        check(self.driver.cuEventRecord(event, stream))
    }

    pub(crate) fn begin(&self, stream: Handle, mode: u32) -> Answer {
        check(self.driver.cuStreamBeginCapture_v2(stream, mode))
    }

    pub(crate) fn end(&self, stream: Handle) -> Answer<Handle> {
        let mut graph = 0;
        check(self.driver.cuStreamEndCapture(stream, &raw mut graph)).map(|()| graph)
    }

    /// None (0), active (1) or invalidated (2).
    pub(crate) fn captures(&self, stream: Handle) -> Answer<u32> {
        let mut status = 0;
        check(self.driver.cuStreamIsCapturing(stream, &raw mut status)).map(|()| status)
    }

    pub(crate) fn wait_event(&self, stream: Handle, event: Handle) -> Answer {
        check(self.driver.cuStreamWaitEvent(stream, event, 0))
    }

    pub(crate) fn instantiate(&self, graph: Handle, flags: u64) -> Answer<Handle> {
        let mut executable = 0;
        check(self.driver.cuGraphInstantiateWithFlags(&raw mut executable, graph, flags))
            .map(|()| executable)
    }

    pub(crate) fn replay(&self, executable: Handle, stream: Handle) -> Answer {
        check(self.driver.cuGraphLaunch(executable, stream))
    }

    pub(crate) fn elapsed(&self, start: Handle, end: Handle) -> Answer<f32> {
        let mut milliseconds = 0.0;
        check(self.driver.cuEventElapsedTime(&raw mut milliseconds, start, end))
            .map(|()| milliseconds)
    }

    pub(crate) fn pinned(&self, words: usize) -> Answer<Pinned<'_>> {
        let mut pointer = std::ptr::null_mut();
        check(self.driver.cuMemHostAlloc(&raw mut pointer, words * 8, 0))?;
        Ok(Pinned { gpu: self, pointer: pointer.cast(), words })
    }

    pub(crate) fn reserve(&self, size: usize) -> Answer<Address> {
        let mut pointer = 0;
        check(self.driver.cuMemAddressReserve(&raw mut pointer, size, 0, 0, 0)).map(|()| pointer)
    }

    pub(crate) fn granularity(&self) -> Answer<usize> {
        let mut size = 0;
        let properties = properties();
        let properties = (&raw const properties).cast();
        check(self.driver.cuMemGetAllocationGranularity(&raw mut size, properties, 0))
            .map(|()| size)
    }

    pub(crate) fn create(&self, size: usize) -> Answer<u64> {
        self.create_on(size, 0)
    }

    pub(crate) fn create_on(&self, size: usize, device: u32) -> Answer<u64> {
        let mut properties = properties();
        properties[1] |= u64::from(device) << 32;
        self.create_as(size, properties)
    }

    /// Memory that can be exported as a file descriptor.
    pub(crate) fn create_shareable(&self, size: usize) -> Answer<u64> {
        let mut properties = properties();
        properties[0] |= 1 << 32;
        self.create_as(size, properties)
    }

    fn create_as(&self, size: usize, properties: [u64; 4]) -> Answer<u64> {
        let mut handle = 0;
        let properties = (&raw const properties).cast();
        check(self.driver.cuMemCreate(&raw mut handle, size, properties, 0)).map(|()| handle)
    }

    pub(crate) fn map(&self, at: Address, size: usize, handle: u64) -> Answer {
        check(self.driver.cuMemMap(at, size, 0, handle, 0))
    }

    pub(crate) fn open_up(&self, at: Address, size: usize) -> Answer {
        self.open_to(at, size, 0)
    }

    pub(crate) fn open_to(&self, at: Address, size: usize, device: u32) -> Answer {
        // location: a device, its number; flags: read and write
        let description: [u32; 3] = [1, device, 3];
        check(self.driver.cuMemSetAccess(at, size, description.as_ptr().cast(), 1))
    }

    pub(crate) fn unmap(&self, at: Address, size: usize) -> Answer {
        check(self.driver.cuMemUnmap(at, size))
    }
}

/// `CUmemAllocationProp` for pinned memory of device 0.
fn properties() -> [u64; 4] {
    // type 1 and no handle types; location: a device (1), number 0; the rest zero
    [1, 1, 0, 0]
}

/// Pinned host memory.
pub(crate) struct Pinned<'a> {
    gpu: &'a Gpu,
    pointer: *mut u64,
    words: usize,
}

impl Pinned<'_> {
    pub(crate) fn pointer(&self) -> *mut c_void {
        self.pointer.cast()
    }

    pub(crate) fn get(&self, at: usize) -> u64 {
        assert!(at < self.words);
        // SAFETY: inside the memory; volatile, as the GPU writes it too.
        unsafe { self.pointer.add(at).read_volatile() }
    }

    pub(crate) fn set(&self, at: usize, value: u64) {
        assert!(at < self.words);
        // SAFETY: inside the memory; volatile, as the GPU reads it too.
        unsafe { self.pointer.add(at).write_volatile(value) };
    }
}

/// A kernel that runs until it is let go, whatever time the host takes meanwhile; at the latest when this goes.
pub(crate) struct Held<'a>(Pinned<'a>);

impl Held<'_> {
    pub(crate) fn let_go(&self) {
        self.0.set(0, 1);
    }

    /// What the kernel waits for.
    pub(crate) fn flag(&self) -> Address {
        self.0.pointer() as Address
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        // Fails after an error that broke the context; the process ends soon.
        let _ = self.gpu.driver.cuMemFreeHost(self.pointer.cast());
    }
}

/// What the process spent on processors, as itself and in the system.
pub(crate) fn processor_times() -> [std::time::Duration; 2] {
    // SAFETY: a structure of numbers, for which zeroes are valid, filled in by the call.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    [usage.ru_utime, usage.ru_stime]
        .map(|time| std::time::Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000))
}
