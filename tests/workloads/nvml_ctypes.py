"""Asks NVML for the memory of every GPU, and cuMemGetInfo for that of the first CUDA device, through ctypes.

Prints one line of JSON, as the program `nvml_linked` does. 1 GiB is allocated in between.
"""

import ctypes
import json
import sys
import uuid


class Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class MemoryV2(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint)] + [
        (name, ctypes.c_ulonglong) for name in ("total", "reserved", "free", "used")
    ]


def check(call, *arguments):
    code = call(*arguments)
    if code != 0:
        sys.exit(f"{call.__name__} failed: {code}")


def gpus(nvml):
    count = ctypes.c_uint()
    check(nvml.nvmlDeviceGetCount_v2, ctypes.byref(count))
    found = []
    for index in range(count.value):
        device, memory = ctypes.c_void_p(), Memory()
        v2 = MemoryV2(version=ctypes.sizeof(MemoryV2) | 2 << 24)
        name = ctypes.create_string_buffer(96)
        check(nvml.nvmlDeviceGetHandleByIndex_v2, index, ctypes.byref(device))
        check(nvml.nvmlDeviceGetUUID, device, name, len(name))
        check(nvml.nvmlDeviceGetMemoryInfo, device, ctypes.byref(memory))
        check(nvml.nvmlDeviceGetMemoryInfo_v2, device, ctypes.byref(v2))
        found.append(
            {
                "uuid": name.value.decode(),
                "v1": [memory.free, memory.total, memory.used],
                "v2": [v2.free, v2.total, v2.used],
            }
        )
    return found


def main():
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    cuda = ctypes.CDLL("libcuda.so.1")
    check(nvml.nvmlInit_v2)
    before = gpus(nvml)
    device, context, address = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    check(cuda.cuInit, 0)
    check(cuda.cuDeviceGet, ctypes.byref(device), 0)
    check(cuda.cuDevicePrimaryCtxRetain, ctypes.byref(context), device)
    check(cuda.cuCtxSetCurrent, context)
    check(cuda.cuMemAlloc_v2, ctypes.byref(address), ctypes.c_size_t(1 << 30))
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    check(cuda.cuMemGetInfo_v2, ctypes.byref(free), ctypes.byref(total))
    own = (ctypes.c_ubyte * 16)()
    check(cuda.cuDeviceGetUuid, own, device)
    answer = {
        "own": f"GPU-{uuid.UUID(bytes=bytes(own))}",
        "cuda": [free.value, total.value],
        "before": before,
        "after": gpus(nvml),
    }
    check(nvml.nvmlShutdown)
    print(json.dumps(answer))


main()
