//! Priorities, queues and tenants, from a user's options to what clients are told.

use acb_wire::v1::{self, RefusedCode, assigner_message::Kind, client_message};

use crate::support::{Client, Home, errors};

/// A client with a hello of its own; what it is answered.
fn join(home: &Home, hello: v1::Hello) -> (Client, Kind) {
    let mut client = Client::connect(&home.socket());
    let hello = v1::Hello { protocol: acb_wire::PROTOCOL, gpus: 1, ..hello };
    client.send(client_message::Kind::Hello(hello));
    let answer = client.next();
    (client, answer)
}

fn recalled(client: &mut Client, epoch: u64) {
    loop {
        if let Kind::Recall(recall) = client.next() {
            return assert_eq!(recall.epoch, epoch);
        }
    }
}

#[test]
fn a_higher_priority_has_the_gpu_recalled_before_the_quantum_is_over() {
    let home = Home::new();
    // A quantum that does not end while the test runs.
    home.start(&["--gpu-list", "0", "--quantum-ms", "86400000"]);
    let (mut training, _) = join(&home, v1::Hello::default());
    training.acquire();
    let epoch = training.granted();
    let (mut serving, _) = join(&home, v1::Hello { priority: 100, ..v1::Hello::default() });
    serving.acquire();
    recalled(&mut training, epoch);
    training.release(epoch);
    training.acquire();
    let second = serving.granted();
    serving.release(second);
    assert!(training.granted() > second);
}

#[test]
fn the_next_in_turn_hears_of_a_release_that_is_announced_and_nobody_else_does() {
    let home = Home::new();
    home.start(&["--gpu-list", "0", "--quantum-ms", "86400000"]);
    let mut clients = [(); 3].map(|()| join(&home, v1::Hello::default()).0);
    for client in &mut clients {
        client.bind();
    }
    clients[0].acquire();
    let mut epoch = clients[0].granted();
    let soon = |epoch| client_message::Kind::ReleaseSoon(v1::ReleaseSoon { epoch });
    clients[0].send(soon(epoch)); // nobody waits
    for next in [1, 2] {
        clients[next].acquire();
        assert!(matches!(clients[next - 1].next(), Kind::Wanted(_)));
        clients[next].send(soon(epoch)); // it holds nothing
        clients[next - 1].send(soon(epoch));
        assert!(matches!(clients[next].next(), Kind::GrantSoon(_)));
        clients[next - 1].release(epoch);
        match clients[next].next() {
            Kind::Granted(granted) => epoch = granted.epoch,
            other => panic!("no Granted, but {other:?}"),
        }
    }
}

#[test]
fn a_tenant_below_its_share_gets_what_another_has_borrowed() {
    let home = Home::new();
    let options =
        ["--tenant", "a,share=0.5", "--tenant", "b,share=0.5", "--quantum-ms", "86400000"];
    home.start(&options);
    let tenant = |name: &str| v1::Hello { tenant: name.to_owned(), ..v1::Hello::default() };
    let (mut one, _) = join(&home, tenant("a"));
    let (mut two, _) = join(&home, tenant("a"));
    one.acquire();
    let first = one.granted();
    two.acquire();
    two.granted();
    let (mut other, _) = join(&home, tenant("b"));
    other.acquire();
    recalled(&mut one, first);
    one.release(first);
    other.granted();
    let status = home.status();
    let clients = status["nodes"][0]["clients"].as_array().unwrap();
    let tenants: Vec<&str> = clients.iter().map(|it| it["tenant"].as_str().unwrap()).collect();
    assert_eq!(tenants, ["a", "a", "b"]);
}

#[test]
fn names_and_numbers_that_are_not_known_are_refused() {
    let home = Home::new();
    home.start(&["--queue", "small,max_gpus=1,max_clients=1", "--tenant", "a"]);
    let refused = |hello: v1::Hello| {
        let (_, answer) = join(&home, hello);
        let Kind::Refused(refused) = answer else { panic!("not refused") };
        assert_eq!(refused.code(), RefusedCode::Impossible);
        refused.reason
    };
    let named = |queue: &str, tenant: &str| v1::Hello {
        queue: queue.to_owned(),
        tenant: tenant.to_owned(),
        ..v1::Hello::default()
    };
    assert!(refused(named("large", "")).contains("there is no queue \"large\""));
    assert!(refused(named("", "b")).contains("there is no tenant \"b\""));
    let reason = refused(v1::Hello { priority: 101, ..v1::Hello::default() });
    assert!(reason.contains("priority 101"), "{reason}");
    let (_in_it, answer) = join(&home, named("small", "a"));
    assert!(matches!(answer, Kind::Welcome(_)));
    assert!(refused(named("small", "a")).contains("takes 1 clients at once"));
}

#[test]
fn options_that_make_no_sense_are_refused_at_once() {
    let home = Home::new();
    for (options, part) in [
        (&["--tenant", "a,share=0.7", "--tenant", "b,share=0.7"][..], "1.400 of the GPUs"),
        (&["--tenant", "a", "--tenant", "a"], "tenant \"a\" is given twice"),
        (&["--queue", "q,priority=200"], "priority=200"),
        (&["--queue", "q,parent=r"], "allowed are priority, policy, max_gpus, max_clients"),
    ] {
        let output = home.assigner(&[&["start"], options].concat());
        assert_ne!(output.status.code(), Some(0));
        assert!(errors(&output).contains(part), "{}", errors(&output));
    }
}
