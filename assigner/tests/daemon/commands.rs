//! Commands, messages and exit codes, as ACB has them.

use std::fs;

use crate::support::{Home, errors, eventually, words};

#[test]
fn a_daemon_starts_shows_itself_and_stops() {
    let home = Home::new();
    let output = home.assigner(&["start"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let address = format!("127.0.0.1:{}", home.port);
    assert_eq!(words(&output), format!("INFO: Successfully started GPU Assigner on {address}\n"));

    let pid = fs::read_to_string(home.path(".acb/gpu-assigner.pid")).unwrap();
    let pid = pid.trim();
    let output = home.assigner(&["status"]);
    assert_eq!(output.status.code(), Some(0));
    let first = format!("INFO: GPU assigner is running on {address} (pid={pid})\n");
    assert!(words(&output).starts_with(&first), "{}", words(&output));
    assert!(words(&output).contains("Simulated GPU"), "{}", words(&output));

    let output = home.assigner(&["start"]);
    assert_eq!(output.status.code(), Some(75), "{}", errors(&output));
    assert!(errors(&output).contains(&format!("pid={pid}")));

    let output = home.assigner(&["stop"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let killed = format!(
        "INFO: Successfully killed GPU assigner process running on {address} (pid={pid})\n"
    );
    assert_eq!(words(&output), killed);
    assert!(!home.path(".acb/gpu-assigner.pid").exists());
}

#[test]
fn exit_codes_tell_what_is_wrong() {
    let home = Home::new();
    let code = |arguments: &[&str]| home.assigner(arguments).status.code();
    let output = home.assigner(&[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(errors(&output).starts_with("WARNING: "), "{}", errors(&output));
    assert_eq!(code(&["start", "--no-such-option"]), Some(2));
    assert_eq!(code(&["--address", "0.0.0.0", "start"]), Some(2));
    assert_eq!(code(&["status"]), Some(69));
    assert_eq!(code(&["stop"]), Some(69));
    assert_eq!(code(&["start", "--gpu-list", "9"]), Some(1));

    let pid_file = home.path("pid");
    let pid_option = ["--pid-file-path", pid_file.to_str().unwrap()];
    fs::write(&pid_file, "no number").unwrap();
    for command in ["start", "status", "stop"] {
        assert_eq!(code(&[pid_option[0], pid_option[1], command]), Some(65), "{command}");
    }
    fs::remove_file(&pid_file).unwrap();
    fs::create_dir(&pid_file).unwrap();
    assert_eq!(code(&[pid_option[0], pid_option[1], "status"]), Some(65));

    let no_folder = Home::new();
    fs::write(no_folder.path(".acb"), "a file").unwrap();
    assert_eq!(no_folder.assigner(&["start"]).status.code(), Some(73));
}

#[test]
fn a_message_names_the_thing_and_the_remedy() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let cases: [(&[&str], i32, [&str; 2]); 9] = [
        (&["--address", "localhost", "start"], 2, ["'localhost'", "like 127.0.0.1"]),
        (&["--address", "0.0.0.0", "start"], 2, ["0.0.0.0", "give 127.0.0.1"]),
        (&["--address", "192.0.2.1", "start"], 1, ["192.0.2.1", "--address"]),
        (&["start", "--schduler", "simple"], 2, ["--schduler", "'--scheduler'"]),
        (&["start", "--scheduler", "fifo"], 2, ["'fifo'", "gpu-affinity"]),
        (&["start", "--gpu-list", "0,x"], 2, ["`x`", "index like 0"]),
        (&["start", "--log-path", "/proc/none/log"], 1, ["/proc/none/log", "--log-path"]),
        (&["--socket-dir", "/proc/none", "start"], 1, ["/proc/none", "--socket-dir"]),
        (&["--multinode", "start"], 1, ["multinode.toml", "table for each host"]),
    ];
    for (arguments, code, texts) in cases {
        let output = home.assigner(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let message = errors(&output);
        assert!(texts.iter().all(|text| message.contains(text)), "{arguments:?}: {message}");
    }
    let output = command_with_port(&home, &port);
    assert_eq!(output.status.code(), Some(1));
    let message = errors(&output);
    assert!(message.contains(&port) && message.contains("--port"), "{message}");
    for wrong in ["0", "70000"] {
        let output = command_with_port(&home, wrong);
        assert_eq!(output.status.code(), Some(2));
        assert!(errors(&output).contains("1..=65535"), "{}", errors(&output));
    }
}

fn command_with_port(home: &Home, port: &str) -> std::process::Output {
    let mut command = home.command(env!("CARGO_BIN_EXE_gpu_assigner"));
    command.args(["--port", port, "start"]).output().unwrap()
}

#[test]
fn a_daemon_listens_on_ipv6_too() {
    let home = Home::new();
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let at = format!("[::1]:{}", home.port);
    let output = home.assigner(&["--address", "::1", "start"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(words(&output), format!("INFO: Successfully started GPU Assigner on {at}\n"));
    assert!(words(&home.assigner(&["--address", "::1", "status"])).contains(&at));
    assert_eq!(home.assigner(&["--address", "::1", "stop"]).status.code(), Some(0));
}

#[test]
fn a_missing_nvml_is_told_to_the_user() {
    let home = Home::new();
    let output = home.assigner(&["start", "--nvml", "/nowhere/libnvidia-ml.so.1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("/nowhere/libnvidia-ml.so.1"), "{}", errors(&output));
    assert!(!home.path(".acb/gpu-assigner.pid").exists());
}

#[test]
fn a_stale_pid_file_is_no_obstacle_and_a_missing_one_no_hiding_place() {
    let home = Home::new();
    fs::create_dir(home.path(".acb")).unwrap();
    fs::write(home.path(".acb/gpu-assigner.pid"), "2147483647").unwrap();
    home.start(&[]);
    fs::remove_file(home.path(".acb/gpu-assigner.pid")).unwrap();
    assert_eq!(home.assigner(&["start"]).status.code(), Some(75));
    assert_eq!(home.assigner(&["stop"]).status.code(), Some(0));
}

#[test]
fn sigint_and_sighup_are_ignored_and_sigterm_ends_it() {
    let home = Home::new();
    home.start(&[]);
    let pid = home.pid().to_string();
    let socket = home.socket();
    let send = |signal: &str| {
        let sent = std::process::Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    };
    send("-INT");
    send("-HUP");
    assert_eq!(home.pid().to_string(), pid);
    send("-TERM");
    eventually("the daemon is gone", || (!socket.exists()).then_some(()));
    eventually("nothing answers", || {
        (home.assigner(&["status"]).status.code() == Some(69)).then_some(())
    });
}

#[test]
fn what_the_parent_did_to_signals_does_not_keep_the_daemon_alive() {
    let home = Home::new();
    let port = home.port.to_string();
    let mut command = home.command("env");
    command.args(["--block-signal=TERM,CHLD", "--ignore-signal=TERM,CHLD"]);
    command.args([env!("CARGO_BIN_EXE_gpu_assigner"), "--port", &port, "start"]);
    let output = command.output().unwrap();
    if output.status.code() == Some(125) {
        eprintln!("skipped: needs env of coreutils 8.31");
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(home.assigner(&["stop"]).status.code(), Some(0));
    let log = fs::read_to_string(home.path(".acb/gpu-assigner.log")).unwrap();
    assert!(log.contains("told to end"), "{log}");
    assert!(!log.contains("killing it"), "{log}");
}

#[test]
fn the_execution_time_ends_it() {
    let home = Home::new();
    // It serves by then, also on a busy machine.
    home.start(&["--gpu-assigner-execution-time", "5"]);
    eventually("the daemon is gone", || {
        (home.assigner(&["status"]).status.code() == Some(69)).then_some(())
    });
}

/// `gpu_assigner status | head -1`.
#[test]
fn a_reader_that_has_enough_is_no_error() {
    let home = Home::new();
    home.start(&[]);
    for arguments in [&["status"][..], &["status", "--json"], &["completion", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = home
            .command(env!("CARGO_BIN_EXE_gpu_assigner"))
            .args(["--port", &home.port.to_string()])
            .args(arguments)
            .stdout(writer)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", errors(&output));
        assert_eq!(errors(&output), "", "{arguments:?}");
    }
}

#[test]
fn both_programs_can_be_completed() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        for (program, option) in [("gpu_assigner", "gpu-list"), ("agarun", "gang")] {
            let output = home.assigner(&["completion", shell, "--program", program]);
            let script = words(&output);
            assert!(script.contains(program) && script.contains(option), "{shell} {program}");
        }
    }
}
