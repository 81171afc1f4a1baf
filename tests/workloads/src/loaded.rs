//! Which library answered a program that loaded the driver, and whether that is the interposer.
//!
//! Owns: that question and its answer as a line of JSON. Does not own: loading.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

/// The answer for one way of loading.
#[derive(Clone, Debug, Serialize)]
pub struct Loaded {
    /// The way, as the command line names it.
    pub way: &'static str,
    /// The file whose `cuInit` the program got.
    pub library: String,
    /// Whether that file is the one that LD_PRELOAD names first.
    pub interposed: bool,
    /// What the program then did: "ok", or the call that failed.
    pub result: String,
}

impl Loaded {
    /// The answer for a way whose `cuInit` is in `library`.
    pub fn new(way: &'static str, library: String, result: String) -> Self {
        let interposed = is_preloaded(Path::new(&library));
        Self { way, library, interposed, result }
    }

    /// Whether the program's work went well.
    pub fn is_ok(&self) -> bool {
        self.result == "ok"
    }

    /// 0 when the program's work went well.
    pub fn exit_code(&self) -> ExitCode {
        if self.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Prints the answer as a line of JSON.
    pub fn print(&self) {
        println!("{}", serde_json::to_string(self).expect("a struct of strings is always JSON"));
    }
}

/// Whether a file is the first that LD_PRELOAD names: by device and inode, for it may have several names.
fn is_preloaded(library: &Path) -> bool {
    let preload = std::env::var("LD_PRELOAD").unwrap_or_default();
    let Some(first) = preload.split([':', ' ']).find(|name| !name.is_empty()) else { return false };
    match (fs::metadata(library), fs::metadata(first)) {
        (Ok(library), Ok(first)) => (library.dev(), library.ino()) == (first.dev(), first.ino()),
        _ => false,
    }
}
