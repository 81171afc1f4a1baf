//! Slurm's functions, safe.
//!
//! Owns: the only calls into Slurm. C pointers stop here. Does not own what is done with the
//! answers.

// Calls into the program that has loaded the plugin.
#![allow(unsafe_code)]

use crate::sys;
use std::ffi::{CStr, CString, c_char, c_int};
use std::marker::PhantomData;

/// Where the plugin is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Context {
    /// srun.
    Srun,
    /// sbatch, salloc.
    Allocator,
    /// slurmstepd.
    Step,
    /// A process of its own for prolog or epilog.
    JobScript,
    /// slurmd, or something that later versions know.
    Other,
}

impl Context {
    /// That of this process.
    pub(crate) fn current() -> Self {
        // SAFETY: takes nothing and only reads Slurm's own state.
        match unsafe { sys::spank_context() } {
            sys::S_CTX_LOCAL => Self::Srun,
            sys::S_CTX_ALLOCATOR => Self::Allocator,
            sys::S_CTX_REMOTE => Self::Step,
            sys::S_CTX_JOB_SCRIPT => Self::JobScript,
            _ => Self::Other,
        }
    }
}

/// Slurm did not do what was asked; the number is one of slurm_errno.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Slurm's {function} failed with error {code}")]
pub(crate) struct SlurmError {
    function: &'static str,
    code: sys::spank_err_t,
}

/// Slurm's handle for the duration of one callback.
#[derive(Debug)]
pub(crate) struct Handle<'call> {
    raw: sys::spank_t,
    call: PhantomData<&'call mut sys::spank_handle>,
}

impl Handle<'_> {
    /// # Safety
    /// `raw` is the handle that Slurm gave to the callback, and the result does not outlive it.
    pub(crate) unsafe fn new(raw: sys::spank_t) -> Self {
        Self { raw, call: PhantomData }
    }

    /// Number of the job.
    pub(crate) fn job_id(&self) -> Result<u32, SlurmError> {
        self.number(sys::S_JOB_ID)
    }

    /// Number of the step.
    pub(crate) fn step_id(&self) -> Result<u32, SlurmError> {
        self.number(sys::S_JOB_STEPID)
    }

    /// The job's user.
    pub(crate) fn uid(&self) -> Result<u32, SlurmError> {
        self.number(sys::S_JOB_UID)
    }

    /// The job's group.
    pub(crate) fn gid(&self) -> Result<u32, SlurmError> {
        self.number(sys::S_JOB_GID)
    }

    /// The task's number on its node.
    pub(crate) fn local_task(&self) -> Result<u32, SlurmError> {
        self.number(sys::S_TASK_ID)
    }

    /// The task's number in its step.
    pub(crate) fn task_rank(&self) -> Result<u32, SlurmError> {
        self.number(sys::S_TASK_GLOBAL_ID)
    }

    /// Items that are 32 bits wide: uint32_t, uid_t, gid_t, int.
    fn number(&self, item: sys::spank_item_t) -> Result<u32, SlurmError> {
        let mut value = 0_u32;
        // SAFETY: the callers pass items for which spank.h names a pointer to 32 bits.
        let code = unsafe { sys::spank_get_item(self.raw, item, &raw mut value) };
        check("spank_get_item", code).map(|()| value)
    }

    /// The user's supplementary groups.
    pub(crate) fn groups(&self) -> Result<Vec<u32>, SlurmError> {
        let mut groups: *const libc::gid_t = std::ptr::null();
        let mut count: c_int = 0;
        // SAFETY: spank.h names gid_t ** and int * for this item.
        let code = unsafe {
            sys::spank_get_item(
                self.raw,
                sys::S_JOB_SUPPLEMENTARY_GIDS,
                &raw mut groups,
                &raw mut count,
            )
        };
        check("spank_get_item", code)?;
        let count = usize::try_from(count).unwrap_or(0);
        if groups.is_null() || count == 0 {
            return Ok(Vec::new());
        }
        // SAFETY: Slurm keeps so many groups there for the life of the step.
        Ok(unsafe { std::slice::from_raw_parts(groups, count) }.to_vec())
    }

    /// A variable of the job's environment; `None` when it is not there.
    ///
    /// # Errors
    /// It is no UTF-8: it could not be handed on as it is.
    pub(crate) fn variable(&self, name: &str) -> Result<Option<String>, String> {
        let key = c_string(name);
        let mut buffer = vec![0_u8; 4096];
        loop {
            let length = c_int::try_from(buffer.len())
                .map_err(|_| format!("the job's variable {name} is too long"))?;
            // SAFETY: the buffer has so many bytes, and Slurm ends what it writes with a NUL.
            let code = unsafe {
                sys::spank_getenv(
                    self.raw,
                    key.as_ptr(),
                    buffer.as_mut_ptr().cast::<c_char>(),
                    length,
                )
            };
            match code {
                0 => {
                    let bytes = buffer.split(|byte| *byte == 0).next().unwrap_or_default();
                    return String::from_utf8(bytes.to_vec())
                        .map(Some)
                        .map_err(|_| format!("the job's variable {name} is not UTF-8 text"));
                }
                sys::ESPANK_NOSPACE => buffer.resize(buffer.len() * 4, 0),
                _ => return Ok(None),
            }
        }
    }

    /// Sets a variable of the job's environment.
    pub(crate) fn set_variable(&self, name: &str, value: &str) -> Result<(), SlurmError> {
        let (name, value) = (c_string(name), c_string(value));
        // SAFETY: both end with a NUL; Slurm copies them.
        let code = unsafe { sys::spank_setenv(self.raw, name.as_ptr(), value.as_ptr(), 1) };
        check("spank_setenv", code)
    }

    /// Removes a variable of the job's environment.
    pub(crate) fn unset_variable(&self, name: &str) -> Result<(), SlurmError> {
        let name = c_string(name);
        // SAFETY: it ends with a NUL.
        let code = unsafe { sys::spank_unsetenv(self.raw, name.as_ptr()) };
        check("spank_unsetenv", code)
    }

    /// Sets a variable that prolog and epilog see with the prefix `SPANK_`, and nobody else.
    pub(crate) fn set_control_variable(&self, name: &str, value: &str) -> Result<(), SlurmError> {
        let (name, value) = (c_string(name), c_string(value));
        // SAFETY: both end with a NUL; Slurm copies them.
        let code =
            unsafe { sys::spank_job_control_setenv(self.raw, name.as_ptr(), value.as_ptr(), 1) };
        check("spank_job_control_setenv", code)
    }

    /// Makes an option known. Only in init.
    pub(crate) fn register(&self, option: &mut sys::spank_option) -> Result<(), SlurmError> {
        // SAFETY: Slurm copies the option; its texts are static.
        let code = unsafe { sys::spank_option_register(self.raw, option) };
        check("spank_option_register", code)
    }

    /// The value of an option that takes one, when it was given. Not in init, init_post_opt and
    /// task_post_fork.
    pub(crate) fn option(&self, option: &mut sys::spank_option) -> Option<String> {
        let mut value: *mut c_char = std::ptr::null_mut();
        // SAFETY: `value` is where Slurm puts a pointer.
        let code = unsafe { sys::spank_option_getopt(self.raw, option, &raw mut value) };
        if code != 0 {
            return None;
        }
        if value.is_null() {
            return Some(String::new());
        }
        // SAFETY: Slurm's string, ended with a NUL, which lives as long as the plugin.
        Some(unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
    }
}

