"""Rounds through NVIDIA's cuda-bindings: streams, events, the async allocator, and a captured graph.

`python-env` makes the environment to run in.
"""

import ctypes
import sys

import numpy
from cuda.bindings import driver

import rounds
from reference import PTX


def call(function, *arguments):
    code, *values = function(*arguments)
    if code != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{function.__name__} failed: {code.name} ({int(code)})")
    return values[0] if len(values) == 1 else values


class Client:
    def __init__(self, options):
        self.words = options.bytes // 8
        self.length = int(options.gpu_ms * 1e6) // 2
        call(driver.cuInit, 0)
        self.device = call(driver.cuDeviceGet, 0)
        call(driver.cuCtxSetCurrent, call(driver.cuDevicePrimaryCtxRetain, self.device))
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self.stream = call(driver.cuStreamCreate, flags)
        self.start, self.end = call(driver.cuEventCreate, 0), call(driver.cuEventCreate, 0)
        self.step = call(driver.cuModuleGetFunction, call(driver.cuModuleLoadData, PTX), b"acb_step")
        self.kept = call(driver.cuMemAlloc, options.bytes)
        kept = rounds.mixed(self.words, options.seed)
        call(driver.cuMemcpyHtoD, self.kept, kept.ctypes.data, options.bytes)
        self.fresh = call(driver.cuMemAllocAsync, options.bytes, self.stream)
        self.pinned = call(driver.cuMemHostAlloc, 2 * options.bytes, 0)
        self.bytes = options.bytes
        both = (ctypes.c_uint64 * (2 * self.words)).from_address(self.pinned)
        self.sent, self.back = numpy.frombuffer(both, dtype=numpy.uint64).reshape(2, -1)
        self.graph = None

    def first(self):
        call(driver.cuMemcpyHtoD, self.fresh, self.sent.ctypes.data, 8)

    def launch(self, memory, salt):
        types = (ctypes.c_uint64,) * 4
        arguments = ((int(memory), self.words, salt, self.length), types)
        call(driver.cuLaunchKernel, self.step, 32, 1, 1, 256, 1, 1, 0, self.stream, arguments, 0)

    def capture(self, salt):
        """The phase as a graph; from the second round on, the one that there is takes its kernels."""
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call(driver.cuStreamBeginCapture, self.stream, mode)
        call(driver.cuMemcpyHtoDAsync, self.fresh, self.sent.ctypes.data, self.bytes, self.stream)
        self.launch(self.fresh, salt)
        self.launch(self.kept, salt)
        call(driver.cuMemcpyDtoHAsync, self.back.ctypes.data, self.fresh, self.bytes, self.stream)
        captured = call(driver.cuStreamEndCapture, self.stream)
        if self.graph is None:
            self.graph = call(driver.cuGraphInstantiate, captured, 0)
        else:
            call(driver.cuGraphExecUpdate, self.graph, captured)
        call(driver.cuGraphDestroy, captured)

    def gpu_phase(self, fresh, salt):
        self.sent[:] = fresh
        self.capture(salt)
        call(driver.cuEventRecord, self.start, self.stream)
        call(driver.cuGraphLaunch, self.graph, self.stream)
        call(driver.cuEventRecord, self.end, self.stream)
        call(driver.cuEventSynchronize, self.end)
        if call(driver.cuEventElapsedTime, self.start, self.end) <= 0:
            raise RuntimeError("events out of order")
        kept = numpy.empty(self.words, dtype=numpy.uint64)
        call(driver.cuMemcpyDtoH, kept.ctypes.data, self.kept, self.bytes)
        return self.back.copy(), kept

    def close(self):
        call(driver.cuGraphExecDestroy, self.graph)
        call(driver.cuMemFreeAsync, self.fresh, self.stream)
        call(driver.cuMemFree, self.kept)
        call(driver.cuStreamSynchronize, self.stream)
        call(driver.cuMemFreeHost, self.pinned)
        call(driver.cuDevicePrimaryCtxRelease, self.device)


options = rounds.options("cuda-bindings")
sys.exit(rounds.run(Client(options), options))
