"""PyTorch with alternating CPU and GPU phases, each a fixed amount of work.

usage: alternating.py --calibrate SECONDS                      prints CPU-WORK GPU-WORK
       alternating.py --cpu-work N --gpu-work N --rounds N --go FILE

It says `ready` once the GPU has been used, begins when FILE exists, and prints one JSON object: rounds
with times on the host's monotonic clock, and a digest of the final data. The matrices hold small whole
numbers, so every product is exact and the digest is the same on every run.
"""

import argparse
import hashlib
import json
import os
import time

import torch

torch.backends.cuda.matmul.allow_tf32 = False
ORDER = 4096
BUFFER = bytes(range(256)) * 4096


def cpu_phase(work):
    """Hashes a mebibyte `work` times: one core, no memory to speak of."""
    digest = hashlib.sha256()
    for _ in range(work):
        digest.update(BUFFER)
    return digest.digest()[0]


def gpu_phase(state, step, work):
    """Exact products, folded back into small numbers."""
    for _ in range(work):
        state = torch.remainder(state @ step, 7.0)
    torch.cuda.synchronize()
    return state


def matrices():
    torch.manual_seed(7)
    state = torch.randint(0, 7, (ORDER, ORDER)).float().cuda()
    step = torch.randint(0, 3, (ORDER, ORDER)).float().cuda()
    return gpu_phase(state, step, 2), step


def calibrate(seconds):
    state, step = matrices()

    def fitting(phase):
        work = 1
        while True:
            begin = time.monotonic()
            phase(work)
            took = time.monotonic() - begin
            if took > seconds / 3:
                return max(1, round(work * seconds / took))
            work *= 2

    # A CPU phase a little longer than the GPU phase: then two programs can overlap fully.
    cpu, gpu = fitting(cpu_phase), fitting(lambda work: gpu_phase(state, step, work))
    print(max(1, round(cpu * 1.25)), gpu)


def alternate(cpu_work, gpu_work, rounds, go):
    state, step = matrices()
    print("ready", flush=True)
    while not os.path.exists(go):
        time.sleep(0.001)
    report = []
    for _ in range(rounds):
        begin = time.monotonic_ns()
        cpu_phase(cpu_work)
        middle = time.monotonic_ns()
        state = gpu_phase(state, step, gpu_work)
        end = time.monotonic_ns()
        report.append({"begin_ns": begin, "end_ns": end,
                       "cpu_s": (middle - begin) / 1e9, "gpu_s": (end - middle) / 1e9})
    final = state.cpu().numpy()
    right = bool((final >= 0).all() and (final < 7).all() and (final == final.round()).all())
    print(json.dumps({"rounds": report, "digest": hashlib.sha256(final.tobytes()).hexdigest(), "right": right}),
          flush=True)


parser = argparse.ArgumentParser()
parser.add_argument("--calibrate", type=float)
parser.add_argument("--cpu-work", type=int)
parser.add_argument("--gpu-work", type=int)
parser.add_argument("--rounds", type=int)
parser.add_argument("--go")
options = parser.parse_args()
if options.calibrate:
    calibrate(options.calibrate)
else:
    alternate(options.cpu_work, options.gpu_work, options.rounds, options.go)
