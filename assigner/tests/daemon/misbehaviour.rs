//! What a broken or hostile peer can do to others: nothing.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use acb_wire::v1::{self, RefusedCode, assigner_message::Kind, client_message};

use crate::support::{Client, Home, eventually, words};

#[test]
fn garbage_closes_that_connection_alone() {
    let home = Home::new();
    home.start(&["--gpu-list", "0"]);
    let socket = home.socket();
    let (mut good, _) = Client::join(&socket, None);
    good.bind();
    let frames: [&[u8]; 4] =
        [&[0xff; 64], &[b'G'; 100], &[3, 0xff, 0xff, 0xff], &[0x81, 0x80, 0x80, 0x80, 1]];
    for garbage in frames {
        let mut bad = Client::connect(&socket);
        bad.stream.write_all(garbage).unwrap();
        assert!(bad.try_next().is_none());
        let (mut bad, _) = Client::join(&socket, None);
        bad.stream.write_all(garbage).unwrap();
        assert!(bad.try_next().is_none());
    }
    let mut half = Client::connect(&socket);
    half.stream.write_all(&[20, 1, 2]).unwrap();
    drop(half);
    good.acquire();
    good.granted();
}

#[test]
fn a_first_message_that_is_no_hello_and_an_unknown_protocol_are_refused() {
    let home = Home::new();
    home.start(&[]);
    let socket = home.socket();
    let mut client = Client::connect(&socket);
    client.acquire();
    let Kind::Refused(refused) = client.next() else { panic!("not refused") };
    assert_eq!(refused.code(), RefusedCode::Protocol);
    let mut client = Client::connect(&socket);
    let hello = v1::Hello { protocol: 77, ..v1::Hello::default() };
    client.send(client_message::Kind::Hello(hello));
    let Kind::Refused(refused) = client.next() else { panic!("not refused") };
    assert!(refused.reason.contains("77"), "{}", refused.reason);
    assert!(client.try_next().is_none());
}

#[test]
fn a_client_that_never_reads_is_dropped_and_others_go_on() {
    let home = Home::new();
    home.start(&["--gpu-list", "0"]);
    let socket = home.socket();
    let (mut greedy, _) = Client::join(&socket, None);
    // Every request for an unknown device is answered at once; no answer is read.
    let request = |seq| {
        client_message::Kind::RoomRequest(v1::RoomRequest {
            seq,
            device: 99,
            ..v1::RoomRequest::default()
        })
    };
    let mut seq = 0;
    loop {
        let message = v1::ClientMessage { kind: Some(request(seq)) };
        if greedy.stream.write_all(&acb_wire::frame::encode(&message)).is_err() {
            break;
        }
        seq += 1;
        assert!(seq < 10_000_000, "never dropped");
    }
    let (mut good, _) = Client::join(&socket, None);
    good.bind();
    good.acquire();
    good.granted();
}

#[test]
fn another_user_is_refused() {
    let home = Home::new();
    home.start(&[]);
    let socket = home.socket();
    // The folder keeps strangers out; open it, to see that the daemon asks who comes all the same.
    let mut folder = socket.parent();
    while let Some(path) = folder.filter(|path| path.starts_with(home.folder.path())) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        folder = path.parent();
    }
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
    let script = format!(
        "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect({:?})\nsys.stdout.write(repr(s.recv(4096)))",
        socket.to_str().unwrap()
    );
    let stranger = |arguments: &[&str]| {
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(arguments)
            .output()
            .unwrap()
    };
    let told = stranger(&["python3", "-c", &script]);
    if !told.status.success() {
        eprintln!("skipped: needs root, setpriv and python3");
        return;
    }
    assert!(words(&told).contains("you are uid 65534"), "{}", words(&told));
    let port = home.port.to_string();
    let own = env!("CARGO_BIN_EXE_gpu_assigner");
    if stranger(&["test", "-x", own]).status.success() {
        let asked = stranger(&["env", "HOME=/tmp", own, "--port", &port, "status"]);
        assert_eq!(asked.status.code(), Some(69), "{}", words(&asked));
    }
}

