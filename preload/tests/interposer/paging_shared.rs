//! Memory that several GPUs reach, and memory that is handed to others, on the software GPU.

use crate::play::{MIB, Play, gpu, paged_welcome, start_in, start_on};
use crate::setup::{Lab, wait_until};
use acb_wire::v1::assigner_message::Kind as Say;
use acb_wire::v1::client_message::Kind as Hear;
use acb_wire::v1::{Arena, BoundGpu, RoomVerdict};

/// A program with two GPUs.
fn on_two(words: &str) -> Play {
    on_two_with("", words)
}

fn on_two_with(config: &str, words: &str) -> Play {
    on_two_of(&format!("gpus = 2\n{config}"), words)
}

/// The same where the configuration says what GPUs there are.
fn on_two_of(config: &str, words: &str) -> Play {
    let lab =
        Lab::on_software_gpu(config).with("ACB_GPUS", "2").with("CUDA_VISIBLE_DEVICES", "0,1");
    let second = BoundGpu { index: 1, uuid: "1".into(), ..gpu() };
    start_on(lab, words, paged_welcome(), vec![gpu(), second])
}

/// The program's devices are in another order than NVML's, and of different sizes.
#[test]
fn nvml_is_told_by_uuid_whatever_the_order() {
    let lab =
        Lab::on_software_gpu("gpus = 2").with("ACB_GPUS", "2").with("CUDA_VISIBLE_DEVICES", "0,1");
    let first = BoundGpu { index: 1, uuid: "1".into(), ..gpu() };
    let second = BoundGpu { uuid: "0".into(), memory: 8 << 30, ..gpu() };
    let mut play = start_on(lab, "a4 ? @1 a6 ? H0 H1 H2 .", paged_welcome(), vec![first, second]);
    play.claim_on(0, 4 * MIB);
    play.claim_on(1, 6 * MIB);
    let ended = play.end();
    let (one, other) = (16 * 1024 - 4, 8 * 1024 - 6);
    for line in [
        format!("info={one}"),
        format!("info={other}"),
        format!("nvml=Some(({other}, {}))", 8 * 1024),
        format!("nvml=Some(({one}, {}))", 16 * 1024),
        "nvml=None".to_owned(),
    ] {
        assert!(ended.stdout().lines().any(|said| said == line), "{line}: {}", ended.text());
    }
}

/// A lease of both GPUs, with credit for each.
fn turn(play: &mut Play, epoch: u64, credit: [u64; 2]) {
    play.peer.grant(epoch);
    for (device, bytes) in (0..).zip(credit) {
        play.credit_on(device, bytes);
    }
    play.ready(epoch);
}

/// Each GPU has a link of its own; one thread keeps both busy.
#[test]
fn the_memory_of_two_gpus_leaves_at_the_same_time() {
    const EACH: u64 = 128 * MIB;
    let mut play = on_two("a128 w0:1 @1 a128 w1:2 . c1:2 @0 c0:1 .");
    play.claim_on(0, EACH);
    play.peer.say(Say::Arena(Arena { bytes: 2 * EACH }));
    turn(&mut play, 1, [EACH, 0]);
    play.claim_on(1, EACH);
    play.credit_on(1, EACH);
    play.take_back(1);
    play.evict_on(0, EACH);
    play.evict_on(1, EACH);
    let mut gone: Vec<u32> = Vec::new();
    while (gone.len() as u64) < 2 * EACH / (16 * MIB) {
        match play.peer.hear_moves() {
            Hear::Evicted(evicted) => {
                assert_eq!((evicted.bytes, evicted.failed.as_str()), (16 * MIB, ""));
                gone.push(evicted.device);
            }
            other => panic!("Evicted expected: {other:?}"),
        }
    }
    let half = &gone[..gone.len() / 2];
    assert!([0, 1].into_iter().all(|device| half.contains(&device)), "in turns: {gone:?}");
    play.client.tell("on");
    turn(&mut play, 2, [EACH, EACH]);
    play.end().prints_times(2, "wrong=0");
}

