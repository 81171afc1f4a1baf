//! How GPUs are connected, from what NVML says to the GPUs that clients are bound to.

use crate::support::{Client, Home};

/// Joins as a client of so many GPUs; the numbers of those that it is bound to.
fn bound(home: &Home, gpus: u32) -> (Client, Vec<usize>) {
    let mut client = Client::join_with(&home.socket(), |hello| hello.gpus = gpus);
    let uuids = client.bind();
    let status = home.status();
    let all = status["nodes"][0]["gpus"].as_array().unwrap();
    let number = |uuid: &String| all.iter().position(|gpu| gpu["uuid"] == **uuid).unwrap();
    (client, uuids.iter().map(number).collect())
}

/// What the client of two GPUs gets beside one that has the first GPU to itself.
fn pair_beside_one(gpus: &str) -> Vec<usize> {
    let home = Home::with(gpus);
    home.start(&[]);
    let (_one, at) = bound(&home, 1);
    assert_eq!(at, [0]);
    bound(&home, 2).1
}

#[test]
fn a_client_of_two_gpus_gets_such_as_have_nvlink_between_them() {
    let crossed = "[[gpu]]\nnvlinks = [2]\n[[gpu]]\nnvlinks = [3]\n\
                   [[gpu]]\nnvlinks = [0]\n[[gpu]]\nnvlinks = [1]\n";
    assert_eq!(pair_beside_one(crossed), [1, 3]);
    // From a driver that does not tell of pairs the links' other ends are known.
    assert_eq!(pair_beside_one(&format!("p2p_status = false\n{crossed}")), [1, 3]);
    assert_eq!(pair_beside_one("gpus = 4\n"), [1, 2]);
}

#[test]
fn nvlink_through_switches_counts_as_nvlink() {
    let switched = "[[gpu]]\n[[gpu]]\nnvswitch_links = 4\n[[gpu]]\n[[gpu]]\nnvswitch_links = 4\n";
    assert_eq!(pair_beside_one(switched), [1, 3]);
}

#[test]
fn two_clients_move_their_memory_over_different_links() {
    // Below each of two switches a pair with NVLink, which is no way to the host.
    let pair = |switch, one, two| {
        format!(
            "[[gpu]]\nswitch = {switch}\nnvlinks = [{two}]\n\
             [[gpu]]\nswitch = {switch}\nnvlinks = [{one}]\n"
        )
    };
    let home = Home::with(&format!("{}{}", pair(0, 0, 1), pair(1, 2, 3)));
    home.start(&[]);
    let (_one, first) = bound(&home, 1);
    let (_two, second) = bound(&home, 1);
    assert_eq!((first, second), (vec![0], vec![2]));
}