/// A program of its own that holds the GPU, and a client that waits for it; `None`, and said, without python3.
fn holder_and_next(home: &Home, script: &str) -> Option<(std::process::Child, Client)> {
    home.start(&["--gpu-list", "0"]);
    let socket = home.socket();
    let (mut next, _) = Client::join(&socket, None);
    next.bind();
    let mut holder = home.command("python3");
    holder.args(["-c", script, socket.to_str().unwrap()]);
    holder.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let Ok(holder) = holder.spawn() else {
        eprintln!("skipped: needs python3");
        return None;
    };
    eventually("the other one holds", || {
        let status = home.status();
        let clients = status["nodes"][0]["clients"].as_array().unwrap().clone();
        clients.iter().any(|client| client["state"] == "holding").then_some(())
    });
    next.acquire();
    Some((holder, next))
}

#[test]
fn the_lease_of_a_killed_client_goes_to_the_next() {
    let home = Home::new();
    let Some((mut holder, mut next)) = holder_and_next(&home, HOLDER) else { return };
    holder.kill().unwrap();
    next.granted();
    holder.wait().unwrap();
    let clients = home.status()["nodes"][0]["clients"].as_array().unwrap().len();
    assert_eq!(clients, 1);
}

#[test]
fn the_lease_of_a_program_that_runs_another_in_its_place_goes_to_the_next() {
    let home = Home::new();
    let Some((mut holder, mut next)) = holder_and_next(&home, REPLACED) else { return };
    // It execs, and lives on.
    drop(holder.stdin.take());
    next.granted();
    assert!(holder.try_wait().unwrap().is_none());
    holder.kill().unwrap();
    holder.wait().unwrap();
    // The 2 s that a lost connection has were not waited for.
    let log = std::fs::read_to_string(home.path(".acb/gpu-assigner.log")).unwrap();
    assert!(log.contains("runs another program now") && !log.contains("lives on"), "{log}");
}

/// Whether it is bound to that GPU or could have any.
#[test]
fn who_waits_hears_of_a_kernel_that_does_not_end() {
    let home = Home::new();
    home.start(&["--gpu-list", "0"]);
    let socket = home.socket();
    let (mut holder, _) = Client::join(&socket, None);
    holder.bind();
    holder.acquire();
    let epoch = holder.granted();
    let (mut bound, _) = Client::join(&socket, None);
    bound.bind();
    let (mut floating, _) = Client::join(&socket, None);
    for waiting in [&mut bound, &mut floating] {
        waiting.acquire();
    }
    eventually("both wait", || {
        let status = home.status();
        let clients = status["nodes"][0]["clients"].as_array().unwrap();
        let waiting = clients.iter().filter(|client| client["state"] == "waiting").count();
        (waiting == 2).then_some(())
    });
    let kernel = "acb_endless".to_owned();
    holder.send(client_message::Kind::Stuck(v1::Stuck { epoch, seconds: 5, kernel }));
    holder.release(epoch);
    // The first of the two that wait is granted after that, the other one hears of it all the same.
    for waiting in [&mut bound, &mut floating] {
        loop {
            match waiting.next() {
                Kind::Notice(notice) => {
                    assert!(notice.text.contains("acb_endless"), "{}", notice.text);
                    break;
                }
                Kind::Granted(granted) => panic!("{granted:?} before the notice"),
                _ => {}
            }
        }
        if let Kind::Granted(granted) = waiting.next() {
            waiting.release(granted.epoch);
        }
    }
}

/// Says Hello, Bind and Acquire, and runs another program once its input ends.
const REPLACED: &str = "
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(bytes([6, 0x0a, 4, 0x08, 1, 0x28, 1, 2, 0x12, 0, 2, 0x1a, 0]))
sys.stdin.read()
os.execvp('sleep', ['sleep', '1000'])
";

/// Says Hello, Bind and Acquire, and then nothing, in the bytes of the wire; a child that outlives
/// it keeps the connection open.
const HOLDER: &str = "
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(bytes([6, 0x0a, 4, 0x08, 1, 0x28, 1, 2, 0x12, 0, 2, 0x1a, 0]))
if os.fork() == 0:
    os.close(1)
    time.sleep(20)
    os._exit(0)
time.sleep(1000)
";