/// And comes back at the same time.
#[test]
fn the_memory_of_two_gpus_comes_at_the_same_time() {
    const EACH: u64 = 128 * MIB;
    let slow = "[[gpu]]\nlink_in = '32 MB'\n".repeat(2);
    let mut play = on_two_of(&slow, "a128 k0:1 @1 a128 k1:2 . v1:2 @0 v0:1 .");
    play.claim_on(0, EACH);
    play.peer.say(Say::Arena(Arena { bytes: 2 * EACH }));
    turn(&mut play, 1, [EACH, 0]);
    play.claim_on(1, EACH);
    play.credit_on(1, EACH);
    play.take_back(1);
    play.evict_on(0, EACH);
    play.evict_on(1, EACH);
    play.evicted(2 * EACH);
    let before = in_use(&play);
    play.client.tell("on");
    play.peer.grant(2);
    for device in [0, 1] {
        play.credit_on(device, EACH);
    }
    wait_until("a part of both GPUs' memory is there, and of none all", || {
        play.client.stop();
        let now = in_use(&play);
        play.client.go_on();
        now.iter().zip(&before).all(|(now, then)| (16..=112).contains(&(now - then)))
    });
    play.ready(2);
    play.end().prints_times(2, "wrong=0");
}

/// Memory of each GPU that somebody has, in MiB, as a program outside sees it.
fn in_use(play: &Play) -> Vec<u64> {
    let outside = play.lab.outside().with("CUDA_VISIBLE_DEVICES", "0,1");
    let client = outside.start("paged ? @1 ?");
    let ended = client.end().succeeded();
    let out = ended.stdout();
    let free = out.split_whitespace().filter_map(|word| word.strip_prefix("info=")?.parse().ok());
    let used: Vec<u64> = free.map(|mib: u64| (16 << 10) - mib).collect();
    assert_eq!(used.len(), 2, "{}", ended.text());
    used
}

#[test]
fn memory_is_open_to_the_peers_that_the_program_has_enabled() {
    let words =
        "a4 @1 a4 @0 e1 k1:5 v1:5 . k1:6 v1:6 @1 a6 a100k @0 k2:7 v2:7 k3:8 v3:8 . d1 k1:9 .";
    let mut play = on_two(words);
    play.claim_on(0, 4 * MIB);
    play.claim_on(1, 4 * MIB);
    // Enabled before there is anything to be opened.
    turn(&mut play, 1, [4 * MIB, 4 * MIB]);
    play.swap_out_on(1, 1, 4 * MIB);
    // Mapped anew, and open anew.
    turn(&mut play, 2, [0, 4 * MIB]);
    // Made under a lease, later.
    play.claim_on(1, 6 * MIB);
    play.credit_on(1, 6 * MIB);
    play.claim_on(1, 2 * MIB);
    play.credit_on(1, 2 * MIB);
    play.take_back(2);
    play.client.tell("on");
    turn(&mut play, 3, [0, 0]);
    play.end()
        .prints_times(4, "filled=0 wrong=0")
        .prints_times(5, "kernel=0")
        .prints_times(2, "peer=0");
}

#[test]
fn what_is_resident_is_opened_when_peer_access_is_enabled() {
    let mut play = on_two("@1 a4 w0:1 @0 e1 k0:5 v0:5 .");
    play.claim_on(1, 4 * MIB);
    turn(&mut play, 1, [0, 4 * MIB]);
    play.end().prints("kernel=0").prints("filled=0 wrong=0");
}

/// Mapped memory is copied by devices that it is open to; kernels reach it with that, which no program relies on.
#[test]
fn memory_is_open_to_other_gpus_whether_or_not_the_program_has_that_enabled() {
    let mut play = on_two("@1 a4 w0:1 @0 k0:5 v0:5 .");
    play.claim_on(1, 4 * MIB);
    turn(&mut play, 1, [0, 4 * MIB]);
    play.end().prints("kernel=0").prints("filled=0 wrong=0");
}

/// As with memory of cudaMalloc: whatever device is current, and whether or not GPUs reach each other.
#[test]
fn memory_is_copied_between_gpus_by_calls_that_name_no_context() {
    for config in ["", "peers = false"] {
        let mut play = on_two_with(config, "a4 @1 a4 . j0:1 @0 j0:1 j1:0 . j0:1 .");
        play.claim_on(0, 4 * MIB);
        play.claim_on(1, 4 * MIB);
        play.client.tell("on");
        turn(&mut play, 1, [4 * MIB, 4 * MIB]);
        play.take_back(1);
        for device in [0, 1] {
            play.evict_on(device, 4 * MIB);
            play.evicted(4 * MIB);
        }
        play.client.tell("on");
        turn(&mut play, 2, [4 * MIB, 4 * MIB]);
        let ended = play.end();
        let out = ended.stdout();
        assert_eq!(out.matches("copied=0").count(), 32, "{config}: {}", ended.text());
        assert_eq!(out.matches("read=0 wrong=0").count(), 32, "{config}: {}", ended.text());
    }
}

