//! Two users on one node.

use crate::stage;
use acb_tests::lab::{Account, JobId, Lab};
use anyhow::{Result, ensure};
use std::os::unix::fs::PermissionsExt;

/// Connects and waits for the other side to close, which is the exit code 0; 1: it spoke; 2: no
/// connection.
const CONNECT: &str = "use IO::Socket::UNIX; \
    my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or exit 2; \
    my $n = sysread($s, my $b, 1); exit(defined $n && $n > 0 ? 1 : 0);";

/// Neither reaches the other's sockets, even where the other has opened the door.
pub(crate) fn apart(lab: &Lab) -> Result<()> {
    let users = [Account::test(1)?, Account::test(2)?];
    let phases = stage::program(lab, "phases");
    let script = format!(
        "#!/bin/bash\n#SBATCH --acb --gres=gpu:1 --nodelist=n1\nsrun {phases} --duration 600\n"
    );
    let jobs = users.each_ref().map(|user| lab.submit(user, &script));
    let [one, two] = jobs;
    let jobs = [one?, two?];
    for (user, job) in users.iter().zip(jobs) {
        let node = stage::await_running(lab, job)?;
        stage::await_holder(lab, user, &node, job)?;
    }
    stays_out(lab, &users[1], jobs[0])?;
    stays_out(lab, &users[0], jobs[1])?;

    // Whatever the first does to their own folder: the assigner asks the kernel who connects.
    let folder = stage::folder(lab, "n1", jobs[0]);
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o777))?;
    for socket in ["client.sock", "tools.sock"] {
        let socket = folder.join(socket);
        std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o777))?;
        let outcome =
            lab.run_as(&users[1], &["perl", "-e", CONNECT, &socket.display().to_string()])?;
        ensure!(outcome.status.code() == Some(0), "{}: {outcome}", socket.display());
    }
    ensure!(stage::status(lab, &users[1], "n1", jobs[0])?.is_none(), "a stranger sees the status");
    ensure!(stage::status(lab, &users[0], "n1", jobs[0])?.is_some(), "the owner does not");

    for job in jobs {
        ensure!(lab.run(&["scancel", &job.to_string()])?.success());
        lab.await_end(job, stage::PATIENCE)?;
        stage::assert_gone(lab, job)?;
    }
    Ok(())
}

/// The folder is closed, and so are root's records.
fn stays_out(lab: &Lab, stranger: &Account, job: JobId) -> Result<()> {
    let folder = stage::folder(lab, "n1", job);
    let spec = lab.run_dir().join(format!("n1/spec/{job}.toml"));
    for path in [folder.join("client.sock"), folder.join("spec.toml"), folder, spec] {
        let path = path.display().to_string();
        let outcome = lab.run_as(stranger, &["ls", &path])?;
        // `ls FOLDER` itself is refused as well.
        ensure!(!outcome.success(), "{outcome}");
    }
    ensure!(stage::status(lab, stranger, "n1", job)?.is_none());
    Ok(())
}
