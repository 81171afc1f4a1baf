"""The loop that the Python workloads have in common: CPU phases and GPU phases in turn, and a record of each.

The record is that of the program `phases`: one line of JSON a round, times in nanoseconds of CLOCK_MONOTONIC. The
workloads own what happens on the GPU.
"""

import argparse
import itertools
import json
import os
import time

import numpy

FACTOR = numpy.uint64(6364136223846793005)
WRONG_DATA = 3


def options(way):
    parser = argparse.ArgumentParser(description=f"CPU and GPU phases through {way}; checks its data in every round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--until", metavar="FILE", help="run further rounds until this file is there")
    parser.add_argument("--cpu-ms", type=float, default=20, help="length of a CPU phase")
    parser.add_argument("--gpu-ms", type=float, default=10, help="length of the kernels of a GPU phase, together")
    parser.add_argument("--bytes", type=int, default=1 << 20, help="device memory of each of the two arrays")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default=way)
    return parser.parse_args()


def mixed(words, seed):
    """splitmix64(seed + i), as the kernel acb_fill leaves it."""
    with numpy.errstate(over="ignore"):
        z = numpy.arange(words, dtype=numpy.uint64) + numpy.uint64(seed) + numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        return z ^ (z >> numpy.uint64(31))


def stepped(words, salt):
    """What the kernel acb_step makes of words."""
    with numpy.errstate(over="ignore"):
        return words * FACTOR + numpy.uint64(salt)


def run(client, options):
    """Runs all rounds; returns the exit code.

    `client` has `first()`, which returns when the GPU does its work; `gpu_phase(fresh, salt)`, which returns the
    fresh words and those that stay on the GPU, both after a step; `close()`.
    """
    words = options.bytes // 8
    kept = mixed(words, options.seed)
    for number in itertools.count():
        if number >= options.rounds and (options.until is None or os.path.exists(options.until)):
            break
        cpu_start = time.monotonic_ns()
        time.sleep(options.cpu_ms / 1000)
        fresh = mixed(words, options.seed + 1000 * (number + 1))
        wanted = time.monotonic_ns()
        client.first()
        got = time.monotonic_ns()
        fresh_back, kept_back = client.gpu_phase(fresh, number + 7)
        done = time.monotonic_ns()
        kept = stepped(kept, number + 7)
        ok = bool((fresh_back == stepped(fresh, number + 7)).all() and (kept_back == kept).all())
        record = {
            "name": options.name, "pid": os.getpid(), "round": number, "cpu_start_ns": cpu_start,
            "gpu_wanted_ns": wanted, "gpu_got_ns": got, "gpu_done_ns": done, "ok": ok,
        }
        print(json.dumps(record), flush=True)
        if not ok:
            return WRONG_DATA
    client.close()
    return 0
