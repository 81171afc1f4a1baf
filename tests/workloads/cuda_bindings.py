"""Works on the GPU through NVIDIA's cuda-bindings, which resolve the driver by cuGetProcAddress.

Prints one line of JSON, as the program `loads` does. `python-env` makes the environment to run in.
"""

import ctypes
import sys

from cuda.bindings import driver
from reference import PTX, file_of, filled, report

WORDS, SEED = 1000, 9


class CallFailed(Exception):
    pass


def call(function, *arguments):
    code, *values = function(*arguments)
    if code != driver.CUresult.CUDA_SUCCESS:
        raise CallFailed(f"{function.__name__} failed: {code.name} ({int(code)})")
    return values[0] if len(values) == 1 else values


def work():
    call(driver.cuInit, 0)
    device = call(driver.cuDeviceGet, 0)
    context = call(driver.cuDevicePrimaryCtxRetain, device)
    call(driver.cuCtxSetCurrent, context)
    stream = call(driver.cuStreamCreate, 0)
    module = call(driver.cuModuleLoadData, PTX)
    kernel = call(driver.cuModuleGetFunction, module, b"acb_fill")
    memory = call(driver.cuMemAlloc, WORDS * 8)
    types = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
    arguments = ((int(memory), WORDS, SEED), types)
    call(driver.cuLaunchKernel, kernel, 4, 1, 1, 128, 1, 1, 0, stream, arguments, 0)
    call(driver.cuStreamSynchronize, stream)
    words = (ctypes.c_uint64 * WORDS)()
    call(driver.cuMemcpyDtoH, ctypes.addressof(words), memory, WORDS * 8)
    call(driver.cuMemFree, memory)
    call(driver.cuStreamDestroy, stream)
    call(driver.cuDevicePrimaryCtxRelease, device)
    return "ok" if list(words) == filled(WORDS, SEED) else "wrong data"


def main():
    try:
        result = work()
    except (CallFailed, RuntimeError) as error:
        result = str(error)
    # The bindings keep their handle; the loader gives the same one again.
    try:
        library = file_of(ctypes.cast(ctypes.CDLL("libcuda.so.1").cuInit, ctypes.c_void_p))
    except OSError:
        library = ""
    return report("cuda-bindings", library, result)


sys.exit(main())