/// A driver that says that GPUs reach each other, and does not open memory to them: copies name contexts then.
#[test]
fn memory_that_the_driver_does_not_open_is_copied_all_the_same() {
    let fault = "[[fault]]\nkind = \"access_fails\"\nat = 2\ntimes = 1\n";
    let mut play = on_two_with(fault, "a4 w0:1 @1 a4 . j0:1 @0 j1:0 .");
    play.claim_on(0, 4 * MIB);
    turn(&mut play, 1, [4 * MIB, 0]);
    play.claim_on(1, 4 * MIB);
    play.credit_on(1, 4 * MIB);
    play.take_back(1);
    play.client.tell("on");
    turn(&mut play, 2, [0, 0]);
    play.end()
        .says("not opened to others")
        .prints_times(16, "copied=0")
        .prints_times(16, "read=0 wrong=0");
}

#[test]
fn a_programs_own_mappings_stay_open_to_peers_over_swaps() {
    let mut play = on_two("m4 @1 g0:1 k0:5 v0:5 . k0:6 v0:6 .");
    play.claim_on(0, 4 * MIB);
    turn(&mut play, 1, [4 * MIB, 0]);
    play.swap_out_on(1, 0, 4 * MIB);
    turn(&mut play, 2, [4 * MIB, 0]);
    play.end().prints_times(2, "filled=0 wrong=0");
}

/// As NCCL makes its buffers: descriptors may be asked for, and peers reach them.
#[test]
fn memory_that_could_be_exported_stays_open_to_peers_over_swaps() {
    let mut play = on_two("h16 @1 g0:1 k0:5 v0:5 . k0:6 v0:6 .");
    play.claim_on(0, 16 * MIB);
    turn(&mut play, 1, [16 * MIB, 0]);
    play.swap_out_on(1, 0, 16 * MIB);
    turn(&mut play, 2, [16 * MIB, 0]);
    play.end().prints_times(2, "filled=0 wrong=0");
}

#[test]
fn copies_between_contexts_wait_for_the_memory_of_both_gpus() {
    for word in ["M0:1", "Z0:1"] {
        let mut play = on_two(&format!("a4 w0:1 @1 a4 . {word} c1:1 c0:1 ."));
        play.claim_on(0, 4 * MIB);
        turn(&mut play, 1, [4 * MIB, 0]);
        play.claim_on(1, 4 * MIB);
        play.credit_on(1, 4 * MIB);
        play.take_back(1);
        play.evict_on(0, 4 * MIB);
        play.evict_on(1, 4 * MIB);
        play.evicted(8 * MIB);
        play.client.tell("on");
        play.peer.grant(2);
        play.credit_on(0, 4 * MIB);
        play.peer.hears_nothing();
        play.credit_on(1, 4 * MIB);
        play.ready(2);
        let ended = play.end().prints("copied=0");
        assert_eq!(ended.stdout().matches("wrong=0").count(), 2, "{word}: {}", ended.text());
    }
}

#[test]
fn memory_that_could_be_exported_is_moved_until_it_is() {
    let mut play =
        start_in(Lab::on_software_gpu(""), "h16 a8 w0:1 w1:2 . c0:1 c1:2 X0 . c0:1 c1:2 .");
    play.claim(16 * MIB);
    play.claim(8 * MIB);
    play.turn(1, 24 * MIB);
    play.swap_out(1, 24 * MIB);
    play.turn(2, 24 * MIB);
    play.take_back(2);
    // All of it is asked back; what was exported stays, and that is said.
    play.keeps(24 * MIB, 16 * MIB, "exported");
    play.shows(&[("exported", 16 * MIB)]);
    play.client.tell("on");
    play.turn(3, 8 * MIB);
    play.end()
        .prints("exported=0")
        .prints("same=true")
        .says("16.0 MiB of memory stays on GPU 0 from now on")
        .prints_times(4, "wrong=0");
}

#[test]
fn memory_made_without_a_handle_type_is_not_exported() {
    let mut play = start_in(Lab::on_software_gpu(""), "m4 X0 .");
    play.claim(4 * MIB);
    play.end().prints("exported=1");
}

