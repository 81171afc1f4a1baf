//! The cases. Each starts with a fresh process and leaves it; what it returns
//! says what was not as expected.
#![allow(unsafe_code)] // reads what drivers give pointers to

mod arrays;
mod capturing;
mod graph_memory;
mod graphs;
mod launching;
mod memory;
mod order;
mod peers;
mod pools;
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
        a_primary_context_is_made_anew_after_its_reset
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
        copies_between_contexts_have_rows_and_layers
        pinned_memory_is_known
        registered_twice_is_refused
        stream_ordered_allocation
        boolean_attributes_have_32_bits
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
        a_full_queue_loses_nothing
        streams_write_values_and_wait_for_them;
    launching:
        kernels_do_their_work
        kernels_are_found
        images_are_checked
        shapes_are_checked
        arguments_in_a_buffer
        a_bad_address_breaks_the_context
        libraries_have_kernels
        chunks_are_hashed
        texts_are_linked
        compilers_say_what_is_wrong
        an_endless_kernel_ends_by_its_flag;
    virtual_memory:
        mapped_memory_is_used
        without_access_it_is_not
        data_moves_with_its_handle
        sizes_are_checked
        ranges_in_use_are_kept
        tensors_are_described_where_nothing_is_mapped
        mappings_are_whole
        exported_memory_is_the_same_memory
        memory_is_exported_with_its_content;
    arrays:
        rows_and_layers_are_found_again
        arrays_tell_what_they_are
        arrays_count
        levels_of_a_mipmap_are_arrays
        textures_show_memory_that_is_there
        deep_copies_of_plain_memory;
    pools:
        pools_keep_account
        a_pool_keeps_what_it_may
        freed_memory_waits_for_its_stream
        pools_of_the_programs_own
        only_plain_memory_is_shared
        another_process_opens_it;
    peers:
        plain_memory_is_copied_without_access
        mapped_memory_is_copied_between_contexts_alone
        mapped_memory_that_is_open_is_copied;
    capturing:
        what_is_captured_does_not_run
        events_lead_from_stream_to_stream
        what_is_not_joined_makes_no_graph
        a_capture_ends_where_it_began
        waiting_spoils_a_capture
        other_threads_may_not_allocate_meanwhile
        a_capture_of_one_thread_leaves_the_others_alone
        a_relaxed_capture_forbids_nothing
        the_legacy_stream_cannot_wait_for_a_capture
        events_from_outside_are_refused
        two_captures_do_not_merge
        captured_events_are_no_moments
        a_capture_tells_about_itself
        dependencies_can_be_set
        a_stream_that_goes_ends_its_capture;
    graphs:
        nodes_run_in_the_order_of_their_edges
        nodes_tell_what_they_are
        a_graph_runs_in_the_order_of_its_stream
        a_thousand_runs_lose_nothing
        instances_outlive_their_graph
        instances_record_events
        instances_are_changed
        instances_follow_graphs_of_their_shape
        graphs_are_copied
        graphs_lie_in_graphs
        circles_are_refused
        nodes_can_be_left_out
        graphs_are_drawn
        one_call_adds_nodes_of_all_kinds;
    graph_memory:
        it_is_there_while_its_graph_runs
        it_counts_until_it_is_trimmed
        what_a_graph_has_freed_it_uses_again
        what_a_run_leaves_is_the_programs
        instances_can_free_what_was_left
        captured_allocations_become_nodes;
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

/// An atomic of a case's, as a function that the driver calls is given it.
fn atomic<'a>(at: *mut std::sync::atomic::AtomicU64) -> &'a std::sync::atomic::AtomicU64 {
    // SAFETY: cases pass an atomic that outlives the work that it is passed to.
    unsafe { &*at }
}

/// A structure for the driver to fill in.
fn zeroed<T>() -> T {
    // SAFETY: used for structures of numbers and pointers, for which zeroes are valid.
    unsafe { std::mem::zeroed() }
}

/// The 64-bit arguments in a list that the driver gave.
fn arguments<const N: usize>(list: *mut *mut std::ffi::c_void) -> [u64; N] {
    std::array::from_fn(|at| {
        // SAFETY: the kernel has that many, each of 64 bits, and the node lives.
        unsafe { list.add(at).read().cast::<u64>().read() }
    })
}

#[cfg(test)]
mod tests {
    /// The probe's page of results has a line for each.
    #[test]
    fn the_list_for_others_is_complete() {
        let own: Vec<&str> = super::ALL.iter().map(|(name, _)| *name).collect();
        let listed: Vec<&str> = include_str!("../../cases.txt").lines().collect();
        assert_eq!(
            listed, own,
            "make cases.txt anew: contract --list > tests/gpu/contract/cases.txt"
        );
    }
}
