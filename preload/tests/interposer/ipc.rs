//! Memory shared by handles of the old kind, of which the driver has none for paged memory.

use crate::between::{ends, returned};
use crate::play::{MIB, Play, gpu, paged_welcome, start_as, start_scenario};
use crate::setup::{Lab, interposer, software_gpu, wait_until};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// One that hands over, and one that is handed something; what they say goes to files.
fn pair(one: &str, other: &str) -> (Play, Play) {
    let (first, second) = labs();
    (play(first, one), play(second, other))
}

/// Two folders with one GPU; what is handed over lies in the first.
fn labs() -> (Lab, Lab) {
    let first = Lab::on_software_gpu("");
    let folder = first.folder.path().to_owned();
    let second = Lab::on_software_gpu("").with("SIMCUDA_CONFIG", folder.join("gpu.toml").display());
    let both = [first, second].map(|lab| {
        let log = lab.folder.path().join("log");
        lab.with("ACB_TEST_FOLDER", folder.display()).with("ACB_LOG_FILE", log.display())
    });
    both.into()
}

fn play(lab: Lab, words: &str) -> Play {
    start_scenario(lab, &format!("between {words}"), paged_welcome(), vec![gpu()])
}

/// The same as a user who has nothing here but what everybody may read.
fn play_as_nobody(lab: Lab, words: &str) -> Play {
    const NOBODY: u32 = 65534;
    assert!(
        rustix::process::geteuid().is_root(),
        "another user is played by root: see scripts/test"
    );
    let folder = lab.folder.path().to_owned();
    // Folders on the way to what was built may be closed to others.
    let reachable = |file: &Path, name: &str| {
        let copy = folder.join(name);
        std::fs::copy(file, &copy).expect("it is built");
        opened(&copy, 0o755);
        copy
    };
    let exe = reachable(&std::env::current_exe().expect("this program has a path"), "client");
    let interposer = reachable(interposer(), "interposer.so");
    let driver = reachable(software_gpu(), "driver.so");
    opened(&folder, 0o777);
    let lab = lab.with("LD_PRELOAD", interposer.display()).with("ACB_DRIVER", driver.display());
    let start = |lab: &Lab, scenario: &str| {
        opened(&lab.socket(), 0o777);
        let mut command = Command::new(&exe);
        command.args(["client_entry", "--exact", "--nocapture", "--test-threads=1"]);
        lab.start_program(command.uid(NOBODY).gid(NOBODY).current_dir("/"), scenario)
    };
    start_as(lab, &format!("between {words}"), paged_welcome(), vec![gpu()], start)
}

fn opened(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
}

/// Waits until a program's interposer has said something so often.
#[track_caller]
fn said(play: &Play, text: &str, times: usize) {
    let log = play.lab.folder.path().join("log");
    wait_until(text, || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.matches(text).count() >= times)
    });
}

impl Play {
    /// What it allocates first, it hands over in its first turn; from then on that stays.
    #[track_caller]
    fn hands_over(&mut self, bytes: u64) {
        self.claim(bytes);
        self.turn(1, bytes);
        self.shows(&[("ipc", bytes)]);
    }

    /// The end of a client, of which the lab is needed still.
    fn end_with(self, said: &str) -> Lab {
        let Play { lab, mut client, .. } = self;
        client.tell("on");
        client.end().succeeded().prints(said);
        lab
    }
}

const OPEN: &str = "are open in another process";

#[test]
fn another_process_opens_memory_which_stays_until_it_is_freed() {
    let one = "m8 w3 m40 w7 i . v9 f1 .";
    let (mut one, mut other) = pair(one, ". I40 v7 I40 w9 C C C .");
    one.claim(8 * MIB);
    one.turn(1, 8 * MIB);
    one.claim(40 * MIB);
    one.credit(40 * MIB);
    one.shows(&[("ipc", 40 * MIB)]);
    one.take_back(1);
    one.keeps(48 * MIB, 40 * MIB, "ipc");
    // Who opens it has nothing of its own, waits for its turn to work, and the two take turns.
    other.client.tell("on");
    other.peer.grant(1);
    other.ready(1);
    other.peer.hears_nothing();
    other.shows(&[]);
    other.take_back(1);
    one.client.tell("on");
    one.turn(2, 8 * MIB);
    // Nobody has it open any more.
    assert_eq!(one.returned().bytes, 40 * MIB);
    said(&one, "stays on GPU 0 from now on", 1);
    ends(one, &[]).prints("wrong=0");
    // As often closed as opened; then it is no more.
    ends(other, &["C=1"]).prints("wrong=0");
}

