//! What programs see: every symbol of the driver, under its own name.
//!
//! Owns: the trampolines of what is passed through, the `extern "C"` side of every hook, and the
//! one guard that keeps panics inside.
//! Does not own: what hooks do (`hooks`), or where calls go (`table`). Nothing here decides anything.
#![allow(unsafe_code)] // FFI: exported C functions, and the machine code of the trampolines.

use crate::hooks;
use crate::log::error;
use crate::table::{Index, SLOTS, resolve};
use acb_cuda_abi::{CuResult, driver_functions, sys};
use std::ffi::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Present in no real driver: by it the interposer knows another copy of itself.
#[unsafe(no_mangle)]
static acb_interposer: u32 = 1;

/// Runs a hook; a panic becomes CUDA_ERROR_UNKNOWN.
#[inline(always)]
fn guard(symbol: &'static str, hook: impl FnOnce() -> CuResult) -> CuResult {
    match catch_unwind(AssertUnwindSafe(hook)) {
        Ok(result) => result,
        Err(cause) => panicked(symbol, &*cause),
    }
}

#[cold]
fn panicked(symbol: &str, cause: &(dyn std::any::Any + Send)) -> CuResult {
    let text = cause
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| cause.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    // A panic while the panic is told must not leave either.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        error!(
            "{symbol}: internal error in the interposer ({text}); CUDA_ERROR_UNKNOWN is returned. Please report this"
        );
    }));
    CuResult::UNKNOWN
}

/// Comes here from a trampoline whose slot is empty, with the symbol's index in r11 and everything
/// else as the program left it; fills the slot and goes on to the driver with everything as it was.
#[unsafe(naked)]
unsafe extern "C" fn resolve_and_go_on() {
    std::arch::naked_asm!(
        // The program's call left rsp 8 short of a multiple of 16; rbp makes it good.
        "push rbp",
        "mov rbp, rsp",
        "sub rsp, 192",
        // Every register that can carry an argument: six integers, rax, eight vectors.
        "mov [rsp], rdi",
        "mov [rsp + 8], rsi",
        "mov [rsp + 16], rdx",
        "mov [rsp + 24], rcx",
        "mov [rsp + 32], r8",
        "mov [rsp + 40], r9",
        "mov [rsp + 48], rax",
        "movups [rsp + 64], xmm0",
        "movups [rsp + 80], xmm1",
        "movups [rsp + 96], xmm2",
        "movups [rsp + 112], xmm3",
        "movups [rsp + 128], xmm4",
        "movups [rsp + 144], xmm5",
        "movups [rsp + 160], xmm6",
        "movups [rsp + 176], xmm7",
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
        "movups xmm0, [rsp + 64]",
        "movups xmm1, [rsp + 80]",
        "movups xmm2, [rsp + 96]",
        "movups xmm3, [rsp + 112]",
        "movups xmm4, [rsp + 128]",
        "movups xmm5, [rsp + 144]",
        "movups xmm6, [rsp + 160]",
        "movups xmm7, [rsp + 176]",
        "leave",
        "jmp r11",
        resolve = sym resolve_guarded,
    )
}

extern "C" fn resolve_guarded(index: usize) -> usize {
    catch_unwind(|| resolve(index)).unwrap_or(broken as *const () as usize)
}

extern "C" fn broken() -> CuResult {
    CuResult::UNKNOWN
}

macro_rules! exports {
    ($([$class:ident] $symbol:ident $text:literal $name:literal $version:literal $form:ident
       ($($parameter:ident: $kind:ty),*);)*) => {
        $( export! { $class $symbol $text $form ($($parameter: $kind),*) } )*

        /// Address of the hook of the symbol at `index`; `None` for what is passed through.
        pub(crate) fn hook(index: usize) -> Option<usize> {
            $( hook_of! { $class index $symbol } )*
            None
        }
    };
}

