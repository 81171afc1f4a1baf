"""PyTorch: a small training, a convolution, sorting and reductions, then many allocations.

usage: pytorch.py default|expandable|graphs|compile
"""

import os
import sys

VARIANT = sys.argv[1]
# Set before the import: the allocator and cuBLAS read them once.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
if VARIANT == "expandable":
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"

import torch  # noqa: E402

from evidence import report  # noqa: E402

torch.use_deterministic_algorithms(True)
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False
torch.backends.cudnn.benchmark = False
torch.manual_seed(7)
DEVICE = torch.device("cuda")


def from_host(*shape):
    """Random numbers drawn on the CPU, so that they are the same everywhere."""
    return torch.randn(*shape).to(DEVICE)


def model():
    return torch.nn.Sequential(
        torch.nn.Linear(512, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 512)).to(DEVICE)


def training(steps=20):
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    data, target = from_host(256, 512), from_host(256, 512)
    if VARIANT == "compile":
        net_run = torch.compile(net)
    else:
        net_run = net
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(net_run(data), target)
        loss.backward()
        optimizer.step()
    return [("loss", loss.detach()), ("weights", net[0].weight.detach())]


def graph_training(steps=20):
    """One step captured as a CUDA graph and replayed."""
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, capturable=True)
    data, target = from_host(256, 512), from_host(256, 512)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.mse_loss(net(data), target).backward()
            optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = torch.nn.functional.mse_loss(net(data), target)
        loss.backward()
        optimizer.step()
    for _ in range(steps):
        graph.replay()
    return [("loss", loss.detach()), ("weights", net[0].weight.detach())]


def operations():
    images, kernel = from_host(8, 16, 64, 64), from_host(32, 16, 3, 3)
    values = from_host(1 << 20)
    half = from_host(512, 512).half()
    return [
        ("convolution", torch.nn.functional.conv2d(images, kernel, padding=1)),
        ("sorted", values.sort().values),
        ("softmax", values.view(1024, 1024).softmax(dim=1)),
        ("half", (half @ half).float()),
        ("fourier", torch.view_as_real(torch.fft.fft(values[:1 << 16]))),
    ]


def allocations():
    """Blocks of many sizes that come and go, each keeping its own content."""
    kept = []
    for i in range(200):
        block = torch.full((1 + (i * 7919) % 300_000,), float(i), device=DEVICE)
        kept.append(block)
        if i % 3 == 0:
            del kept[i % len(kept)]
    return [("blocks", torch.stack([block.mean() for block in kept]))]


def main():
    results = (graph_training() if VARIANT == "graphs" else training()) + operations() + allocations()
    torch.cuda.synchronize()
    arrays = [(name, tensor.float().cpu().numpy().tobytes()) for name, tensor in results]
    report("pytorch-" + VARIANT, torch.__version__, arrays)


main()
