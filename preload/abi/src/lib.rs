//! The CUDA driver API as slurm-acb knows it.
//!
//! Owns: the driver's types ([`sys`], from cudarc; nothing is linked), result codes ([`CuResult`]),
//! the pager's hash ([`hash`]),
//! and the one list of the driver's functions: [`FUNCTIONS`] to look things up in, and the macro
//! [`driver_functions!`] to make items from. Exports, trampolines, hooks, the tables behind
//! cuGetProcAddress, and tests all come from that list.
//! Does not own: what is done in a call. The classes are named in `classes.txt`; preload gives
//! them their meaning.
#![forbid(unsafe_code)]

pub use cudarc::driver::sys;

#[path = "generated/functions.rs"]
mod functions;
pub mod hash;
mod result;

pub use result::CuResult;

/// What the interposer does with a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Hands it to the driver unchanged.
    Pass,
    /// How a program finds functions and starts.
    Resolve,
    /// Contexts come and go.
    Context,
    /// Green contexts, which are parts of primary contexts.
    Green,
    /// Code is loaded and unloaded, with its variables.
    Module,
    /// Streams come and go.
    Stream,
    /// Stream capture begins and ends.
    Capture,
    /// Device memory comes and goes, and questions about it.
    Memory,
    /// Pools of device memory.
    Pool,
    /// The program's own mapped memory.
    Mapping,
    /// Memory is handed to others.
    Share,
    /// Graphs come and go, with memory of their own.
    Graph,
    /// Questions about addresses.
    Query,
    /// Returns when the GPU has finished something.
    Wait,
    /// Copies, for which GPUs must reach each other's memory.
    Copy,
    /// Work for the GPU.
    Submit,
}

/// Which default stream a function means by stream 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamForm {
    /// The one that all threads share, or no stream at all.
    Legacy,
    /// The calling thread's (`_ptds`, `_ptsz`).
    PerThread,
}

/// One exported symbol of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// As the dynamic linker knows it: `cuMemcpyHtoD_v2_ptds`.
    pub symbol: &'static str,
    /// As programs and cuGetProcAddress know it: `cuMemcpyHtoD`.
    pub name: &'static str,
    /// CUDA version since which cuGetProcAddress answers `name` with `symbol`.
    pub version: u32,
    /// What stream 0 means to it.
    pub form: StreamForm,
    /// What the interposer does with it.
    pub class: Class,
}

macro_rules! table {
    ($([$class:ident] $symbol:ident $text:literal $name:literal $version:literal $form:ident
       ($($parameters:tt)*);)*) => {
        /// Every exported symbol of the driver, in alphabetical order.
        pub static FUNCTIONS: &[Function] = &[$(Function {
            symbol: $text,
            name: $name,
            version: $version,
            form: StreamForm::$form,
            class: class!($class),
        },)*];
    };
}

macro_rules! class {
    (pass) => {
        Class::Pass
    };
    (resolve) => {
        Class::Resolve
    };
    (context) => {
        Class::Context
    };
    (green) => {
        Class::Green
    };
    (module) => {
        Class::Module
    };
    (stream) => {
        Class::Stream
    };
    (capture) => {
        Class::Capture
    };
    (memory) => {
        Class::Memory
    };
    (pool) => {
        Class::Pool
    };
    (mapping) => {
        Class::Mapping
    };
    (share) => {
        Class::Share
    };
    (graph) => {
        Class::Graph
    };
    (query) => {
        Class::Query
    };
    (wait) => {
        Class::Wait
    };
    (copy) => {
        Class::Copy
    };
    (submit) => {
        Class::Submit
    };
}

driver_functions!(table);

/// Position in [`FUNCTIONS`] of a symbol.
pub fn find(symbol: &str) -> Option<usize> {
    FUNCTIONS.binary_search_by(|function| function.symbol.cmp(symbol)).ok()
}

