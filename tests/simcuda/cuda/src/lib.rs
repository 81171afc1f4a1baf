//! The software GPU's `libcuda.so.1`: the CUDA driver API on any machine. Work
//! on a GPU takes modelled time and no processor; what it does to memory is real
//! and is seen when its time is over, not earlier.
//!
//! `calls` has the API's functions, one file a group; they translate and check.
//! `driver` is the process's one instance, `timeline` decides when work runs,
//! `space` knows device addresses, `work` and `kernels` do the work.
#![allow(non_snake_case)] // the driver's functions keep their names

mod calls;
mod capture;
mod code;
mod conditions;
mod driver;
mod exports;
mod fatbin;
mod graph;
mod graph_memory;
mod handles;
mod host_time;
mod kernels;
mod link;
mod loaded;
mod loading;
mod objects;
mod physical;
mod pool;
mod ptx;
mod replay;
mod shared_event;
mod space;
mod timeline;
mod unasked;
mod work;