fn check(function: &'static str, code: sys::spank_err_t) -> Result<(), SlurmError> {
    match code {
        0 => Ok(()),
        code => Err(SlurmError { function, code }),
    }
}

/// A text for C. What stands behind a NUL in it could not arrive anyway.
pub(crate) fn c_string(text: &str) -> CString {
    let end = text.find('\0').unwrap_or(text.len());
    CString::new(&text[..end]).expect("no NUL before the first NUL")
}

/// Says it to whoever looks: the user of srun, sbatch, salloc and of a task; else the daemon's log.
/// Every line gets Slurm's prefix.
pub(crate) fn error(message: &str) {
    for line in message.lines() {
        // What a user passes may be part of it, and an administrator's terminal may show it.
        let line: String = line
            .chars()
            .map(|letter| if letter.is_control() && letter != '\t' { '\u{fffd}' } else { letter })
            .collect();
        let line = c_string(&line);
        // SAFETY: the format takes one string, ended with a NUL.
        unsafe { sys::slurm_error(c"acb: %s".as_ptr(), line.as_ptr()) };
    }
}

/// Sets a variable of this process itself unless it is there. For srun, in its init: it reads its
/// own environment later, and has one thread until then.
pub(crate) fn set_own_default(name: &CStr, value: &CStr) {
    // SAFETY: there is no other thread yet that could read the environment; libc copies the texts.
    unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 0) };
}

/// Sets a variable of this process itself. For srun, in its init_post_opt: it has one thread until
/// then.
pub(crate) fn set_own(name: &CStr, value: &str) {
    let value = c_string(value);
    // SAFETY: there is no other thread yet that could read the environment; libc copies the texts.
    unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) };
}

/// How many words of this process's command line its own getopt has taken; the program that srun is
/// to run comes after them.
pub(crate) fn words_taken() -> usize {
    // SAFETY: a search in what is loaded, by a name that ends with a NUL.
    let optind = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"optind".as_ptr()) }.cast::<c_int>();
    if optind.is_null() {
        return 0;
    }
    // SAFETY: getopt(3) declares `extern int optind`; there is no other thread yet.
    usize::try_from(unsafe { optind.read() }).unwrap_or(0)
}

/// Ends a task before its program is started, as Slurm does when a required plugin fails.
pub(crate) fn end_task() -> ! {
    // SAFETY: _exit runs no handlers: those are slurmstepd's own, from which this task was forked.
    unsafe { libc::_exit(1) }
}
