//! Makes stubs of libcuda.so.1 and libnvidia-ml.so.1 to link `nvml_linked`, `nvml_rpath`, and `loads_linked`, `loads_rpath` and `loads_runpath` with.
//!
//! Owns: the stub and the linker flags of these programs. The toolkit has such a stub for the same
//! purpose, but needs downloading; the C compiler is the linker that rustc uses anyway.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CC");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    stub(&out, "cuda", "unsigned cuInit(unsigned flags) { return flags ? 1 : 999; }\n");
    let functions =
        ["Init_v2", "DeviceGetHandleByIndex_v2", "DeviceGetUUID", "DeviceGetMemoryInfo"];
    let source = functions.map(|name| format!("int nvml{name}(void) {{ return 999; }}\n")).concat();
    stub(&out, "nvidia-ml", &source);
    for program in ["nvml_linked", "nvml_rpath"] {
        println!("cargo::rustc-link-arg-bin={program}=-L{}", out.display());
        println!("cargo::rustc-link-arg-bin={program}=-lnvidia-ml");
    }
    for program in ["loads_linked", "loads_rpath", "loads_runpath"] {
        println!("cargo::rustc-link-arg-bin={program}=-L{}", out.display());
        println!("cargo::rustc-link-arg-bin={program}=-lcuda");
    }
    for program in ["loads_rpath", "nvml_rpath"] {
        println!("cargo::rustc-link-arg-bin={program}=-Wl,--disable-new-dtags,-rpath,$ORIGIN/sim");
    }
    println!("cargo::rustc-link-arg-bin=loads_runpath=-Wl,--enable-new-dtags,-rpath,$ORIGIN/sim");
}

/// Makes `libNAME.so` with the SONAME `libNAME.so.1`.
fn stub(out: &Path, name: &str, text: &str) {
    let source = out.join(format!("{name}.c"));
    fs::write(&source, text)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", source.display()));
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-o"])
        .arg(out.join(format!("lib{name}.so")))
        .arg(format!("-Wl,-soname,lib{name}.so.1"))
        .arg(&source)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{compiler} could not make the stub of lib{name}.so.1: {status}"),
        Err(error) => panic!("cannot run the C compiler {compiler} (set CC to another): {error}"),
    }
}