/// As of the driver's own: what the program has mapped itself has other ways.
#[test]
fn the_old_way_of_sharing_is_for_plain_memory() {
    let mut play = start_in(Lab::on_software_gpu(""), "m4 i0 a4 i1 .");
    play.claim(4 * MIB);
    play.claim(4 * MIB);
    play.turn(1, 8 * MIB);
    let ended = play.end().prints("ipc=1").prints("ipc=0");
    assert!(ended.stderr().contains("stays on GPU 0 from now on"), "{}", ended.text());
}

/// Where the driver has descriptors, it says, and makes no memory with them: then there is memory without.
#[test]
fn without_descriptors_there_is_memory_that_cannot_be_shared() {
    let fault = "[[fault]]\nkind = \"create_fails\"\nerror = 800\n";
    let mut play = start_in(Lab::on_software_gpu(fault), "a4 w0:1 c0:1 i0 .");
    play.claim(4 * MIB);
    play.turn(1, 4 * MIB);
    play.end().prints("allocate=0").prints("wrong=0").prints("ipc=801").says("ACB_PAGER=off");
}

#[test]
fn a_pool_tells_of_the_pagers_memory() {
    let mut play = start_in(Lab::on_software_gpu(""), "s P A40 A2 P w0:1 F0 P s T P F1 s T P .");
    play.claim(40 * MIB);
    play.claim(2 * MIB);
    play.turn(1, 42 * MIB);
    for bytes in [40, 2] {
        let back = play.returned();
        assert_eq!((back.bytes, back.resident), (bytes * MIB, bytes * MIB));
    }
    let ended = play.end();
    let out = ended.stdout();
    let levels: Vec<&str> = out.lines().filter(|line| line.starts_with("used=")).collect();
    assert_eq!(
        levels,
        [
            "used=0/0 reserved=0/0",
            "used=42/42 reserved=42/42",
            "used=2/42 reserved=42/42",
            "used=2/42 reserved=2/42",
            "used=0/42 reserved=0/42"
        ],
        "{}",
        ended.text()
    );
}

/// Up to the release threshold: used again whatever the stream, and the first to go for others and for the program itself.
#[test]
fn a_pool_keeps_what_it_is_told_to() {
    let words = "r64 A40 w0:1 F0 s I64 P A32 P F1 s I64 P . P A8 F2 s I64 P a60 P .";
    let mut play = start_in(Lab::on_software_gpu(""), words);
    play.claim(40 * MIB);
    play.turn(1, 40 * MIB);
    // Nothing is claimed for what is used again.
    play.page_out(1, 16 * MIB);
    let back = play.returned();
    assert_eq!((back.bytes, back.resident), (40 * MIB, 24 * MIB));
    play.client.tell("on");
    play.claim(8 * MIB);
    let request = play.peer.room_request();
    assert_eq!(request.bytes, 60 * MIB);
    play.peer.room_reply(request.seq, RoomVerdict::Denied, "too much");
    // It might fit without what is kept.
    assert_eq!(play.returned().bytes, 8 * MIB);
    play.claim(60 * MIB);
    let ended = play.end();
    let out = ended.stdout();
    let levels: Vec<&str> = out.lines().filter(|line| line.starts_with("used=")).collect();
    assert_eq!(
        levels,
        [
            "used=0/40 reserved=40/40",
            "used=40/40 reserved=40/40",
            "used=0/40 reserved=40/40",
            "used=0/40 reserved=0/40",
            "used=0/40 reserved=8/40",
            "used=0/40 reserved=0/40",
        ],
        "{}",
        ended.text()
    );
}

/// Without a threshold nothing is kept, as before.
#[test]
fn a_pool_without_a_threshold_gives_back_what_streams_have_come_past() {
    let mut play = start_in(Lab::on_software_gpu(""), "A40 w0:1 F0 s . A40 P .");
    play.claim(40 * MIB);
    play.turn(1, 40 * MIB);
    let back = play.returned();
    assert_eq!((back.bytes, back.resident), (40 * MIB, 40 * MIB));
    play.client.tell("on");
    play.claim(40 * MIB);
    play.credit(40 * MIB);
    play.end().prints("used=40/40 reserved=40/40");
}

