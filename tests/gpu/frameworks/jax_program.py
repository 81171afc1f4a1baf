"""JAX: a few steps of gradient descent, a scan, a convolution; XLA takes device memory through its own pool."""

import os
import subprocess
import sys

# The default takes three quarters of the GPU; on a shared machine that is not ours to take.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.2")
# The same algorithms on every run. XLA aborts on a flag that it does not know, so another process tries them.
DETERMINISTIC = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
trial = subprocess.run([sys.executable, "-c", "import jax; jax.numpy.zeros(1).block_until_ready()"],
                       env={**os.environ, "XLA_FLAGS": DETERMINISTIC, "JAX_PLATFORMS": "cpu"},
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
KNOWN = trial.returncode == 0
if KNOWN:
    os.environ["XLA_FLAGS"] = DETERMINISTIC

import jax
import jax.numpy as jnp
import numpy

from evidence import report

assert jax.devices()[0].platform == "gpu", f"JAX has no GPU: {jax.devices()}"
random = numpy.random.default_rng(7)


def from_host(*shape):
    return jnp.asarray(random.standard_normal(shape, dtype=numpy.float32))


def loss(weights, data, target):
    hidden = jnp.tanh(data @ weights["a"])
    return jnp.mean((hidden @ weights["b"] - target) ** 2)


@jax.jit
def step(weights, data, target):
    gradient = jax.grad(loss)(weights, data, target)
    return jax.tree.map(lambda w, g: w - 0.01 * g, weights, gradient)


weights = {"a": from_host(512, 1024) * 0.05, "b": from_host(1024, 512) * 0.05}
data, target = from_host(256, 512), from_host(256, 512)
for _ in range(20):
    weights = step(weights, data, target)
sums = jax.lax.scan(lambda carry, x: (carry + x, carry * x), jnp.float32(0), from_host(4096))[1]
image = jax.lax.conv(from_host(4, 8, 64, 64), from_host(16, 8, 3, 3), (1, 1), "SAME")
results = [("a", weights["a"]), ("b", weights["b"]), ("scan", sums), ("convolution", image),
           ("sorted", jnp.sort(from_host(1 << 18)))]
report("jax", jax.__version__ + ("" if KNOWN else " (without its flags for determinism)"), [(name, numpy.asarray(array).tobytes()) for name, array in results])
