//! Gives the library the driver's SONAME: whoever asks the dynamic linker for libcuda.so.1 gets
//! what is loaded under that name already, which is this.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    println!("cargo::rerun-if-changed=build.rs");
}
