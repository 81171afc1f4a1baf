//! The symbols that Slurm looks for in a plugin.
//!
//! Owns: the fence between C and the plugin: every function here passes [`guard`], which turns a
//! panic into a log line and an error code. Has no logic of its own; `dispatch` has.

// Functions and data that C sees by name.
#![allow(unsafe_code)]

use crate::dispatch::{self, Hook};
use crate::slurm::{self, Handle};
use crate::{option, sys, version};
use std::any::Any;
use std::ffi::{CStr, c_char, c_int, c_long};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};

/// Slurm takes a plugin that has these four.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub(crate) static plugin_name: [u8; 4] = *b"acb\0";

/// The kind of plugin.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub(crate) static plugin_type: [u8; 6] = *b"spank\0";

/// Slurm refuses a plugin of another version; it looks once the plugin is loaded.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub(crate) static plugin_version: AtomicU32 = AtomicU32::new(version::BUILT_FOR);

/// The plugin's own version, which nobody checks.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub(crate) static spank_plugin_version: u32 = 1;

/// Runs while the plugin is loaded, before Slurm looks at `plugin_version`.
#[used]
#[unsafe(link_section = ".init_array")]
static ON_LOAD: extern "C" fn() = on_load;

extern "C" fn on_load() {
    // SAFETY: a search in what is loaded, by a name that ends with a NUL.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"slurm_api_version".as_ptr()) };
    if found.is_null() {
        return;
    }
    // SAFETY: slurm.h declares `long slurm_api_version(void)`.
    let api_version: extern "C" fn() -> c_long = unsafe { std::mem::transmute(found) };
    let running = u32::try_from(api_version()).ok().and_then(version::of_api);
    if let Some(running) = running
        && running >> 8 != version::BUILT_FOR >> 8
    {
        plugin_version.store(running, Ordering::Relaxed);
    }
}

macro_rules! callbacks {
    ($($name:ident: $hook:ident,)*) => {$(
        #[doc = concat!("Slurm's callback `", stringify!($name), "`.")]
        ///
        /// # Safety
        /// Called by Slurm alone, with its handle and the words behind the plugin in plugstack.conf.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name(
            spank: sys::spank_t,
            count: c_int,
            words: *mut *mut c_char,
        ) -> c_int {
            guard(|| Hook::$hook.failure(), || {
                // SAFETY: the handle of this call, which it does not outlive.
                let handle = unsafe { Handle::new(spank) };
                // SAFETY: so many words, as Slurm promises.
                let words = unsafe { strings(count, words) };
                dispatch::call(Hook::$hook, &handle, &words)
            })
        }
    )*};
}

callbacks! {
    slurm_spank_init: Init,
    slurm_spank_init_post_opt: InitPostOpt,
    slurm_spank_job_prolog: JobProlog,
    slurm_spank_task_init: TaskInit,
    slurm_spank_task_post_fork: TaskPostFork,
    slurm_spank_job_epilog: JobEpilog,
}

/// Slurm calls it for each `--acb`.
///
/// # Safety
/// Called by Slurm alone; `value` is null or ends with a NUL.
pub(crate) unsafe extern "C" fn option_given(
    _: c_int,
    value: *const c_char,
    remote: c_int,
) -> c_int {
    guard(
        || -1,
        || {
            let value = match value.is_null() {
                true => String::new(),
                // SAFETY: not null, and ended with a NUL.
                false => unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned(),
            };
            dispatch::option(
                &value,
                if remote == 0 { option::Side::Local } else { option::Side::Node },
            )
        },
    )
}

/// No panic reaches Slurm.
fn guard(failure: impl FnOnce() -> c_int, body: impl FnOnce() -> c_int) -> c_int {
    fenced(body).unwrap_or_else(|panic| {
        slurm::error(&format!("internal error, please report it: {panic}"));
        fenced(failure).unwrap_or(0)
    })
}

fn fenced(body: impl FnOnce() -> c_int) -> Result<c_int, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| text(&*panic).to_owned())
}

fn text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

/// # Safety
/// `words` points to `count` strings, each ended with a NUL, or `count` is 0.
unsafe fn strings(count: c_int, words: *mut *mut c_char) -> Vec<String> {
    (0..usize::try_from(count).unwrap_or(0))
        .map(|index| {
            // SAFETY: within the array, as the caller promises.
            let word = unsafe { *words.add(index) };
            // SAFETY: a string ended with a NUL, as the caller promises.
            unsafe { CStr::from_ptr(word) }.to_string_lossy().into_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_texts() {
        assert_eq!(fenced(|| 3), Ok(3));
        assert_eq!(fenced(|| panic!("one")), Err("one".to_owned()));
        assert_eq!(fenced(|| panic!("{} {}", "one", 2)), Err("one 2".to_owned()));
        let odd = fenced(|| std::panic::panic_any(7));
        assert_eq!(odd, Err("a panic without a message".to_owned()));
    }
}
