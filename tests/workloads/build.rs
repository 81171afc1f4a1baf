//! Makes a stub of libcuda.so.1 to link `loads_linked`, `loads_rpath` and `loads_runpath` with.
//!
//! Owns: the stub and the linker flags of these programs. The toolkit has such a stub for the same
//! purpose, but needs downloading; the C compiler is the linker that rustc uses anyway.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CC");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let source = out.join("stub.c");
    fs::write(&source, "unsigned cuInit(unsigned flags) { return flags ? 1 : 999; }\n")
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", source.display()));
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"])
        .arg(out.join("libcuda.so"))
        .arg(&source)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{compiler} could not make the stub of libcuda.so.1: {status}"),
        Err(error) => panic!("cannot run the C compiler {compiler} (set CC to another): {error}"),
    }
    for program in ["loads_linked", "loads_rpath", "loads_runpath"] {
        println!("cargo::rustc-link-arg-bin={program}=-L{}", out.display());
        println!("cargo::rustc-link-arg-bin={program}=-lcuda");
    }
    println!("cargo::rustc-link-arg-bin=loads_rpath=-Wl,--disable-new-dtags,-rpath,$ORIGIN/sim");
    println!("cargo::rustc-link-arg-bin=loads_runpath=-Wl,--enable-new-dtags,-rpath,$ORIGIN/sim");
}
