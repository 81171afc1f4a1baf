//! A CUDA program for the tests of paging: it does what a line of words says, and knows every byte of its memory.
//!
//! `a64` allocates 64 MiB (`a3k`: KiB), `A64` in a stream, `w0:7` writes pattern 7 (0: zeros) into the first allocation, `c0:7` checks
//! it, `f0` and `F0` free it (in a stream), `p0` prints where it is, `q0` asks the driver about it, `s` synchronises, `?` asks
//! what is free, `[` and `]` begin and end a capture, `!` destroys the context, `>` attaches it, `<` detaches it, `+` makes another, `=0` goes back to the first, `t0:7` is
//! `w0:7` on a thread of its own, `.` pauses. `m32` creates and maps 32 MiB,
//! `u0` unmaps them, `n0` maps them anew, `x0` unmaps and releases them.
//!
//! `@1` goes on with device 1, `e1` lets its current context reach memory of that on device 1, `d1` ends that. `k0:7` has a kernel
//! write pattern 7, `v0:7` checks it. `M0:1` copies the first allocation to the second between contexts, `Z0:1` likewise as rows
//! and layers, `j0:1` by each call that names no contexts, in turns. `g0:1` opens mapped memory to device 1. `h32` is `m32` with a handle type and RDMA asked for; `X0` exports it,
//! imports it again and compares. `i0` asks for a handle of the old way of sharing.
//!
//! `P` prints what the default pool has in use and reserved, `T` trims it. `L4` allocates 4 MiB in a stream of the current device
//! from a pool on device 1 that device 0 may use too. `G0:1` makes a graph that copies the first allocation to the second, `R` runs
//! it. `B0` binds mapped memory to a multicast object, `b0` an address; `J0` takes a descriptor for other devices and compares;
//! `S0:7` puts mapped memory behind an array and looks for pattern 7 there; `O0` makes a texture of memory, `V0` one of
//! rows. `U0:1:7` binds mapped memory of devices 0 and 1 to one multicast object, maps it, and has a kernel write pattern 7 through it. `z8` is
//! `m8` with compression asked for, `E8` 8 MiB of another library's with pattern 1.
//! `W` makes a graph of the first three allocations with conditional nodes, `N1:3` sets its flag and its rounds, `K7:1:3` checks what a run
//! with these has left where the first allocation has pattern 7.
//! `l0` binds mapped memory to a logical endpoint, `Y0` its address.
//! `H1` prints what NVML is to say of the GPU whose UUID is "1". `D` prints how much memory the device has. `y0:1` has copies and fills waited for, and says whether a fill was.

mod conditional;
mod content;
mod contexts;
mod copies;
mod devices;
mod graphs;
mod handed;
mod mapping;
mod pools;

use crate::client::{Cuda, NULL, pause};
use content::{
    allocate_in, ask, check, check_fill, free_bytes, free_in, synchronous, told_to_nvml,
    total_bytes, write,
};
use contexts::Contexts;
use devices::Devices;
use graphs::{allocate_beside_capture, capture, copying_graph, run_graph};
use handed::{at_endpoint, behind_array, bind, descriptor, foreign, multicast, texture};
use mapping::{create, export, ipc, map, open_to, refusals, release, reserve, unmap};
use pools::{keep, pool_levels, trim};
use std::collections::BTreeMap;

