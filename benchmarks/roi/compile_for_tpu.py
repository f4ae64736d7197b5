"""Compiles the RoI operations for TPUs on a machine without one: python -m benchmarks.roi.compile_for_tpu.

Needs libtpu (pip install "jax[tpu]"). Writes a JSON file, again after every program, with memory, FLOPs and
bytes as the compiler counts them (benchmarks/tpu/_programs.py). The compiler counts loops once;
``product_flops`` are counted separately, with the RoIs of the workload. ``least_ms`` is the time that a
chip needs at its peak rates for these products, or to read every argument and write every result once.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: libtpu only compiles

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks._program import command_line, write_files
from benchmarks.roi._programs import (
    BACKWARD,
    BY_NAME,
    FORWARD,
    OPERATIONS,
    Group,
    check_names,
    make_inputs,
    program,
)
from benchmarks.roi._workloads import WORKLOADS
from benchmarks.tpu._flops import product_flops
from benchmarks.tpu._programs import CHIPS, compile_for, estimate, figures, first_sentence, topology
from mrcnn_jax import ops
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.errors import InputError

PROGRAM = "python -m benchmarks.roi.compile_for_tpu"
OUT = Path(__file__).parents[1] / "results" / "roi_ops_tpu.json"
IDENTITY = (
    "topology", "operation", "reduction", "samples", "implementation", "workload", "batch", "dtype",
    "direction",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Compile the RoI operations for TPUs and write the compiler's figures."""

    topologies: tuple[str, ...] = ("v5e:2x2", "v4:2x2x1")
    """Slices of TPUs; every program is for one chip of them."""
    operations: tuple[str, ...] = ()
    """Of align, pool, align-adaptive, align-max, warp; by default all; also in the next two options."""
    workloads: tuple[str, ...] = ()
    """Of "FPN box training", "FPN mask training", "FPN inference", "C4", "one map"; "tiny" is for tests."""
    implementations: tuple[str, ...] = ()
    """Those of mrcnn_jax.ops.roi_implementations, and "one-hot einsum"."""
    dtypes: tuple[str, ...] = ("bfloat16",)
    """Of float32 and bfloat16."""
    batch: int = 1
    """Images."""
    add: bool = False
    """Keep the rows of the file that are not compiled again; otherwise they are removed."""
    out: Path = OUT
    """Result file."""


def plan(options: Options) -> list[tuple[str, Group]]:
    """Returns topologies and groups; InputError for unknown names or an empty selection."""
    check_names(options)
    if options.batch < 1:
        raise InputError(f"--batch must be at least 1, not {options.batch}")
    groups = []
    for name in options.topologies:
        for workload in (BY_NAME[name] for name in options.workloads or WORKLOADS):
            for dtype in options.dtypes:
                for operation in options.operations or OPERATIONS:
                    own = OPERATIONS[operation].implementations
                    own = tuple(each for each in own if each in (options.implementations or own))
                    for direction in (FORWARD, BACKWARD) if workload.training else (FORWARD,):
                        group = Group(workload, options.batch, dtype, operation, direction, own)
                        groups += [(name, group)] if own else []
    if not groups:
        raise InputError("Nothing is selected: none of the --operations has one of the --implementations")
    return groups


def structs(group: Group) -> list[Any]:
    """Returns shapes and dtypes of a program's arguments."""
    workload, batch = group.workload, group.batch
    features = [
        jax.ShapeDtypeStruct((batch, *side, workload.channels), group.dtype) for side in workload.maps
    ]
    boxes = jax.ShapeDtypeStruct((batch, workload.rois, 4), jnp.float32)
    levels = jax.ShapeDtypeStruct((batch, workload.rois), jnp.int32)
    bins = workload.bins
    cotangent = jax.ShapeDtypeStruct((batch, workload.rois, bins, bins, workload.channels), group.dtype)
    return [features, boxes, levels, *((cotangent,) if group.direction == BACKWARD else ())]


def compile_groups(options: Options) -> Iterator[dict[str, Any]]:
    """Yields a row for every program; one that is refused has the reason as ``unavailable``."""
    groups = plan(options)
    devices = {name: topology(name)[0] for name in options.topologies}
    products = lru_cache(_product_flops)  # the same for all topologies
    for name, group in groups:
        chip = CHIPS[name.partition(":")[0]]
        *features, pooled = structs(replace(group, direction=BACKWARD))
        bound = 2 * _bytes(pooled) + sum(map(_bytes, features[0]))
        for implementation in group.implementations:
            is_default = implementation == ops.default_implementation(*group.kind[:3], "tpu")
            row = {"topology": name, **group.key, "implementation": implementation, "is_default": is_default}
            row["bound_bytes"] = bound
            try:
                row |= figures(compile_for(program(group, implementation), structs(group), devices[name]))
            except (RuntimeError, NotImplementedError) as error:  # too large, or not for this platform
                row["unavailable"] = first_sentence(error)
            else:
                row["product_flops"] = products(group, implementation)
                size = row["argument_bytes"] + row["output_bytes"]
                row["least_ms"] = estimate(row["product_flops"], size, chip)
            yield row


def _product_flops(group, implementation):
    inputs = make_inputs(group.workload, group.batch, group.dtype)
    inputs = inputs if group.direction == BACKWARD else inputs[:3]
    return product_flops(program(group, implementation), inputs)


def _bytes(struct):
    return struct.size * struct.dtype.itemsize


def run(options: Options) -> list[Path]:
    """Compiles, writing the result file after every program."""
    rows = read_rows(options.out) if options.add else []
    command = command_line(PROGRAM, options)
    for row in compile_groups(options):
        rows = [old for old in rows if any(old[field] != row[field] for field in IDENTITY)] + [row]
        write_json(options.out, {"machine": machine(rows), "command": command, "rows": rows})
        print(", ".join(str(row[field]) for field in IDENTITY))
    return [options.out]


def machine(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Describes targets and compiler."""
    names = dict.fromkeys(row["topology"] for row in rows)
    return {
        "platform": "tpu",
        "device_kind": ", ".join(names),
        "jax": jax.__version__,
        "libtpu": version("libtpu"),
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a result file, none if it does not exist; InputError if it is another file."""
    try:
        return json.loads(path.read_text())["rows"] if path.exists() else []
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a result file of the RoI operations: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # compile seconds are those of a first compilation
    sys.exit(main())
