"""Rounds through Numba's CUDA arrays, copies, streams and events, and its linker and module layer.

Numba has a driver layer of its own, on ctypes, and asks for `libcuda.so`. Its compiler is not needed: the kernels come
as PTX through Numba's linker. `python-env` makes the environment to run in.
"""

import ctypes
import sys

import numpy
from numba import cuda
from numba.cuda.cudadrv.driver import Linker, launch_kernel

import rounds
from reference import PTX


class Client:
    def __init__(self, options):
        self.words = options.bytes // 8
        self.length = int(options.gpu_ms * 1e6) // 2
        linker = Linker.new(cc=cuda.get_current_device().compute_capability)
        linker.add_ptx(PTX)
        self.module = cuda.current_context().create_module_image(linker.complete())
        self.step = self.module.get_function("acb_step")
        self.streams = [cuda.stream(), cuda.stream()]
        self.events = [cuda.event(), cuda.event()]
        self.kept = cuda.to_device(rounds.mixed(self.words, options.seed))
        self.fresh = cuda.device_array(self.words, dtype=numpy.uint64)
        self.sent = cuda.pinned_array(self.words, dtype=numpy.uint64)
        self.back = cuda.pinned_array(self.words, dtype=numpy.uint64)
        self.one = cuda.device_array(1, dtype=numpy.uint64)

    def first(self):
        self.one.copy_to_device(numpy.ones(1, dtype=numpy.uint64))

    def launch(self, array, salt, stream):
        arguments = [ctypes.c_uint64(value) for value in
                     (array.device_ctypes_pointer.value, self.words, salt, self.length)]
        launch_kernel(self.step.handle, 32, 1, 1, 256, 1, 1, 0, stream.handle, arguments)

    def gpu_phase(self, fresh, salt):
        first, second = self.streams
        self.sent[:] = fresh
        self.fresh.copy_to_device(self.sent, stream=first)
        self.launch(self.fresh, salt, first)
        self.events[0].record(first)
        self.launch(self.kept, salt, second)
        # The second stream fetches what the first one has made.
        self.events[0].wait(second)
        self.fresh.copy_to_host(self.back, stream=second)
        self.events[1].record(second)
        self.events[1].synchronize()
        if cuda.event_elapsed_time(*self.events) < 0:
            raise RuntimeError("events out of order")
        # Sliced arrays go piece by piece, pageable memory too.
        half = self.words // 2
        kept = numpy.concatenate([self.kept[:half].copy_to_host(), self.kept[half:].copy_to_host()])
        return self.back.copy(), kept

    def close(self):
        cuda.synchronize()


options = rounds.options("numba")
sys.exit(rounds.run(Client(options), options))
