"""PyTorch with alternating CPU and GPU phases, each a fixed amount of work.

usage: alternating.py --calibrate SECONDS                      prints CPU-WORK GPU-WORK
       alternating.py --cpu-work N --gpu-work N --rounds N --go FILE [--fill-mib N] [--training 1]

It says `ready` once the GPU has been used, begins when FILE exists, and prints one JSON object: rounds
with times on the host's monotonic clock, and a digest of the final data. The matrices hold small whole
numbers, so every product is exact and the digest is the same on every run.

With --fill-mib it has so much more memory, all of which changes in each GPU phase; with --training that memory is a network and
its optimizer, and a GPU phase is so many steps of training it.
"""

import argparse
import hashlib
import json
import os
import time

# Set before the import: cuBLAS reads it once.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

import torch  # noqa: E402

torch.backends.cuda.matmul.allow_tf32 = False
ORDER = 4096
SAMPLES = 256
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


class Products:
    """Exact products, and a block of whole numbers that changes in each phase."""

    def __init__(self, fill_mib):
        self.state, self.step = matrices()
        # In parts: a range of so many numbers does not fit into 32 bits where the memory is large.
        self.block = torch.empty(fill_mib << 18, dtype=torch.int32, device="cuda")
        for at, part in enumerate(self.block.split(1 << 26)):
            torch.arange(part.numel(), out=part)
            part.add_(at)

    def phase(self, work):
        self.block.mul_(3).add_(1)
        self.state = gpu_phase(self.state, self.step, work)

    def digest(self, digest):
        final = self.state.cpu().numpy()
        digest.update(final.tobytes())
        for part in self.block.split(1 << 26):
            digest.update(part.cpu().numpy().tobytes())
        return bool((final >= 0).all() and (final < 7).all() and (final == final.round()).all())


class Training:
    """A network whose weights, gradients and momenta fill the memory."""

    def __init__(self, fill_mib):
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(7)
        # Three times the weights of a layer, and what it keeps for the way back.
        layers = max(1, fill_mib // (3 * (ORDER * ORDER * 4 >> 20) + (SAMPLES * ORDER * 4 >> 20)))
        with torch.device("cuda"):
            parts = [torch.nn.Linear(ORDER, ORDER, bias=False) for _ in range(layers)]
        self.net = torch.nn.Sequential(*parts)
        torch.manual_seed(8)
        for part in parts:
            part.weight.data.copy_(torch.randn(ORDER, ORDER) / ORDER ** 0.5)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9, foreach=False)
        self.data = torch.randn(SAMPLES, ORDER).cuda()
        self.target = torch.randn(SAMPLES, ORDER).cuda()
        self.phase(1)

    def phase(self, work):
        for _ in range(work):
            self.optimizer.zero_grad(set_to_none=False)
            torch.nn.functional.mse_loss(self.net(self.data), self.target).backward()
            self.optimizer.step()
        torch.cuda.synchronize()

    def digest(self, digest):
        finite = True
        for weight in self.net.parameters():
            data = weight.detach().cpu()
            finite &= bool(torch.isfinite(data).all())
            digest.update(data.numpy().tobytes())
        return finite


def alternate(cpu_work, gpu_work, rounds, go, program):
    print("ready", flush=True)
    while not os.path.exists(go):
        time.sleep(0.001)
    report = []
    for _ in range(rounds):
        begin = time.monotonic_ns()
        cpu_phase(cpu_work)
        middle = time.monotonic_ns()
        program.phase(gpu_work)
        end = time.monotonic_ns()
        report.append({"begin_ns": begin, "end_ns": end,
                       "cpu_s": (middle - begin) / 1e9, "gpu_s": (end - middle) / 1e9})
    digest = hashlib.sha256()
    right = program.digest(digest)
    print(json.dumps({"rounds": report, "digest": digest.hexdigest(), "right": right}), flush=True)


parser = argparse.ArgumentParser()
parser.add_argument("--calibrate", type=float)
parser.add_argument("--cpu-work", type=int)
parser.add_argument("--gpu-work", type=int)
parser.add_argument("--rounds", type=int)
parser.add_argument("--go")
parser.add_argument("--fill-mib", type=int, default=0)
parser.add_argument("--training", type=int, default=0)
options = parser.parse_args()
if options.calibrate:
    calibrate(options.calibrate)
else:
    make = Training if options.training else Products
    alternate(options.cpu_work, options.gpu_work, options.rounds, options.go, make(options.fill_mib))
