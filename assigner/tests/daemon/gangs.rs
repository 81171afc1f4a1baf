//! Gangs over two nodes: controller and executor on loopback, with mutual TLS.

use acb_wire::v1::assigner_message::Kind;

use crate::nodes::{self, Node, free_port, spec, start};
use crate::support::{Client, Home, eventually};

struct Pair {
    home: Home,
    controller: Node,
    executor: Node,
}

impl Pair {
    fn new() -> Pair {
        let home = Home::new();
        let port = free_port();
        let controller = start(&home, &spec(&home, "n1", 1, port));
        let executor = start(&home, &spec(&home, "n2", 1, port));
        let pair = Pair { home, controller, executor };
        eventually("both are shown", || {
            let status = nodes::status(&pair.home, &pair.controller.folder)?;
            (status["nodes"].as_array()?.len() == 2).then_some(())
        });
        pair
    }

    /// How the gang `g` stands on a node, as its assigner shows it.
    fn stage(&self, node: &Node) -> Option<String> {
        let status = nodes::status(&self.home, &node.folder)?;
        let gang = status["nodes"][0]["gangs"].as_array()?.iter().find(|it| it["gang"] == "g")?;
        Some(gang["stage"].as_str()?.to_owned())
    }

    fn await_stage(&self, node: &Node, stage: &str) {
        eventually(&format!("the gang is {stage}"), || {
            (self.stage(node).as_deref() == Some(stage)).then_some(())
        });
    }
}

fn member(node: &Node) -> Client {
    Client::join_with(&node.folder.join("client.sock"), |hello| {
        hello.gang = "g".to_owned();
        hello.gang_size = 2;
    })
}

/// Somebody else who wants the same GPU.
fn rival(node: &Node, gpu: &str) -> Client {
    let mut client = Client::join_with(&node.folder.join("client.sock"), |hello| {
        hello.eligible = vec![gpu.to_owned()];
    });
    assert_eq!(client.bind(), [gpu]);
    client
}

fn expect_wanted(client: &mut Client, epoch: u64) {
    assert!(matches!(client.next(), Kind::Wanted(wanted) if wanted.epoch == epoch));
}

#[test]
fn two_ranks_on_two_nodes_hold_together_or_not_at_all() {
    let pair = Pair::new();
    let (mut one, mut two) = (member(&pair.controller), member(&pair.executor));
    let gpu = one.bind().remove(0);
    two.bind();
    let mut rival = rival(&pair.controller, &gpu);

    // One alone waits, though its GPU is free; another may have it.
    one.acquire();
    eventually("the first rank waits", || {
        let status = nodes::status(&pair.home, &pair.controller.folder)?;
        let clients = status["nodes"][0]["clients"].as_array()?.iter();
        clients.into_iter().find(|client| client["state"] == "waiting").map(|_| ())
    });
    rival.acquire();
    let held = rival.granted();

    // Both ask: GPUs are kept on both nodes, and on the second it is there already.
    two.acquire();
    expect_wanted(&mut rival, held);
    pair.await_stage(&pair.controller, "keeping");
    pair.await_stage(&pair.executor, "reachable");

    // The last GPU comes back: both hold.
    rival.release(held);
    let (first, second) = (one.granted(), two.granted());
    pair.await_stage(&pair.executor, "holding");

    // Somebody waits on one node: ranks on both hear of it, and when both are done it is its turn.
    rival.acquire();
    expect_wanted(&mut one, first);
    expect_wanted(&mut two, second);
    one.release(first);
    two.release(second);
    rival.granted();
    pair.await_stage(&pair.executor, "waiting");
}

#[test]
fn the_death_of_a_rank_or_of_its_node_ends_the_round_everywhere() {
    let pair = Pair::new();
    let (mut one, mut two) = (member(&pair.controller), member(&pair.executor));
    let gpu = one.bind().remove(0);
    two.bind();
    let recalled = |client: &mut Client, epoch: u64| loop {
        if matches!(client.next(), Kind::Recall(recall) if recall.epoch == epoch) {
            break;
        }
    };

    // A rank leaves: the other gives back, and goes on alone until one comes in its place.
    one.acquire();
    two.acquire();
    let first = one.granted();
    two.granted();
    let mut next = member(&pair.executor);
    match next.try_next() {
        Some(Kind::Refused(refused)) => assert!(refused.reason.contains("2 members already")),
        other => panic!("a third member of two was not refused: {other:?}"),
    }
    drop(two);
    drop(next);
    recalled(&mut one, first);
    one.release(first);
    one.acquire();
    let alone = one.granted();
    let mut two = member(&pair.executor);
    two.bind();
    two.acquire();
    recalled(&mut one, alone);
    one.release(alone);
    one.acquire();
    let first = one.granted();
    two.granted();

    // The node is lost: the same, and the node that is left serves its own clients.
    let Pair { home: _home, controller, executor } = pair;
    drop(executor);
    recalled(&mut one, first);
    one.release(first);
    let mut rival = rival(&controller, &gpu);
    rival.acquire();
    rival.granted();
}
