//! Gives the library the driver's SONAME: whoever asks the dynamic linker for libcuda.so.1 gets
//! what is loaded under that name already, which is this. And takes the unwinder from GCC's static
//! library, so that libc is all that is mapped into other people's programs beside it.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    // A program that closes the library must not take the code from under the link thread.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    println!("cargo::rerun-if-changed=build.rs");
}
