"""Memory and memory maps of a process that detects in images of 200 padded sizes.

`python tests/slow/program_memory.py [SIZES]` prints the figures as JSON; program_memory.json has those of
200 sizes.
"""

import ctypes
import gc
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SIZES = [(32 * (1 + index % 10), 32 * (1 + index // 10)) for index in range(200)]


def measure(count: int = len(SIZES)) -> dict:
    """Returns the number of programs kept, and megabytes and memory maps after every tenth size."""
    import numpy as np
    import tiny

    from mrcnn_jax.inference.program import MAX_PROGRAMS, compiled

    model = tiny.model_config()
    variables, predict, figures = tiny.variables(model), compiled(model, "float32"), []
    for number, size in enumerate(SIZES[:count], start=1):
        predict(variables, np.zeros((1, *size, 3), np.uint8), np.array([size], np.int32))
        if number % 10 == 0:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps is none of the programs' memory
            figures.append({"sizes": number, "megabytes": _megabytes(), "maps": _maps()})
    return {"programs_kept": MAX_PROGRAMS, "figures": figures}


def _megabytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))


def _maps() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


if __name__ == "__main__":
    # compiling takes nearly all of the time; the number of programs and of their memory maps stays the same
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests/helpers")]
    print(json.dumps(measure(*map(int, sys.argv[1:])), indent=1))
