"""Numba: a kernel with shared memory, copies both ways, two streams, through Numba's own driver layer."""

import numba
import numpy
from numba import cuda

from evidence import report


@cuda.jit
def scale(out, values, factor):
    i = cuda.grid(1)
    if i < values.size:
        out[i] = values[i] * factor + i


@cuda.jit
def block_sums(out, values):
    shared = cuda.shared.array(256, numba.float64)
    thread = cuda.threadIdx.x
    shared[thread] = values[cuda.grid(1)]
    cuda.syncthreads()
    width = 128
    while width > 0:
        if thread < width:
            shared[thread] += shared[thread + width]
        cuda.syncthreads()
        width //= 2
    if thread == 0:
        out[cuda.blockIdx.x] = shared[0]


values = numpy.random.default_rng(7).standard_normal(1 << 18)
streams = [cuda.stream(), cuda.stream()]
results = []
for number, stream in enumerate(streams):
    on_device = cuda.to_device(values, stream=stream)
    scaled = cuda.device_array_like(on_device, stream=stream)
    scale[values.size // 256, 256, stream](scaled, on_device, number + 2)
    sums = cuda.device_array(values.size // 256, dtype=numpy.float64, stream=stream)
    block_sums[values.size // 256, 256, stream](sums, scaled)
    results += [(f"scaled {number}", scaled.copy_to_host(stream=stream)),
                (f"sums {number}", sums.copy_to_host(stream=stream))]
cuda.synchronize()
report("numba", numba.__version__, [(name, array.tobytes()) for name, array in results])
