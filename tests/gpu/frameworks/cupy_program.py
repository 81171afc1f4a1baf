"""CuPy: array arithmetic, a kernel compiled at run time, cuBLAS, the asynchronous allocator, two streams."""

import cupy
import numpy

from evidence import report

random = numpy.random.default_rng(7)
values = cupy.asarray(random.standard_normal(1 << 20))
square = cupy.asarray(random.standard_normal((512, 512), dtype=numpy.float32))

kernel = cupy.RawKernel(r"""
extern "C" __global__ void mix(unsigned long long *p, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) p[i] = (p[i] ^ (p[i] >> 29)) * 0xBF58476D1CE4E5B9ull + i;
}
""", "mix")
words = cupy.asarray(random.integers(0, 1 << 62, 1 << 18, dtype=numpy.uint64))
kernel((words.size // 256,), (256,), (words, words.size))

# Sums of whole numbers: a parallel scan of floating-point ones differs from run to run anyway.
results = [("sorted", cupy.sort(values)), ("sums", cupy.cumsum(words)), ("product", square @ square),
           ("words", words)]
cupy.cuda.set_allocator(cupy.cuda.MemoryAsyncPool().malloc)
streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
for number, stream in enumerate(streams):
    with stream:
        part = cupy.arange(1 << 16, dtype=cupy.float64) * (number + 1)
        results.append((f"stream {number}", cupy.sqrt(part)))
for stream in streams:
    stream.synchronize()
report("cupy", cupy.__version__, [(name, cupy.asnumpy(array).tobytes()) for name, array in results])
