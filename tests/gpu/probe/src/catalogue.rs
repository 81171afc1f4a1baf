//! Every row that a full run has, with what it says and what the design took for granted before any
//! GPU was seen. The page of results is laid out by it, cell by cell. Pure.

use crate::groups::{contract, frameworks, paths, sharing};
use crate::table::{Position, position};

/// A plain row, or a column of a matrix whose lines are sizes, programs or flavours.
pub(crate) struct Entry {
    pub(crate) group: &'static str,
    /// Row name, or `matrix.column`.
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// What the design assumed, from public sources; empty: nothing.
    pub(crate) assumed: &'static str,
}

const fn entry(
    group: &'static str,
    name: &'static str,
    what: &'static str,
    assumed: &'static str,
) -> Entry {
    Entry { group, name, what, assumed }
}

/// Chunks that are compared, as row names have them.
const CHUNKS: [&str; 6] = ["2MiB", "8MiB", "32MiB", "64MiB", "256MiB", "1GiB"];
/// The contract tests: what `contract --list` prints.
const CASES: &str = include_str!("../../contract/cases.txt");

/// What a run on a GPU is made for, by row.
const ASKED: [&str; 20] = [
    "context_mib",
    "duplex_out_gb_per_s",
    "duplex_in_gb_per_s",
    "hash.gb_per_s",
    "mapped_over_plain.stream",
    "mapped_over_plain.matmul",
    "launch_added_ns",
    "swap_plain_out_gb_per_s",
    "swap_plain_in_gb_per_s",
    "swap.switch_gb_per_s",
    "swap.data",
    "swap_most.share_of_copy",
    "contract.case",
    "interposed.result",
    "load_paths.without_audit",
    "nvml.agrees",
    "sharing.shared_over_serial",
    "sharing.results",
    "frameworks.results",
    "frameworks.swapped_results",
];

pub(crate) fn is_asked(entry: &Entry) -> bool {
    ASKED.contains(&entry.name)
}

impl Entry {
    /// The lines of its matrix in a full run; none: it is a plain row.
    pub(crate) fn lines(&self) -> Vec<&'static str> {
        let Some((matrix, _)) = self.name.split_once('.') else { return Vec::new() };
        match matrix {
            "pin" => vec!["1GiB", "4GiB", "16GiB"],
            "pipeline" => CHUNKS[..5].to_vec(),
            "swap_most" => vec!["64MiB"],
            "driver_checkpoint" => vec!["1GiB", "8GiB", "32GiB"],
            "contract" => CASES.lines().collect(),
            "interposed" => contract::INTERPOSED
                .iter()
                .filter(|(_, has_memory)| *has_memory || self.name == "interposed.result")
                .map(|(case, _)| *case)
                .collect(),
            "load_paths" => paths::WAYS.iter().map(|(way, ..)| *way).collect(),
            "nvml" => paths::ASKERS.iter().map(|(asker, _)| *asker).collect(),
            "frameworks" => frameworks::PROGRAMS.iter().map(|(name, ..)| *name).collect(),
            "sharing" => sharing::flavours(self.name == "sharing.swapped_gib"),
            _ => CHUNKS.to_vec(),
        }
    }

    /// What it consists of: itself, or a cell for each line.
    pub(crate) fn cells(&self) -> Vec<Option<&'static str>> {
        let lines = self.lines();
        if lines.is_empty() { vec![None] } else { lines.into_iter().map(Some).collect() }
    }

    /// Those of them that are chunk sizes.
    pub(crate) fn chunks(&self) -> Vec<&'static str> {
        self.lines().into_iter().filter(|line| CHUNKS.contains(line)).collect()
    }

    /// Whether a row is the entry's in such a line.
    pub(crate) fn has(&self, line: Option<&str>, row: &str) -> bool {
        match (row.split_once('@'), line) {
            (None, None) => row == self.name,
            (Some((path, own)), Some(line)) => path == self.name && is_of_line(own, line),
            _ => false,
        }
    }
}

/// Whether a line of a result is one of a full run's: the same, or with the size that it came to.
pub(crate) fn is_of_line(found: &str, line: &str) -> bool {
    let Some(rest) = found.strip_prefix(line) else { return false };
    let size = rest.strip_prefix('-').and_then(|rest| rest.strip_suffix("iB"));
    let number = size.and_then(|size| size.strip_suffix(['G', 'M']));
    rest.is_empty() || number.is_some_and(|number| number.parse::<u64>().is_ok())
}

