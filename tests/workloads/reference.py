"""What the Python workloads share: the kernels' PTX, what they must leave behind, and the record.

The same as src/reference.rs and src/loaded.rs, which say more.
"""

import ctypes
import json
import os
from pathlib import Path

PTX = (Path(__file__).parent / "kernels.ptx").read_bytes() + b"\0"
MASK = (1 << 64) - 1


def splitmix64(x):
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def filled(words, seed):
    return [splitmix64((seed + i) & MASK) for i in range(words)]


class DlInfo(ctypes.Structure):
    _fields_ = [
        ("dli_fname", ctypes.c_char_p),
        ("dli_fbase", ctypes.c_void_p),
        ("dli_sname", ctypes.c_char_p),
        ("dli_saddr", ctypes.c_void_p),
    ]


def file_of(address):
    """The file that holds the code at an address."""
    dladdr = ctypes.CDLL(None).dladdr
    dladdr.argtypes = [ctypes.c_void_p, ctypes.POINTER(DlInfo)]
    info = DlInfo()
    return os.fsdecode(info.dli_fname) if dladdr(address, ctypes.byref(info)) else "?"


def report(way, library, result):
    """Prints the line of JSON and returns the exit code."""
    preload = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    interposed = bool(preload) and library != "" and os.path.samefile(library, preload[0])
    print(json.dumps({"way": way, "library": library, "interposed": interposed, "result": result}), flush=True)
    return 0 if result == "ok" else 1
