//! Gives the library NVML's SONAME, and takes the unwinder from GCC's static library, so that libc
//! is all that is mapped into other people's programs beside it.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libnvidia-ml.so.1");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    println!("cargo::rerun-if-changed=build.rs");
}