/// The matrices of a group, in the order of the page.
pub(crate) fn matrices(group: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    for entry in ROWS.iter().filter(|entry| entry.group == group) {
        if let Position::Cell { matrix, .. } = position_of(entry.name)
            && !found.contains(&matrix)
        {
            found.push(matrix);
        }
    }
    found
}

/// An entry's place: a plain row, or a column.
fn position_of(name: &'static str) -> Position<'static> {
    match name.split_once('.') {
        Some((matrix, column)) => Position::Cell { matrix, column, line: "" },
        None => position(name),
    }
}

/// In the order of the page.
pub(crate) const ROWS: &[Entry] = &[
    entry("driver", "gpu", "name of the device", ""),
    entry(
        "driver",
        "driver_release",
        "release of the kernel module",
        "570 or later for the driver's checkpoint",
    ),
    entry("driver", "cuda_version", "CUDA version of the driver", ""),
    entry("driver", "compute_capability", "of the device", ""),
    entry("driver", "gpu_memory_gib", "memory of the device", ""),
    entry("driver", "multiprocessors", "of the device", ""),
    entry(
        "driver",
        "exported_symbols",
        "functions cu* that the driver exports",
        "661 in 12.9, 679 in 13.0, 725 in 13.3",
    ),
    entry("driver", "listed_symbols", "functions in our list", ""),
    entry(
        "driver",
        "listed_but_not_exported",
        "of our list, not in this driver",
        "0 on a driver of the list's version",
    ),
    entry(
        "driver",
        "exported_but_not_listed",
        "in this driver, not in our list: NULL to dlsym under the interposer",
        "0",
    ),
    entry(
        "driver",
        "proc_address_asked",
        "questions to cuGetProcAddress: name × version × kind of default stream",
        "",
    ),
    entry(
        "driver",
        "proc_address_not_exported",
        "answered with an address that no exported symbol has",
        "0",
    ),
    entry(
        "driver",
        "proc_address_other_than_listed",
        "answered with another symbol than our list has",
        "0",
    ),
    entry(
        "driver",
        "proc_address_hooked_other_than_listed",
        "of these, functions that the interposer acts on",
        "0",
    ),
    entry("memory", "context_mib", "what a context takes on the GPU", "some hundred MB"),
    entry("memory", "context_with_kernels_mib", "the same with kernels loaded and run", ""),
    entry("memory", "init_ms", "cuInit in a fresh process", ""),
    entry("memory", "context_create_ms", "primary context in a fresh process", ""),
    entry("memory", "granularity_mib", "smallest chunk that can be mapped", "2 MiB"),
    entry("memory", "granularity_recommended_mib", "chunk that the driver recommends", ""),
    entry("memory", "mapped_idle.create_us", "cuMemCreate, by chunk, nothing running", ""),
    entry("memory", "mapped_idle.map_us", "cuMemMap", ""),
    entry("memory", "mapped_idle.set_access_us", "cuMemSetAccess of one chunk", ""),
    entry("memory", "mapped_idle.unmap_us", "cuMemUnmap", ""),
    entry("memory", "mapped_idle.release_us", "cuMemRelease", ""),
    entry("memory", "mapped_idle.cycle_us", "all five", "33 µs per 2 MiB, 325 µs per 64 MiB"),
    entry(
        "memory",
        "mapped_idle.cycle_ms_per_gib",
        "all five, per GiB",
        "17 ms with 2 MiB, 5 ms with 64 MiB",
    ),
    entry(
        "memory",
        "mapped_idle.set_access_batched_us",
        "cuMemSetAccess of many chunks in one call, per chunk",
        "",
    ),
    entry(
        "memory",
        "mapped_busy.create_us",
        "cuMemCreate beside a running kernel of the same process",
        "as when idle",
    ),
    entry("memory", "mapped_busy.map_us", "cuMemMap, likewise", "as when idle"),
    entry("memory", "mapped_busy.set_access_us", "cuMemSetAccess, likewise", "as when idle"),
    entry("memory", "mapped_busy.unmap_us", "cuMemUnmap, likewise", "may wait for the kernel"),
    entry("memory", "mapped_busy.release_us", "cuMemRelease, likewise", "as when idle"),
    entry("memory", "mapped_busy.cycle_us", "all five, likewise", ""),
    entry("memory", "mapped_busy.cycle_ms_per_gib", "all five, likewise, per GiB", ""),
    entry("memory", "plain.allocate_us", "cuMemAlloc", ""),
    entry("memory", "plain.free_us", "cuMemFree", ""),
    entry("pinned", "transparent_huge_pages", "setting of the kernel", "madvise or always"),
    entry("pinned", "pin.allocate_gib_per_s", "cuMemHostAlloc", "2 GiB/s"),
    entry("pinned", "pin.free_gib_per_s", "cuMemFreeHost", ""),
    entry("pinned", "pin.touch_gib_per_s", "touching fresh huge pages with several threads", ""),
    entry("pinned", "pin.register_gib_per_s", "cuMemHostRegister of touched memory", ""),
    entry("pinned", "pin.prepare_gib_per_s", "touching and registering", "10 GiB/s"),
    entry("pinned", "pin.unregister_gib_per_s", "cuMemHostUnregister", ""),
    entry("pinned", "small_pages_touch_gib_per_s", "touching 4 KiB pages, one thread", ""),
    entry("pinned", "small_pages_register_gib_per_s", "registering them", ""),
    entry(
        "pinned",
        "register_in_64mib_gib_per_s",
        "registering in pieces of 64 MiB",
        "as in one piece",
    ),
    entry("link", "pcie", "link of the GPU", ""),
    entry(
        "link",
        "copy.out_1_gb_per_s",
        "device to host, by block, one stream",
        "Gen4 24 GiB/s, Gen5 35 to 53 GB/s",
    ),
    entry("link", "copy.in_1_gb_per_s", "host to device, one stream", "the same"),
    entry(
        "link",
        "copy.both_1_gb_per_s",
        "both at once, sum, one stream each",
        "less than twice one way",
    ),
    entry("link", "copy.out_2_gb_per_s", "device to host, two streams", "as with one"),
    entry("link", "copy.in_2_gb_per_s", "host to device, two streams", "as with one"),
    entry("link", "copy.both_2_gb_per_s", "both at once, sum, two streams each", ""),
    entry("link", "duplex_out_gb_per_s", "out while in is busy", "24 GB/s on an A100"),
    entry("link", "duplex_in_gb_per_s", "in while out is busy", "11 to 13 GB/s on an A100"),
    entry("link", "copied_bytes", "what the copies left, compared word by word", "right"),
    entry(
        "link",
        "pipeline.switch_gb_per_s",
        "page-out of one process beside page-in of another, by chunk: bytes of one side over the time of the switch",
        "",
    ),
    entry("link", "pipeline.out_alone_gb_per_s", "the same copies out alone", ""),
    entry(
        "link",
        "pipeline.switch_over_one_way",
        "time of the switch over the slower copy alone",
        "1.2 at most",
    ),
    entry("link", "pipeline_best_gb_per_s", "the best of the above", ""),
    entry("hash", "device_copy_gb_per_s", "device-to-device copy, bytes read and written", ""),
    entry("hash", "hash_correct", "128-bit hash against the host's", "right"),
    entry(
        "hash",
        "hash_sees_a_changed_bit",
        "one flipped bit changes its chunk's hash alone",
        "right",
    ),
    entry("hash", "hash.gb_per_s", "hash of all chunks, by chunk size", "near memory speed"),
    entry(
        "hash",
        "hash.share_of_copy_rate",
        "bytes hashed per second over bytes moved per second by the copy",
        "near 1",
    ),
    entry("hash", "hash_one_64mib_us", "hash of one chunk of 64 MiB", ""),
    entry(
        "kernels",
        "mapped_over_plain.stream",
        "time of a streaming kernel on mapped memory over plain, by chunk",
        "1.01 at most",
    ),
    entry(
        "kernels",
        "mapped_over_plain.gather",
        "random 8-byte reads: address translation",
        "worse with small chunks",
    ),
    entry("kernels", "mapped_over_plain.chase", "one thread's dependent reads", ""),
    entry("kernels", "mapped_over_plain.matmul", "single-precision matrix product", "1.01 at most"),
    entry("kernels", "plain_stream_gb_per_s", "the streaming kernel on plain memory", ""),
    entry("kernels", "plain_gather_reads_per_ns", "the random reads on plain memory", ""),
    entry("kernels", "plain_chase_ns", "a dependent read on plain memory", ""),
    entry("kernels", "plain_matmul_tflops", "the matrix product on plain memory", ""),
    entry(
        "kernels",
        "kernels_correct",
        "results of all kernels on all kinds of memory, against the host's",
        "right",
    ),
    entry("calls", "launch_direct_ns", "a launch without the interposer", ""),
    entry("calls", "launch_interposed_ns", "a launch through it, lease held", ""),
    entry("calls", "launch_added_ns", "the difference", "50 ns at most"),
    entry("calls", "synchronize_direct_ns", "synchronising an idle stream", ""),
    entry("calls", "synchronize_interposed_ns", "the same through the interposer", ""),
    entry("calls", "copy_8_bytes_direct_ns", "a blocking copy of 8 bytes to the device", ""),
    entry("calls", "copy_8_bytes_interposed_ns", "the same through the interposer", ""),
    entry("calls", "allocate_free_2mib_direct_us", "cuMemAlloc and cuMemFree of 2 MiB", ""),
    entry("calls", "allocate_free_2mib_interposed_us", "the same through the interposer", ""),
    entry("calls", "interposer_finds_driver", "without being told where it is", "yes"),
    entry("calls", "grant_us", "release of one process to grant of another", ""),
    entry("calls", "grant_p50_us", "its median", "50 µs at most"),
    entry("calls", "grant_p99_us", "its 99th percentile", "300 µs at most"),
    entry(
        "contract",
        "contract_passed",
        "contract tests of the software GPU that hold on this driver",
        "",
    ),
    entry("contract", "contract_failed", "that do not", "0"),
    entry("contract", "contract.case", "each of them", "ok"),
    entry(
        "contract",
        "interposed.result",
        "fork, and the export of memory that was moved out: the case under the interposer, with a neighbour that needs all of the \
         memory before each of its calls",
        "ok",
    ),
    entry("contract", "interposed.moved_gib", "moved out of the case's memory", "above 0"),
    entry("swap", "swap_plain_out_gb_per_s", "a plain pinned copy out", ""),
    entry("swap", "swap_plain_in_gb_per_s", "a plain pinned copy in", ""),
    entry(
        "swap",
        "swap.switch_gb_per_s",
        "two programs with 95 % of the memory each take turns, all of it changed: bytes of one side over the time until \
         the other's kernel has run, by chunk",
        "near the slower plain copy",
    ),
    entry(
        "swap",
        "swap.unchanged_gb_per_s",
        "the same where the one that leaves has changed nothing: hashed, not copied",
        "near the plain copy in",
    ),
    entry(
        "swap",
        "swap.share_of_copy",
        "rate of the changed switch over the slower plain copy",
        "0.83 at least: 1.2 one-way copies",
    ),
    entry("swap", "swap.first_gb_per_s", "the first switch, with host memory to be pinned", ""),
    entry("swap", "swap.moved_gib", "of both programs, moved out", "above 0"),
    entry("swap", "swap.data", "all words of both programs afterwards", "right"),
    entry(
        "swap",
        "swap_most.switch_gb_per_s",
        "as `swap`, with as much memory as the GPU, the host and the time allow; the line says how much",
        "as with little memory",
    ),
    entry("swap", "swap_most.unchanged_gb_per_s", "likewise", ""),
    entry("swap", "swap_most.share_of_copy", "likewise", "0.83 at least"),
    entry("swap", "swap_most.first_gb_per_s", "likewise", ""),
    entry("swap", "swap_most.moved_gib", "likewise", "above 0"),
    entry("swap", "swap_most.data", "likewise", "right"),
    entry(
        "paths",
        "load_paths.without_audit",
        "who answers a program that loads the driver in this way",
        "the interposer, but for paths: then the program is told",
    ),
    entry(
        "paths",
        "load_paths.with_audit",
        "the same with the audit library",
        "the interposer, but for a path with dlmopen",
    ),
    entry(
        "paths",
        "nvml.agrees",
        "NVML's memory numbers with cuMemGetInfo's in a client",
        "agrees",
    ),
    entry(
        "paths",
        "context_by_assigner_mib",
        "a client's context as the assigner has measured it",
        "`context_with_kernels_mib` and 8 MiB at most",
    ),
    entry("sharing", "sharing.cpu_s", "CPU phase of a program alone", ""),
    entry("sharing", "sharing.gpu_s", "GPU phase of a program alone", ""),
    entry("sharing", "sharing.serial_rounds_per_s", "two programs one after the other", ""),
    entry(
        "sharing",
        "sharing.unmanaged_rounds_per_s",
        "two programs at once without an assigner",
        "",
    ),
    entry("sharing", "sharing.shared_rounds_per_s", "two programs at once under the assigner", ""),
    entry("sharing", "sharing.bound_rounds_per_s", "min(N/(c+g), 1/g)", ""),
    entry("sharing", "sharing.shared_over_serial", "shared over serial", ""),
    entry("sharing", "sharing.bound_over_serial", "what would be best", ""),
    entry("sharing", "sharing.share_of_bound", "shared over the bound", "0.95 at least"),
    entry("sharing", "sharing.swapped_gib", "moved out where memory is short", "above 0, of both"),
    entry("sharing", "sharing.results", "data of the programs alone and sharing", "the same"),
    entry(
        "frameworks",
        "frameworks.results",
        "results alone and under the interposer",
        "the same to the bit",
    ),
    entry(
        "frameworks",
        "frameworks.interposer",
        "whether the interposer is mapped with the driver behind it",
        "in place",
    ),
    entry(
        "frameworks",
        "frameworks.entry_points",
        "driver functions that the interposer's log names",
        "",
    ),
    entry("frameworks", "frameworks.alone_s", "the program alone", ""),
    entry("frameworks", "frameworks.interposed_s", "under the interposer", ""),
    entry(
        "frameworks",
        "frameworks.swapped_results",
        "results with forced swaps: beside a neighbour that needs 95 % of the memory again and again",
        "the same to the bit",
    ),
    entry("frameworks", "frameworks.swapped_s", "with forced swaps", ""),
    entry(
        "frameworks",
        "frameworks.swapped_out_gib",
        "of the program's memory, moved out",
        "above 0",
    ),
    entry("frameworks", "frameworks.version", "of the framework", ""),
    entry(
        "checkpoint",
        "driver_checkpoint.lock_s",
        "cuCheckpointProcessLock, by size of the process",
        "",
    ),
    entry(
        "checkpoint",
        "driver_checkpoint.checkpoint_s",
        "cuCheckpointProcessCheckpoint",
        "seconds",
    ),
    entry("checkpoint", "driver_checkpoint.restore_s", "cuCheckpointProcessRestore", "seconds"),
    entry("checkpoint", "driver_checkpoint.unlock_s", "cuCheckpointProcessUnlock", ""),
    entry(
        "checkpoint",
        "driver_checkpoint.left_on_gpu_mib",
        "what stays on the GPU meanwhile",
        "0",
    ),
    entry("checkpoint", "driver_checkpoint.data", "the process's data afterwards", "right"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::groups::Group;

    #[test]
    fn every_row_is_there_once_and_every_group_has_rows() {
        let names: BTreeSet<_> = ROWS.iter().map(|entry| (entry.group, entry.name)).collect();
        assert_eq!(names.len(), ROWS.len());
        for group in Group::ALL {
            assert!(ROWS.iter().any(|entry| entry.group == group.name()), "{group:?}");
        }
        for name in ASKED {
            assert!(ROWS.iter().any(|entry| entry.name == name), "{name}");
        }
        for entry in ROWS {
            assert!(Group::ALL.iter().any(|group| group.name() == entry.group), "{}", entry.group);
        }
    }

    #[test]
    fn a_line_may_say_the_size_that_it_came_to() {
        for (found, line, expected) in [
            ("2MiB", "2MiB", true),
            ("64MiB-38GiB", "64MiB", true),
            ("2MiB-96MiB", "2MiB", true),
            ("driver-api-95", "driver-api", false),
            ("driver-api-95-2GiB", "driver-api", false),
            ("driver-api-95-2GiB", "driver-api-95", true),
            ("driver-api-95-most-13GiB", "driver-api-95", false),
            ("pytorch-compile", "pytorch", false),
        ] {
            assert_eq!(is_of_line(found, line), expected, "{found} {line}");
        }
    }

    #[test]
    fn a_plain_row_has_one_cell_and_a_column_one_for_each_line() {
        let cells = |name: &str| ROWS.iter().find(|entry| entry.name == name).unwrap().cells();
        assert_eq!(cells("context_mib"), [None]);
        assert_eq!(cells("swap.data").len(), 6);
        assert!(cells("contract.case").contains(&Some("memory::pitched_copies")));
        assert_eq!(cells("sharing.swapped_gib").len(), 4);
        assert_eq!(matrices("swap"), ["swap", "swap_most"]);
    }
}
