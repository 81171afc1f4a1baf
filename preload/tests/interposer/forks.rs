//! Forks before and after cuInit.

use crate::assigner::Assigner;
use crate::setup::Lab;

#[test]
fn a_child_forked_before_cuinit_is_a_client_of_its_own() {
    let lab = Lab::new();
    let assigner = Assigner::listen(&lab.socket());
    let client = lab.start("fork before");
    // The child counts devices before it initialises: the driver says 3 to that, as ever.
    let mut peer = assigner.accept_client();
    peer.grant(1);
    let request = peer.room_request();
    peer.room_reply(request.seq, acb_wire::v1::RoomVerdict::Denied, "not today");
    let request = peer.try_hear();
    drop((request, peer));
    client.end().succeeded();
}

#[test]
fn a_child_forked_after_cuinit_is_detached_and_the_parent_lives() {
    let lab = Lab::new();
    let assigner = Assigner::listen(&lab.socket());
    let mut client = lab.start("fork after");
    let mut peer = assigner.accept_client();
    client.tell("on");
    let ended = client.end().succeeded().prints("child=[3, 3, 3, 3]").prints("parent=0");
    assert_eq!(ended.stderr().matches("forked after cuInit").count(), 1, "{}", ended.text());
    assert_eq!(peer.try_hear(), None, "the child has kept the socket");
}