#[test]
fn a_handle_means_the_allocation_wherever_it_lies_in_its_chunk() {
    let (mut one, mut other) = pair("k100 w5 k300 w7 i . v9 .", ". J300 v7 w9 C .");
    one.hands_over(2 * MIB);
    one.take_back(1);
    other.client.tell("on");
    other.turn(1, 0);
    other.peer.hears_nothing();
    other.take_back(1);
    one.client.tell("on");
    one.turn(2, 0);
    ends(other, &[]).prints("wrong=0");
    ends(one, &[]).prints("wrong=0");
}

#[test]
fn what_is_freed_while_others_have_it_counts_until_they_close_it() {
    let (mut one, mut other) = pair("m16 w7 i . f0 . .", ". I16 . v7 C . .");
    one.hands_over(16 * MIB);
    other.client.tell("on");
    said(&one, OPEN, 1);
    one.client.tell("on");
    one.peer.hears_nothing();
    one.shows(&[("ipc", 16 * MIB)]);
    one.take_back(1);
    other.client.tell("on");
    other.turn(1, 0);
    assert_eq!(one.returned().bytes, 16 * MIB);
    other.take_back(1);
    one.client.tell("on");
    other.client.tell("on");
    ends(one, &[]);
    ends(other, &[]).prints("wrong=0");
}

#[test]
fn an_opener_that_is_killed_gives_memory_back() {
    let (mut one, mut other) = pair("m16 w7 i . f0 . .", ". I16 . .");
    one.hands_over(16 * MIB);
    other.client.tell("on");
    said(&one, OPEN, 1);
    one.client.tell("on");
    one.peer.hears_nothing();
    drop(other.client);
    assert_eq!(one.returned().bytes, 16 * MIB);
    one.client.tell("on");
    ends(one, &[]);
}

#[test]
fn memory_of_a_process_that_was_killed_counts_where_it_is_open() {
    let (mut one, mut other) = pair("m16 w7 i . .", ". I16 . v7 C .");
    one.hands_over(16 * MIB);
    other.client.tell("on");
    said(&one, OPEN, 1);
    // The lab is needed further on, for the GPU is of its folder.
    let Play { lab: _lab, client, .. } = one;
    drop(client);
    other.room(16 * MIB);
    other.shows(&[("ipc", 16 * MIB)]);
    other.client.tell("on");
    other.turn(1, 0);
    returned(&mut other, 16 * MIB);
    ends(other, &[]).prints("wrong=0");
}

#[test]
fn what_cannot_be_opened_says_why() {
    let (mut one, mut other) = pair("m4 w7 i I4 . . f0 . .", ". I4 . I4 . I4 .");
    one.hands_over(4 * MIB);
    let handle = one.lab.folder.path().join("memory");
    let whole = std::fs::read(&handle).expect("it was handed over");
    // Of another machine.
    let mut changed = whole.clone();
    changed[8] ^= 1;
    std::fs::write(&handle, changed).expect("the folder is writable");
    other.client.tell("on");
    said(&other, "another machine's", 1);
    // Freed.
    std::fs::write(&handle, &whole).expect("the folder is writable");
    one.client.tell("on");
    one.client.tell("on");
    assert_eq!(one.returned().bytes, 4 * MIB);
    other.client.tell("on");
    said(&other, "it has freed it", 1);
    // Ended; in its own process it was there already.
    one.client.tell("on");
    let _lab = one.end_with("I=201");
    other.client.tell("on");
    said(&other, "Connection refused", 1);
    ends(other, &["I=1", "I=1", "I=1"]);
}

