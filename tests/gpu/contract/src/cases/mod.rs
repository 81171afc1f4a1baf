//! The cases. Each starts with a fresh process and leaves it; what it returns
//! says what was not as expected.

mod launching;
mod memory;
mod order;
mod starting;
mod virtual_memory;

use std::path::Path;

use crate::gpu::Gpu;

/// A case: what went wrong, if anything did.
pub(crate) type Case = fn(&Path) -> Result<(), String>;

macro_rules! cases {
    ($($file:ident: $($name:ident)*;)*) => {
        /// All cases, by name.
        pub(crate) const ALL: &[(&str, Case)] = &[
            $($((concat!(stringify!($file), "::", stringify!($name)), $file::$name),)*)*
        ];
    };
}

cases! {
    starting:
        nothing_works_before_init
        a_forked_child_has_no_driver
        functions_are_found_by_name_and_version
        errors_have_names
        without_a_context_nothing_is_allocated
        contexts_are_pushed_and_popped
        primary_contexts_are_counted;
    memory:
        what_is_written_is_read
        copies_may_not_leave_an_allocation
        freed_twice_is_refused
        nothing_and_too_much_are_refused
        free_memory_is_accounted
        an_address_tells_its_allocation
        fills_of_all_widths
        pitched_copies
        pinned_memory_is_known
        registered_twice_is_refused
        stream_ordered_allocation
        pointers_have_attributes;
    order:
        copies_are_seen_when_they_are_done
        a_stream_keeps_its_order
        streams_know_whether_they_are_done
        other_streams_wait_for_events
        the_default_stream_waits_for_blocking_ones
        other_streams_do_not_wait
        functions_of_the_program_run_in_order
        events_measure_time
        a_full_queue_loses_nothing;
    launching:
        kernels_do_their_work
        kernels_are_found
        images_are_checked
        shapes_are_checked
        arguments_in_a_buffer
        a_bad_address_breaks_the_context
        libraries_have_kernels
        an_endless_kernel_ends_by_its_flag;
    virtual_memory:
        mapped_memory_is_used
        without_access_it_is_not
        data_moves_with_its_handle
        sizes_are_checked
        ranges_in_use_are_kept;
}

/// Compares.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Result<(), String> {
    if got == wanted { Ok(()) } else { Err(format!("{what}: got {got:?}, expected {wanted:?}")) }
}

/// One of several is right: drivers differ.
fn any_of(what: &str, got: Result<(), u32>, wanted: &[u32]) -> Result<(), String> {
    match got {
        Err(code) if wanted.contains(&code) => Ok(()),
        other => Err(format!("{what}: got {other:?}, expected an error of {wanted:?}")),
    }
}

/// A driver's code as a message.
fn why(what: &'static str) -> impl Fn(u32) -> String {
    move |code| format!("{what}: error {code}")
}

fn open(path: &Path) -> Result<Gpu, String> {
    Gpu::open(path)
}

/// As in kernels.ptx.
fn splitmix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
