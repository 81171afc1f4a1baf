"""What the framework programs report: a digest of their results, and the driver libraries in place.

Each program calls `report` once; it prints one JSON object. The group `frameworks` of the probe runs
each program alone and under the interposer and compares the digests.
"""

import hashlib
import json
import sys
import time

_begin = time.monotonic()


def driver_libraries():
    """Paths of everything mapped that is named libcuda.so, in order, each once."""
    seen = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.split(None, 5)[5].strip() if len(line.split(None, 5)) > 5 else ""
            if "libcuda.so" in path.rsplit("/", 1)[-1] and path not in seen:
                seen.append(path)
    return seen


def report(framework, version, arrays):
    """Prints the evidence for results given as (name, bytes) pairs."""
    digest = hashlib.sha256()
    sizes = {}
    for name, data in arrays:
        digest.update(name.encode())
        digest.update(data)
        sizes[name] = len(data)
    print(json.dumps({
        "framework": framework,
        "version": version,
        "digest": digest.hexdigest(),
        "bytes": sizes,
        "libraries": driver_libraries(),
        "seconds": time.monotonic() - _begin,
    }))
    sys.stdout.flush()