pub(crate) fn play(words: &str) {
    let cuda = Cuda::start();
    let stream = cuda.stream();
    let mut held: Vec<(u64, usize)> = Vec::new();
    let mut handles: BTreeMap<usize, u64> = BTreeMap::new();
    let mut devices = Devices::new(&cuda);
    let mut graph = NULL;
    let mut contexts = Contexts::new(&cuda);
    for word in words.split(' ') {
        let (what, rest) = word.split_at(1);
        match what {
            "a" | "A" => {
                let bytes = size(rest);
                let (result, address) = match what {
                    "a" => cuda.allocate(bytes),
                    _ => allocate_in(&cuda, bytes, stream),
                };
                println!("allocate={result}");
                held.push((address, bytes));
            }
            "w" | "c" => {
                let (index, seed) = rest.split_once(':').expect("which, and the pattern");
                let (address, bytes) = held[index.parse::<usize>().expect("an index")];
                let seed = seed.parse().expect("a number");
                match what {
                    "w" => write(&cuda, address, bytes, seed),
                    _ => check(&cuda, address, bytes, seed),
                }
            }
            "f" => println!("free={}", cuda.free(held[rest.parse::<usize>().unwrap()].0)),
            "F" => {
                let address = held[rest.parse::<usize>().unwrap()].0;
                let result = free_in(&cuda, address, stream);
                println!("free={result}");
            }
            "p" => println!("at={:#x}", held[rest.parse::<usize>().unwrap()].0),
            "q" => ask(&cuda, held[rest.parse::<usize>().unwrap()].0),
            "@" => devices.go(rest.parse().unwrap()),
            "e" | "d" => devices.peer(what == "e", rest.parse().unwrap()),
            "k" | "v" => {
                let (index, seed) = rest.split_once(':').expect("which, and the pattern");
                let (address, bytes) = held[index.parse::<usize>().expect("an index")];
                let seed = seed.parse().expect("a number");
                match what {
                    "k" => println!("kernel={}", devices.fill(address, bytes, seed)),
                    _ => check_fill(&cuda, address, bytes, seed),
                }
            }
            "M" | "Z" => {
                let (from, to) = rest.split_once(':').expect("from, and to");
                let from = held[from.parse::<usize>().unwrap()];
                let to = held[to.parse::<usize>().unwrap()];
                println!("copied={}", devices.copy(what == "Z", from, to.0));
            }
            "j" => {
                let (from, to) = rest.split_once(':').expect("from, and to");
                let from = held[from.parse::<usize>().unwrap()];
                let to = held[to.parse::<usize>().unwrap()];
                copies::each_way(&cuda, from, to.0);
            }
            "g" => {
                let (index, device) = rest.split_once(':').expect("which, and to whom");
                let (address, bytes) = held[index.parse::<usize>().unwrap()];
                println!("opened={}", open_to(&cuda, address, bytes, device.parse().unwrap()));
            }
            "X" => {
                let index: usize = rest.parse().unwrap();
                export(&cuda, held[index], handles[&index]);
            }
            "G" => {
                let (from, to) = rest.split_once(':').expect("from, and to");
                let from = held[from.parse::<usize>().unwrap()];
                graph = copying_graph(&cuda, from, held[to.parse::<usize>().unwrap()].0);
            }
            "W" => graph = conditional::make(&cuda, held[0], held[1].0, held[2].0),
            "N" => {
                let (flag, rounds) = rest.split_once(':').expect("a flag, and rounds");
                let (flag, rounds) = (flag.parse().unwrap(), rounds.parse().unwrap());
                println!("chosen={}", conditional::choose(&cuda, held[2].0, flag, rounds));
            }
            "K" => {
                let all: Vec<u64> = rest.split(':').map(|it| it.parse().unwrap()).collect();
                conditional::check(&cuda, held[1], held[2].0, (all[0], all[1], all[2]));
            }
            "R" => println!("ran={}", run_graph(&cuda, graph)),
            "D" => println!("total={}", total_bytes(&cuda) >> 20),
            "P" => pool_levels(&cuda),
            "T" => println!("trimmed={}", trim(&cuda, 0)),
            "I" => println!("trimmed={}", trim(&cuda, size(rest))),
            "r" => keep(&cuda, size(rest)),
            "L" => held.push((devices.allocate_in_pool(size(rest)), size(rest))),
            "y" => {
                let (index, on) = rest.split_once(':').expect("which, and whether");
                synchronous(&cuda, held[index.parse::<usize>().unwrap()], on.parse().unwrap());
            }
            "B" | "b" => {
                let index: usize = rest.parse().unwrap();
                let handle = (what == "B").then(|| handles[&index]);
                println!("bound={}", bind(&cuda, held[index], handle));
            }
            "l" | "Y" => {
                let index: usize = rest.parse().unwrap();
                let handle = (what == "l").then(|| handles[&index]);
                println!("bound={}", at_endpoint(&cuda, held[index], handle));
            }
            "J" => descriptor(&cuda, held[rest.parse::<usize>().unwrap()]),
            "S" => {
                let (index, seed) = rest.split_once(':').expect("which, and the pattern");
                let index: usize = index.parse().expect("an index");
                let seed = seed.parse().expect("a number");
                behind_array(&cuda, held[index].1, handles[&index], seed);
            }
            "O" | "V" => {
                let memory = held[rest.parse::<usize>().unwrap()];
                println!("texture={}", texture(&cuda, memory, what == "V"));
            }
            "E" => held.push((foreign(&cuda, size(rest), 1), size(rest))),
            "U" => {
                let all: Vec<usize> = rest.split(':').map(|it| it.parse().unwrap()).collect();
                let pair = [handles[&all[0]], handles[&all[1]]];
                multicast(&cuda, held[all[0]].1, pair, all[2] as u64);
            }
            "i" => println!("ipc={}", ipc(&cuda, held[rest.parse::<usize>().unwrap()].0)),
            "m" | "h" | "z" => {
                let (bytes, device) = (size(rest), devices.current());
                let flags = match what {
                    "h" => (1, 1 << 8),
                    "z" => (0, 1),
                    _ => (0, 0),
                };
                let handle = create(&cuda, device, bytes, flags);
                let address = reserve(&cuda, bytes);
                map(&cuda, device, address, bytes, handle);
                handles.insert(held.len(), handle);
                held.push((address, bytes));
            }
            "u" | "n" | "x" => {
                let index: usize = rest.parse().unwrap();
                let (address, bytes) = held[index];
                if what == "n" {
                    map(&cuda, devices.current(), address, bytes, handles[&index]);
                } else {
                    println!("unmapped={}", unmap(&cuda, address, bytes));
                }
                if what == "x" {
                    println!("released={}", release(&cuda, handles[&index]));
                }
            }
            "Q" => refusals(&cuda, devices.current(), size(rest)),
            "o" => {
                let (index, bytes) = rest.split_once(':').expect("what is freed, and a size");
                let (freed, bytes) = (held[index.parse::<usize>().unwrap()], size(bytes));
                held.push((allocate_beside_capture(&cuda, stream, freed, bytes), bytes));
            }
            "[" => capture(&cuda, stream, true),
            "]" => capture(&cuda, stream, false),
            "!" => contexts.destroy(),
            ">" => contexts.attach(),
            "<" => contexts.detach(),
            "+" => contexts.make(),
            "=" => contexts.choose(rest.parse().unwrap()),
            "t" => {
                let (index, seed) = rest.split_once(':').expect("which, and the pattern");
                let (address, bytes) = held[index.parse::<usize>().expect("an index")];
                contexts.write_meanwhile(address, bytes, seed.parse().expect("a number"));
            }
            "s" => println!("synchronize={}", cuda.synchronize()),
            "H" => println!("nvml={:?}", told_to_nvml(&cuda, rest)),
            "?" => println!("info={}", free_bytes(&cuda) >> 20),
            "." => pause(),
            other => panic!("no word {other}"),
        }
    }
    contexts.end();
    println!("end");
}

fn size(text: &str) -> usize {
    match text.strip_suffix('k') {
        Some(number) => number.parse::<usize>().expect("a size") << 10,
        None => text.parse::<usize>().expect("a size") << 20,
    }
}
