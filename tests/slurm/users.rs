//! Users who mean harm: to each other, and to root.

use crate::stage;
use acb_cluster_conf::{JobFacts, JobSpec, Key, Request, SiteConfig};
use acb_tests::lab::{Account, Cluster, JobId, Lab, SIMULATED, processes_naming};
use acb_wire::frame::Decoder;
use acb_wire::v1::assigner_message::Kind;
use acb_wire::v1::{AssignerMessage, RefusedCode};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

/// Connects, and prints what comes until the other side closes; 2: no connection.
const CONNECT: &str = "use IO::Socket::UNIX; \
    my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or exit 2; \
    my $all = ''; while (sysread($s, my $b, 4096)) { $all .= $b } print unpack('H*', $all);";

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
        std::fs::set_permissions(folder.join(socket), PermissionsExt::from_mode(0o777))?;
    }
    let socket = folder.join("client.sock").display().to_string();
    let outcome = lab.run_as(&users[1], &["perl", "-e", CONNECT, &socket])?;
    ensure!(outcome.status.code() == Some(0), "{outcome}");
    for message in messages(&outcome.stdout)? {
        let refused = matches!(&message.kind, Some(Kind::Refused(refused))
            if refused.code() == RefusedCode::Permission);
        ensure!(refused, "a stranger was told {message:?}");
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

fn messages(hex: &str) -> Result<Vec<AssignerMessage>> {
    let bytes: Result<Vec<_>, _> = (0..hex.len() / 2)
        .map(|index| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16))
        .collect();
    let mut decoder = Decoder::new();
    decoder.extend(&bytes?);
    let mut messages = Vec::new();
    while let Some(message) = decoder.next()? {
        messages.push(message);
    }
    Ok(messages)
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

/// What a user puts into their own folder makes root kill, follow or remove nothing of others.
pub(crate) fn folder_is_no_weapon(lab: &Lab) -> Result<()> {
    let user = stage::user()?;
    let victim = lab.folder().join("home/root/victim");
    std::fs::create_dir_all(&victim)?;
    std::fs::write(victim.join("file"), "still here")?;
    let slurmd = processes_naming(&lab.folder().join("slurm.conf").display().to_string())
        .into_iter()
        .find(|(_, command)| command.contains("slurmd -D -N n1"))
        .context("slurmd of n1")?
        .0;
    let script = format!(
        "#!/bin/bash
#SBATCH --acb --gres=gpu:1 --nodelist=n1
cd $(dirname $ACB_SOCKET)
sed -i 's/\"pid\": *[0-9]*/\"pid\":{slurmd}/' ready.json
ln -s {victim} link; rm -f state.json; ln -s {victim}/file state.json; mkfifo stats.json.new
perl -e 'for (1 .. 3000) {{ mkdir q(d); chdir q(d) }} symlink q({victim}), q(link)'
srun true; echo srun $?
echo garbage > ready.json
srun true; echo srun $?
rm -f ready.json; mkdir ready.json
srun true; echo srun $?
",
        victim = victim.display()
    );
    let job = lab.submit(&user, &script)?;
    ensure!(lab.await_end(job, stage::PATIENCE)? == "COMPLETED");
    let output = lab.output(&user, job)?;
    ensure!(output.matches("srun 1").count() == 2 && output.contains("ready.json"), "{output}");
    stage::assert_gone(lab, job)?;
    ensure!(std::fs::read_to_string(victim.join("file"))? == "still here");
    ensure!(std::path::Path::new(&format!("/proc/{slurmd}")).exists(), "slurmd of n1 is gone");
    Ok(())
}

/// Nor does what they put into their environment.
pub(crate) fn environment_is_no_weapon(lab: &Lab) -> Result<()> {
    let user = stage::user()?;
    let long = "x:".repeat(60_000);
    let inherited = "SLURM_SPANK__SLURM_SPANK_OPTION_acb_acb";
    let hostile: [(&str, &OsStr); 9] = [
        ("SLURM_GPUS_PER_TASK", OsStr::new("a100:-1")),
        ("LD_PRELOAD", OsStr::from_bytes(b"/\xff\xfe.so")),
        ("LD_LIBRARY_PATH", OsStr::new(&long)),
        ("ACB_SOCKET", OsStr::new("/nowhere")),
        ("ACB_CONF", OsStr::new("/nowhere")),
        ("SLURM_SPANK_ACB_KEY", OsStr::new("not a key")),
        ("SPANK_ACB_KEY", OsStr::new("not a key")),
        (inherited, OsStr::new("%n%s#$(reboot)")),
        (inherited, OsStr::new("(null)")),
    ];
    for (name, value) in hostile {
        let output = lab
            .command_as(&user, "srun")?
            .args(["--acb", "--gres=gpu:1", "true"])
            .env(name, value)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        // It runs, or says why not; it does not crash, and does not hurt.
        ensure!(output.status.success() || said.contains("error: "), "{name}: {said}");
        ensure!(!said.contains("internal error"), "{name}: {said}");
        stage::nodes_are_well(lab).with_context(|| name.to_owned())?;
    }
    Ok(())
}

/// Where the run folder lies in a folder of everybody, a user can make it before root does. What they
/// put there is not root's record of their job.
#[test]
fn a_users_run_folder_is_not_believed() -> Result<()> {
    let Some(lab) = stage::own(|options| options.cluster = Cluster::Text(SIMULATED.into()))? else {
        return Ok(());
    };
    let user = stage::user()?;
    let open = lab.folder().join("open");
    std::fs::create_dir(&open)?;
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o1777))?;
    let run_dir = open.join("run");
    let text =
        format!("[paths]\nrun_dir = \"{}\"\nbin_dir = \"{}\"\n", run_dir.display(), open.display());
    std::fs::write(lab.cluster_file(), &text)?;

    let outcome = lab.submit_outcome(&user, "#!/bin/bash\nhostname\n", &["--hold", "-wn1"])?;
    let job = JobId(outcome.checked()?.trim().parse()?);
    // As if the job were an acb job of root's.
    let facts = JobFacts {
        job_id: job.to_string().parse()?,
        node: "n1".into(),
        nodes: vec!["n1".into()],
        uid: 0,
        gid: 0,
        home: None,
        key: Key::new([0; 32]),
        gpus: vec![0],
        slurm_conf: None,
    };
    let spec = JobSpec::plan(&SiteConfig::parse("x", &text)?, &Request::default(), facts)?;
    let folder = run_dir.join("n1/spec");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(format!("{job}.toml")), spec.to_toml())?;
    let program = open.join("gpu_assigner");
    std::fs::write(&program, format!("#!/bin/sh\nid > {}/who\necho ready >&3\n", open.display()))?;
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
    for path in [&run_dir, &run_dir.join("n1"), &folder, &folder.join(format!("{job}.toml"))] {
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))?;
    }

    ensure!(lab.run(&["scontrol", "release", &job.to_string()])?.success());
    ensure!(lab.await_end(job, stage::PATIENCE)? == "COMPLETED", "{}", lab.output(&user, job)?);
    lab.await_idle()?;
    if let Ok(who) = std::fs::read_to_string(open.join("who")) {
        bail!("a user's program was run as {who}");
    }
    ensure!(folder.join(format!("{job}.toml")).exists(), "root removed what is the user's");

    // Nor is anything made there.
    let outcome = lab.run_as(&user, &["srun", "--acb", "--gres=gpu:1", "-wn1", "hostname"])?;
    let said = "must be a folder that root alone can write";
    ensure!(!outcome.success() && outcome.stderr.contains(said), "{outcome}");
    stage::nodes_are_well(&lab)
}
