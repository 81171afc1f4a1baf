//! What programs see: every function of NVML, under its own name.
//!
//! Owns: the trampolines, and the `extern "C"` side of the functions that are answered here.
#![allow(unsafe_code)] // FFI: exported C functions, and the machine code of the trampolines.
#![allow(non_snake_case)] // the functions keep their names

use crate::generated::functions::nvml_functions;
use crate::library::{SLOTS, resolve};
use crate::memory::{self, Memory, MemoryV2};
use crate::numbers;
use crate::processes::{ProcessV1, ProcessV2, running};
use std::ffi::{CStr, c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Present in no real NVML: by it this library knows another copy of itself.
#[unsafe(no_mangle)]
static acb_nvml: u32 = 1;

/// NVML_ERROR_UNKNOWN.
const UNKNOWN: c_int = 999;

/// The program's nvmlDeviceGetMemoryInfo.
///
/// # Safety
/// Called with a device of NVML's, or NULL, and a place for the numbers, or NULL.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetMemoryInfo(
    device: *mut c_void,
    to: *mut Memory,
) -> c_int {
    // SAFETY: the program's own arguments.
    guard(|| unsafe { memory::info(device, to) })
}

/// The program's nvmlDeviceGetMemoryInfo_v2.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: *mut c_void,
    to: *mut MemoryV2,
) -> c_int {
    // SAFETY: the program's own arguments.
    guard(|| unsafe { memory::info_v2(device, to) })
}

macro_rules! numbered {
    ($($name:ident)*) => {$(
        /// The program's function of that name.
        ///
        /// # Safety
        /// Called with a number, and a place for the device, or NULL.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name(index: c_uint, device: *mut *mut c_void) -> c_int {
            // SAFETY: the program's own arguments.
            guard(|| unsafe { numbers::by_index(Index::$name, index, device) })
        }
    )*};
}

numbered!(nvmlDeviceGetHandleByIndex nvmlDeviceGetHandleByIndex_v2);

/// The program's nvmlDeviceGetIndex.
///
/// # Safety
/// Called with a device of NVML's, or NULL, and a place for the number, or NULL.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetIndex(device: *mut c_void, to: *mut c_uint) -> c_int {
    // SAFETY: the program's own arguments.
    guard(|| unsafe { numbers::index_of(device, to) })
}

macro_rules! lists {
    ($($name:ident: $form:ident;)*) => {$(
        /// The program's function of that name.
        ///
        /// # Safety
        /// Called with a device of NVML's, the number of entries, and room for them; or NULL.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name(
            device: *mut c_void,
            count: *mut c_uint,
            entries: *mut $form,
        ) -> c_int {
            // SAFETY: the program's own arguments.
            guard(|| unsafe { running(Index::$name, device, count, entries) })
        }
    )*};
}

lists! {
    nvmlDeviceGetComputeRunningProcesses: ProcessV1;
    nvmlDeviceGetComputeRunningProcesses_v2: ProcessV2;
    nvmlDeviceGetComputeRunningProcesses_v3: ProcessV2;
    nvmlDeviceGetGraphicsRunningProcesses: ProcessV1;
    nvmlDeviceGetGraphicsRunningProcesses_v2: ProcessV2;
    nvmlDeviceGetGraphicsRunningProcesses_v3: ProcessV2;
    nvmlDeviceGetMPSComputeRunningProcesses: ProcessV1;
    nvmlDeviceGetMPSComputeRunningProcesses_v2: ProcessV2;
    nvmlDeviceGetMPSComputeRunningProcesses_v3: ProcessV2;
}

fn guard(call: impl FnOnce() -> c_int) -> c_int {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or(UNKNOWN)
}

/// Comes here from a trampoline whose slot is empty, with the function's index in r11 and everything
/// else as the program left it; fills the slot and goes on to NVML with everything as it was. No
/// function of NVML takes floating-point numbers.
#[unsafe(naked)]
unsafe extern "C" fn resolve_and_go_on() {
    std::arch::naked_asm!(
        // The program's call left rsp 8 short of a multiple of 16; rbp makes it good.
        "push rbp",
        "mov rbp, rsp",
        "sub rsp, 64",
        "mov [rsp], rdi",
        "mov [rsp + 8], rsi",
        "mov [rsp + 16], rdx",
        "mov [rsp + 24], rcx",
        "mov [rsp + 32], r8",
        "mov [rsp + 40], r9",
        "mov [rsp + 48], rax",
        "mov rdi, r11",
        "call {resolve}",
        "mov r11, rax",
        "mov rdi, [rsp]",
        "mov rsi, [rsp + 8]",
        "mov rdx, [rsp + 16]",
        "mov rcx, [rsp + 24]",
        "mov r8, [rsp + 32]",
        "mov r9, [rsp + 40]",
        "mov rax, [rsp + 48]",
        "leave",
        "jmp r11",
        resolve = sym resolve_guarded,
    )
}

extern "C" fn resolve_guarded(index: usize) -> usize {
    catch_unwind(|| resolve(index)).unwrap_or(broken as *const () as usize)
}

extern "C" fn broken() -> c_int {
    UNKNOWN
}

macro_rules! exports {
    (answered: $($answered:ident)*; passed: $($passed:ident)*;) => {
        /// Position of each function in the table.
        #[allow(non_camel_case_types, dead_code, clippy::enum_variant_names)]
        #[derive(Clone, Copy)]
        pub(crate) enum Index { $($answered,)* $($passed),* }

        /// Their names.
        pub(crate) const NAMES: &[&CStr] = &[
            $(text(concat!(stringify!($answered), "\0")),)* $(text(concat!(stringify!($passed), "\0"))),*
        ];

        $(
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $passed() {
                std::arch::naked_asm!(
                    "mov r11, qword ptr [rip + {slots} + 8 * {index}]",
                    "test r11, r11",
                    "je 2f",
                    "jmp r11",
                    "2:",
                    "mov r11d, {index}",
                    "jmp {resolve}",
                    slots = sym SLOTS,
                    index = const Index::$passed as usize,
                    resolve = sym resolve_and_go_on,
                )
            }
        )*
    };
}

const fn text(name: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("a name of a function holds no NUL"),
    }
}

nvml_functions!(exports);