/// The symbol that cuGetProcAddress answers `name` with, for a program built against CUDA
/// `version`: the newest that is not newer. The per-thread form falls back to the plain one, for
/// functions in which no stream occurs have no other.
pub fn resolve(name: &str, version: u32, form: StreamForm) -> Option<usize> {
    let newest = |form| {
        // All symbols of a name begin with it, so they are neighbours.
        let from = FUNCTIONS.partition_point(|function| function.symbol < name);
        FUNCTIONS[from..]
            .iter()
            .enumerate()
            .take_while(|(_, function)| function.symbol.starts_with(name))
            .filter(|(_, f)| f.name == name && f.form == form && f.version <= version)
            .max_by_key(|(_, f)| f.version)
            .map(|(offset, _)| from + offset)
    };
    match form {
        StreamForm::PerThread => {
            newest(StreamForm::PerThread).or_else(|| newest(StreamForm::Legacy))
        }
        StreamForm::Legacy => newest(StreamForm::Legacy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(name: &str, version: u32, form: StreamForm) -> Option<&'static str> {
        resolve(name, version, form).map(|at| FUNCTIONS[at].symbol)
    }

    #[test]
    fn the_list_is_sorted_and_without_doubles() {
        assert!(FUNCTIONS.windows(2).all(|pair| pair[0].symbol < pair[1].symbol));
        assert!(FUNCTIONS.len() > 700);
        assert!(FUNCTIONS.iter().enumerate().all(|(at, f)| find(f.symbol) == Some(at)));
    }

    /// Symbol and parameters of each function, as NVIDIA declares them.
    fn declared() -> impl Iterator<Item = (&'static Function, Vec<&'static str>)> {
        include_str!("../functions.txt").lines().filter_map(|line| {
            let (head, parameters) = line.split_once('(')?;
            let function = find(head.split(' ').next()?)?;
            Some((&FUNCTIONS[function], parameters.trim_end_matches(')').split(", ").collect()))
        })
    }

    /// Programs have names of the interposer's in place of handles of memory: the driver does not know them.
    #[test]
    fn every_function_with_a_handle_of_memory_is_one_that_we_act_on() {
        let given = |parameter: &&str| {
            // Multicast objects are the driver's own, and what is written is a new handle.
            let mut words = parameter.split(' ');
            words.next() == Some("CUmemGenericAllocationHandle")
                && words.next().is_some_and(|name| name != "mcHandle" && !name.starts_with('*'))
        };
        let all = declared().filter(|(_, parameters)| parameters.iter().any(given));
        let (seen, missed): (Vec<&Function>, Vec<&Function>) =
            all.map(|(f, _)| f).partition(|f| matches!(f.class, Class::Mapping | Class::Share));
        assert!(seen.len() >= 5, "{seen:?}");
        assert!(missed.is_empty(), "{missed:?}");
    }

    /// The driver looks at the memory that a node names. Kernels' parameters it cannot know, host functions and semaphores have none.
    #[test]
    fn every_change_of_a_node_that_names_memory_is_gated() {
        let without = ["Kernel", "Host", "Semaphores"];
        let nodes = FUNCTIONS.iter().filter(|f| {
            f.symbol.starts_with("cuGraph")
                && f.symbol.contains("NodeSetParams")
                && !without.iter().any(|kind| f.symbol.contains(kind))
        });
        let (gated, missed): (Vec<&Function>, Vec<&Function>) =
            nodes.partition(|f| matches!(f.class, Class::Submit | Class::Graph));
        assert!(gated.len() >= 7, "{gated:?}");
        assert!(missed.is_empty(), "{missed:?}");
    }

    #[test]
    fn version_and_stream_form_choose_the_symbol() {
        use StreamForm::{Legacy, PerThread};
        let cases = [
            ("cuInit", 2000, Legacy, Some("cuInit")),
            ("cuMemAlloc", 2000, Legacy, Some("cuMemAlloc")),
            ("cuMemAlloc", 12000, Legacy, Some("cuMemAlloc_v2")),
            ("cuMemcpyHtoD", 6000, PerThread, Some("cuMemcpyHtoD_v2")),
            ("cuMemcpyHtoD", 7000, PerThread, Some("cuMemcpyHtoD_v2_ptds")),
            ("cuMemcpyHtoD", 13000, Legacy, Some("cuMemcpyHtoD_v2")),
            ("cuLaunchKernel", 12000, PerThread, Some("cuLaunchKernel_ptsz")),
            ("cuGetProcAddress", 11030, Legacy, Some("cuGetProcAddress")),
            ("cuGetProcAddress", 12000, Legacy, Some("cuGetProcAddress_v2")),
            ("cuCtxCreate", 12040, Legacy, Some("cuCtxCreate_v3")),
            ("cuMemAlloc", 1000, Legacy, None),
            ("cuMem", 13000, Legacy, None),
            ("cuNoSuchThing", 13000, Legacy, None),
        ];
        for (name, version, form, expected) in cases {
            assert_eq!(symbol(name, version, form), expected, "{name} {version} {form:?}");
        }
    }
}
