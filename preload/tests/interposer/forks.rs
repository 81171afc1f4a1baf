//! Forks before and after cuInit.

use crate::assigner::{Assigner, bound, start, start_with, welcome};
use crate::setup::Lab;
use acb_wire::v1::Welcome;
use acb_wire::v1::assigner_message::Kind as Say;

#[test]
fn a_child_forked_before_cuinit_is_a_client_of_its_own() {
    let (_lab, _assigner, client, mut peer) = start("fork before");
    peer.grant(1);
    // Without a context the driver refuses the launch, not the interposer.
    client.end().succeeded().prints("child=[3, 0, 3, 400, 0]");
    assert_eq!(peer.try_hear(), None);
}

#[test]
fn a_child_forked_after_cuinit_is_detached_and_the_parent_lives() {
    // Room for a context must be asked for: not by the child.
    let terms = Welcome { context_bytes: 1 << 28, ..welcome() };
    let (_lab, _assigner, mut client, mut peer) = start_with(Lab::new(), "fork after", terms);
    client.tell("on");
    let ended = client.end().succeeded().prints("child=[3, 3, 3, 3, 3]").prints("parent=0");
    // What needs no cuInit works as with the driver.
    let ended = ended.prints("without=[0, 0, 0] true");
    assert_eq!(ended.stderr().matches("forked after cuInit").count(), 1, "{}", ended.text());
    assert_eq!(peer.try_hear(), None, "the child has kept the socket");
}

/// The thread that was in cuInit is not in the child; nobody may wait for it there.
#[test]
fn a_child_forked_during_cuinit_does_not_wait_for_it() {
    let lab = Lab::new();
    let assigner = Assigner::listen(&lab.socket());
    let mut client = lab.start("fork-while-starting");
    let mut peer = assigner.accept();
    peer.hello();
    client.tell("fork");
    client.tell("end");
    peer.say(Say::Welcome(welcome()));
    peer.hear();
    peer.say(bound());
    client.end().succeeded().prints("child=3").prints("parent=0");
}