macro_rules! export {
    (pass $symbol:ident $text:literal $form:ident ($($parameter:ident: $kind:ty),*)) => {
        #[allow(non_snake_case)]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol() {
            std::arch::naked_asm!(
                "mov r11, qword ptr [rip + {slots} + 8 * {index}]",
                "test r11, r11",
                "je 2f",
                "jmp r11",
                "2:",
                "mov r11d, {index}",
                "jmp {resolve}",
                slots = sym SLOTS,
                index = const Index::$symbol as usize,
                resolve = sym resolve_and_go_on,
            )
        }
    };
    (submit $symbol:ident $text:literal $form:ident ($($parameter:ident: $kind:ty),*)) => {
        submission! { $symbol $text $form ($($parameter: $kind),*) {} }
    };
    (copy $symbol:ident $text:literal $form:ident ($($parameter:ident: $kind:ty),*)) => {
        submission! { $symbol $text $form ($($parameter: $kind),*) {
            if crate::pager::APART.load(std::sync::atomic::Ordering::Relaxed) {
                // SAFETY: the program's own arguments, unchanged.
                if let Some(result) = unsafe { hooks::copy::$symbol($($parameter),*) } {
                    return result;
                }
            }
        } }
    };
    (wait $symbol:ident $text:literal $form:ident ($($parameter:ident: $kind:ty),*)) => {
        #[allow(non_snake_case)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol($($parameter: $kind),*) -> CuResult {
            guard($text, || {
                let _whole = crate::environment::uncancelled();
                // SAFETY: the program's own arguments, unchanged.
                hooks::wait::pass(|| unsafe { crate::table::real::$symbol($($parameter),*) })
            })
        }
    };
    ($class:ident $symbol:ident $text:literal $form:ident ($($parameter:ident: $kind:ty),*)) => {
        #[allow(non_snake_case, clippy::too_many_arguments)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol($($parameter: $kind),*) -> CuResult {
            guard($text, || {
                let _whole = crate::environment::uncancelled();
                // The parent's locks and its socket are not for a forked child.
                if crate::process::is_detached() {
                    return CuResult::NOT_INITIALIZED;
                }
                // SAFETY: the program's own arguments, unchanged.
                unsafe { hooks::$class::$symbol($($parameter),*) }
            })
        }
    };
}

/// A call that passes the gate, when `first` has been done.
macro_rules! submission {
    ($symbol:ident $text:literal $form:ident ($($parameter:ident: $kind:ty),*) { $($first:tt)* }) => {
        #[allow(non_snake_case, clippy::too_many_arguments)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol($($parameter: $kind),*) -> CuResult {
            guard($text, || {
                let asynchronous = false $( || hooks::submit::is_stream(&$parameter) )*;
                hooks::submit::note_form(acb_cuda_abi::StreamForm::$form);
                // SAFETY: parameters of a submission are what the driver's header says they are.
                $( unsafe { hooks::submit::note_parameter(&$parameter) }; )*
                $($first)*
                // SAFETY: the program's own arguments, unchanged.
                let call = move || unsafe { crate::table::real::$symbol($($parameter),*) };
                match const { hooks::unasked::grows($text) } {
                    true => hooks::submit::pass_growing($text, asynchronous, call),
                    false => hooks::submit::pass($text, asynchronous, call),
                }
            })
        }
    };
}

macro_rules! hook_of {
    (pass $index:ident $symbol:ident) => {};
    ($class:ident $index:ident $symbol:ident) => {
        if $index == Index::$symbol as usize {
            return Some($symbol as *const () as usize);
        }
    };
}

driver_functions!(exports);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        assert_eq!(guard("cuTest", || panic!("on purpose")), CuResult::UNKNOWN);
        assert_eq!(guard("cuTest", || CuResult::NOT_READY), CuResult::NOT_READY);
    }

    #[test]
    fn hooks_are_those_of_the_list() {
        for (index, function) in acb_cuda_abi::FUNCTIONS.iter().enumerate() {
            assert_eq!(
                hook(index).is_some(),
                function.class != acb_cuda_abi::Class::Pass,
                "{}",
                function.symbol
            );
        }
    }
}