/// Whoever it is that knows a handle: memory is for processes of the same user. One of them gets it after that all the same.
#[test]
fn another_user_is_refused_and_the_exporter_goes_on() {
    let (first, second) = labs();
    opened(first.folder.path(), 0o755);
    let third = Lab::on_software_gpu("")
        .with("SIMCUDA_CONFIG", first.folder.path().join("gpu.toml").display())
        .with("ACB_TEST_FOLDER", first.folder.path().display());
    // The software GPU is its user's; the stranger has another.
    let config = second.folder.path().join("gpu.toml");
    let second = second.with("SIMCUDA_CONFIG", config.display());
    let mut one = play(first, "m4 w7 i . .");
    one.hands_over(4 * MIB);
    let mut stranger = play_as_nobody(second, ". I4 .");
    stranger.client.tell("on");
    said(
        &stranger,
        "CUDA_ERROR_INVALID_VALUE is returned: it must live, have the memory still, be of this user",
        1,
    );
    let pid = stranger.client.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    assert!(status.contains("Uid:\t65534\t65534"), "{status}");
    ends(stranger, &["I=1"]);
    one.take_back(1);
    let mut other = play(third, "I4 v7 C .");
    other.turn(1, 0);
    ends(other, &[]).prints("wrong=0");
    one.client.tell("on");
    ends(one, &[]);
}

/// It waits for the exporter, but not for ever.
#[test]
fn an_exporter_that_is_stopped_does_not_hang_the_opener() {
    let (mut one, mut other) = pair("m4 w7 i . .", ". I4 . I4 v7 C .");
    one.hands_over(4 * MIB);
    one.take_back(1);
    one.client.stop();
    other.client.tell("on");
    said(&other, "it has not answered for 10 s", 1);
    one.client.go_on();
    other.client.tell("on");
    other.turn(1, 0);
    ends(other, &["I=1"]).prints("wrong=0");
    one.client.tell("on");
    ends(one, &[]);
}

/// Handles go between programs with the interposer, or between programs without it: others are refused, by both.
#[test]
fn a_handle_means_nothing_on_the_other_side() {
    let (first, second) = labs();
    let config = first.folder.path().join("gpu.toml");
    let folder = first.folder.path().to_owned();
    let mut one = play(first, "m4 w7 i . .");
    one.hands_over(4 * MIB);
    one.take_back(1);
    // The driver's own answer to what is no handle of its own.
    let outside = |words: &str| {
        let lab = second.outside().with("SIMCUDA_CONFIG", config.display());
        let lab = lab.with("ACB_TEST_FOLDER", folder.display());
        let lab = lab.with("LD_PRELOAD", software_gpu().display());
        let client = lab.start(&format!("between {words}"));
        (lab, client)
    };
    let (_lab, client) = outside("I4");
    client.end().succeeded().prints("I=1");
    // The driver's own handle means what it says; it counts where it was made.
    let (lab, mut client) = outside("m4 w9 i .");
    wait_until("it is handed over", || lab.count("paused") == 1);
    let mut other = play(second, "I4 v9 C .");
    other.peer.grant(1);
    other.ready(1);
    other.shows(&[]);
    ends(other, &[]).prints("wrong=0");
    client.tell("on");
    client.end().succeeded();
    one.client.tell("on");
    ends(one, &[]);
}

#[test]
fn a_forked_child_neither_serves_nor_holds_what_is_open() {
    let (mut one, mut other) = pair("m16 w7 i . f0 . .", ". I16 Y . C . X .");
    one.hands_over(16 * MIB);
    other.client.tell("on");
    said(&one, OPEN, 1);
    one.client.tell("on");
    one.peer.hears_nothing();
    // A child that outlives the closing has nothing of it.
    other.client.tell("on");
    assert_eq!(one.returned().bytes, 16 * MIB);
    other.client.tell("on");
    one.client.tell("on");
    ends(one, &[]);
    ends(other, &[]);
}
