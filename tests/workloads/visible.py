"""Takes the entries of CUDA_VISIBLE_DEVICES for numbers, as vLLM does, and compares the devices of CUDA and NVML.

With an argument it puts that there before cuInit. Prints one line of JSON.
"""

import ctypes
import json
import os
import subprocess
import sys
import uuid

NAME = "CUDA_VISIBLE_DEVICES"


def check(call, *arguments):
    code = call(*arguments)
    if code != 0:
        sys.exit(f"{call.__name__} failed: {code}")


def numbers():
    return [int(entry) for entry in os.environ[NAME].split(",") if not entry.startswith("GPU-")]


def main():
    given = numbers()
    if sys.argv[1]:
        os.environ[NAME] = sys.argv[1]
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    cuda = ctypes.CDLL("libcuda.so.1")
    check(cuda.cuInit, 0)
    devices, count = [], ctypes.c_int()
    check(cuda.cuDeviceGetCount, ctypes.byref(count))
    for ordinal in range(count.value):
        own = (ctypes.c_ubyte * 16)()
        check(cuda.cuDeviceGetUuid, own, ordinal)
        devices.append(f"GPU-{uuid.UUID(bytes=bytes(own))}")
    check(nvml.nvmlInit_v2)
    check(nvml.nvmlDeviceGetCount_v2, ctypes.byref(count))
    numbered, indices = [], []
    for index in range(count.value):
        device, back = ctypes.c_void_p(), ctypes.c_uint()
        name = ctypes.create_string_buffer(96)
        check(nvml.nvmlDeviceGetHandleByIndex_v2, index, ctypes.byref(device))
        check(nvml.nvmlDeviceGetUUID, device, name, len(name))
        check(nvml.nvmlDeviceGetIndex, device, ctypes.byref(back))
        numbered.append(name.value.decode())
        indices.append(back.value)
    echo = ["sh", "-c", f"printf %s ${NAME}"]
    answer = {
        "given": given,
        "after": numbers(),
        "cuda": devices,
        "nvml": numbered,
        "indices": indices,
        "child": subprocess.run(echo, capture_output=True, text=True, check=True).stdout,
    }
    print(json.dumps(answer))


main()