#[test]
fn memory_of_a_pool_is_on_the_pools_device_and_open_to_whom_the_pool_is() {
    let mut play = on_two("@1 @0 L4 k0:5 v0:5 . k0:6 v0:6 .");
    play.claim_on(1, 4 * MIB);
    turn(&mut play, 1, [0, 4 * MIB]);
    play.swap_out_on(1, 1, 4 * MIB);
    turn(&mut play, 2, [0, 4 * MIB]);
    play.end().prints("allocate=0").prints_times(2, "filled=0 wrong=0");
}

#[test]
fn copies_and_fills_are_waited_for_where_the_program_wants_that_of_its_memory() {
    let lab = Lab::on_software_gpu("memory_bandwidth = \"50 MB\"");
    let mut play = start_in(lab, "a8 y0:0 y0:1 y0:0 .");
    play.claim(8 * MIB);
    play.turn(1, 8 * MIB);
    let ended = play.end();
    let out = ended.stdout();
    let said: Vec<&str> = out.lines().filter(|line| line.starts_with("synchronous=")).collect();
    // CUDA_ERROR_NOT_READY: it was not waited for.
    let (no, yes) = ("synchronous=0 query=600", "synchronous=1 query=0");
    assert_eq!(said, [no, yes, no], "{}", ended.text());
}

#[test]
fn nodes_of_graphs_may_name_memory_that_is_absent() {
    let mut play = start_in(Lab::on_software_gpu(""), "a4 a4 w0:1 . G0:1 . R c1:1 .");
    play.claim(4 * MIB);
    play.claim(4 * MIB);
    play.turn(1, 8 * MIB);
    play.swap_out(1, 8 * MIB);
    // The node waits for the memory, the graph's run for it again.
    play.turn(2, 8 * MIB);
    play.swap_out(2, 8 * MIB);
    play.turn(3, 8 * MIB);
    play.end().prints("node=0").prints("instantiated=0").prints("ran=0").prints("read=0 wrong=0");
}

#[test]
fn memory_of_two_gpus_in_one_multicast_object_is_written_through_it_and_stays() {
    let mut play = on_two("m4 @1 m4 a2 w2:1 @0 . U0:1:7 v0:7 @1 v1:7 @0 . v0:7 @1 v1:7 c2:1 .");
    play.claim_on(0, 4 * MIB);
    play.claim_on(1, 4 * MIB);
    play.claim_on(1, 2 * MIB);
    turn(&mut play, 1, [4 * MIB, 6 * MIB]);
    play.swap_out_on(1, 1, 6 * MIB);
    turn(&mut play, 2, [0, 6 * MIB]);
    play.take_back(2);
    for (device, moves) in [(0, 0), (1, 2 * MIB)] {
        play.keeps_on(device, moves + 4 * MIB, 4 * MIB, "multicast");
    }
    play.client.tell("on");
    turn(&mut play, 3, [0, 2 * MIB]);
    // CUDA_ERROR_ILLEGAL_STATE: not all devices are there yet.
    let ended = play.end().prints("early=401").prints("mapped=0").prints("opened=0");
    ended
        .prints("kernel=0")
        .prints("unmapped=0")
        .prints("read=0 wrong=0")
        .prints_times(2, "bound=0")
        .prints_times(4, "filled=0 wrong=0");
}

#[test]
fn graphs_that_decide_on_the_gpu_see_memory_that_has_moved() {
    let words = "a4 a4 a2 w0:7 . W N1:3 . R K7:1:3 N0:2 . R K7:0:2 N1:0 R K7:1:0 .";
    let mut play = start_in(Lab::on_software_gpu(""), words);
    for bytes in [4, 4, 2] {
        play.claim(bytes * MIB);
    }
    play.turn(1, 10 * MIB);
    for epoch in [2, 3, 4] {
        play.swap_out(epoch - 1, 10 * MIB);
        play.turn(epoch, 10 * MIB);
    }
    let ended = play.end().prints("node=0").prints("captured=0").prints("instantiated=0");
    // CUDA_ERROR_NOT_SUPPORTED: such graphs are not copied.
    ended.prints("cloned=801").prints_times(3, "ran=0").prints_times(3, "left=0 wrong=0");
}

#[test]
fn a_device_has_as_much_memory_as_its_client_may_have() {
    let lab = Lab::on_software_gpu("memory = \"32 GiB\"");
    let mut play = start_in(lab, "s D .");
    play.client.tell("on");
    // What Bound says.
    play.client.end().succeeded().prints("total=16384");
}
