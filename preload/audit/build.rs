//! Takes the unwinder from GCC's static library, so that libc is all that the dynamic linker has to
//! map beside the library.

fn main() {
    println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    println!("cargo::rerun-if-changed=build.rs");
}
