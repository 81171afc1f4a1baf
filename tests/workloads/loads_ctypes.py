"""Loads the CUDA driver through ctypes, fills memory on the GPU, and checks it.

Prints one line of JSON, as the program `loads` does.
"""

import ctypes
import sys

from reference import PTX, file_of, filled, report

WORDS, SEED = 1000, 3


def main():
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return report("ctypes", "", str(error))
    library = file_of(ctypes.cast(cuda.cuInit, ctypes.c_void_p))

    def call(name, *arguments):
        code = getattr(cuda, name)(*arguments)
        if code:
            sys.exit(report("ctypes", library, f"{name} failed: {code}"))

    device, context = ctypes.c_int(), ctypes.c_void_p()
    module, kernel, memory = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuModuleLoadData", ctypes.byref(module), PTX)
    call("cuModuleGetFunction", ctypes.byref(kernel), module, b"acb_fill")
    call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(WORDS * 8))
    values = [memory, ctypes.c_uint64(WORDS), ctypes.c_uint64(SEED)]
    arguments = (ctypes.c_void_p * 3)(*(ctypes.addressof(value) for value in values))
    call("cuLaunchKernel", kernel, 4, 1, 1, 128, 1, 1, 0, None, arguments, None)
    words = (ctypes.c_uint64 * WORDS)()
    call("cuMemcpyDtoH_v2", words, memory, ctypes.c_size_t(WORDS * 8))
    call("cuMemFree_v2", memory)
    call("cuDevicePrimaryCtxRelease_v2", device)
    right = list(words) == filled(WORDS, SEED)
    return report("ctypes", library, "ok" if right else "wrong data")


sys.exit(main())
