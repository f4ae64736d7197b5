"""Compiles the RoI operations for TPUs on a machine without one: python -m benchmarks.roi.compile_for_tpu.

Needs libtpu (pip install "jax[tpu]"). Writes a JSON file, again after every program, with memory, FLOPs and
bytes as the compiler counts them (benchmarks/tpu/_programs.py). The compiler counts loops once;
``product_flops`` are counted separately, with the RoIs of the workload. ``least_ms`` is the time that a
chip needs at its peak rates for these products, or to read every argument and write every result once.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: libtpu only compiles

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Literal

import jax

from benchmarks._markdown import read_result
from benchmarks._program import RESULTS, command_line, write_files
from benchmarks.roi._programs import OPERATIONS, Group, bounds, program
from benchmarks.roi._rows import OPERATION
from benchmarks.roi._workloads import BY_NAME, WORKLOADS
from benchmarks.tpu._product_flops import product_flops
from benchmarks.tpu._programs import CHIPS, compile_for, estimate, figures, first_sentence, topology
from mrcnn_jax import ops
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.errors import InputError

PROGRAM = "python -m benchmarks.roi.compile_for_tpu"
IDENTITY = ("topology", *OPERATION, "implementation", "workload", "batch", "dtype", "direction")


@dataclass(frozen=True)
class Options:
    """Compile the RoI operations for TPUs and write the compiler's figures, for one image."""

    topologies: tuple[str, ...] = ("v5e:2x2", "v4:2x2x1")
    """Slices of TPUs; every program is for one chip of them."""
    operations: tuple[Literal[*OPERATIONS], ...] = tuple(OPERATIONS)
    """Operations."""
    workloads: tuple[Literal[*BY_NAME], ...] = tuple(WORKLOADS)
    """Workloads; "tiny" is for tests."""
    implementations: tuple[str, ...] = ()
    """Those of mrcnn_jax.ops.roi_implementations; by default all."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of features and gradients."""
    add: bool = False
    """Keep the rows of the file that are not compiled again; otherwise they are removed."""
    out: Path = RESULTS / "roi_ops_tpu.json"
    """Result file."""


def compile_programs(options: Options) -> Iterator[dict[str, Any]]:
    """Yields a row for every program; one that is refused has the reason as ``unavailable``."""
    devices = {name: topology(name)[0] for name in options.topologies}
    for workload, operation in product(map(BY_NAME.get, options.workloads), options.operations):
        if not OPERATIONS[operation].is_for(workload):
            continue
        names = OPERATIONS[operation].implementations
        names = [name for name in names if name in (options.implementations or names)]
        for direction, implementation in product(workload.directions, names):
            group = Group(workload, 1, options.dtype, operation, direction, ())
            function = program(group, implementation)
            flops = product_flops(function, group.arguments)
            is_default = implementation == ops.default_implementation(*group.kind.arguments, "tpu")
            for name, device in devices.items():
                row = {"topology": name, **group.key, "implementation": implementation}
                row |= {"is_default": is_default, "bound_bytes": bounds(group)["bound_bytes"]}
                try:
                    row |= figures(compile_for(function, group.arguments, device))
                except (RuntimeError, NotImplementedError) as error:  # too large, or not for this platform
                    yield row | {"unavailable": first_sentence(error)}
                    continue
                size = row["argument_bytes"] + row["output_bytes"]
                least = estimate(flops, size, CHIPS[name.partition(":")[0]])
                yield row | {"product_flops": flops, "least_ms": least}


def run(options: Options) -> list[Path]:
    """Compiles, writing the result file after every program."""
    rows = read_result(options.out, PROGRAM, "rows")["rows"] if options.add and options.out.exists() else []
    command, row = command_line(PROGRAM, options), None
    for row in compile_programs(options):
        rows = [old for old in rows if any(old[field] != row[field] for field in IDENTITY)] + [row]
        machine = {
            "platform": "tpu", "device_kind": ", ".join(dict.fromkeys(row["topology"] for row in rows)),
            "jax": jax.__version__, "libtpu": version("libtpu"),
        }  # fmt: skip
        write_json(options.out, {"machine": machine, "command": command, "rows": rows})
        print(", ".join(str(row[field]) for field in IDENTITY))
    if row is None:
        raise InputError("Nothing is selected: none of the --operations has one of the --implementations")
    return [options.out]


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # compile seconds of a first compilation
    sys.exit(main())
