//! Ends the lab when its owner is gone.
//!
//! Owns: the guard process, a shell that reads from a pipe until its other end is closed: by
//! [`Guard::release`], or by the kernel when the owner was interrupted, has panicked or was killed.
//! There is one way to stop a lab, `guard.sh`, and it needs nothing of the owner.

use anyhow::{Context, Result};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    pub(super) fn start(lab: &Path) -> Result<Self> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", include_str!("guard.sh")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let mut pipe = child.stdin.take();
        let lines = format!("{}\n{}\n", lab.display(), std::process::id());
        pipe.as_mut().context("the guard's stdin")?.write_all(lines.as_bytes())?;
        Ok(Self { child, pipe })
    }

    /// Tells the guard of a daemon that it must end.
    pub(super) fn watch(&mut self, name: &str, pid: u32) -> Result<()> {
        let pipe = self.pipe.as_mut().context("the lab is being stopped")?;
        pipe.write_all(format!("{name} {pid}\n").as_bytes()).context("tell the lab's guard")
    }

    /// Lets the guard do its work.
    pub(super) fn release(&mut self) {
        self.pipe = None;
    }

    /// Waits until it has.
    pub(super) fn wait(&mut self) {
        let _ = self.child.wait();
    }
}
