"""python -m benchmarks.roi.compile_for_tpu [--operations ...] [--workloads ...] ...: the RoI operations in each of their forms, compiled for TPUs on a machine without one.

Needs libtpu (pip install "jax[tpu]"), and leaves a JSON file, written again after every program: memory, FLOPs and bytes by the compiler's account, of which
benchmarks/tpu_programs.py says what they mean. The compiler counts loops once; ``product_flops`` are therefore counted apart, with the workload's RoIs, and ``least_ms``
is what a chip needs at its peak rates for these, or to read every argument and write every result once.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: libtpu shall compile, not look for a TPU

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks._program import command_line
from benchmarks.roi._programs import (
    BACKWARD,
    DTYPES,
    FORWARD,
    ONE_HOT,
    OPERATIONS,
    Group,
    make_inputs,
    program,
)
from benchmarks.roi._workloads import TINY, WORKLOADS
from benchmarks.tpu._product_flops import product_flops
from benchmarks.tpu._programs import CHIPS, compile_for, estimate, figures, first_sentence, topology
from mrcnn_jax import ops
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.errors import InputError

OUT = Path(__file__).parents[1] / "results" / "roi_ops_tpu.json"


@dataclass(frozen=True)
class Options:
    """Compile the RoI operations for TPUs and write what the compiler says of them."""

    topologies: tuple[str, ...] = ("v5e:2x2", "v4:2x2x1")
    """Slices of TPUs; every program is for one chip of them."""
    operations: tuple[str, ...] = ()
    """Of align, pool, align-adaptive, align-max, warp; by default all, as with workloads and forms."""
    workloads: tuple[str, ...] = ()
    """Of "FPN box training", "FPN mask training", "FPN inference", "C4", "one map"; "tiny" is for tests."""
    forms: tuple[str, ...] = ()
    """Those of mrcnn_jax.ops.roi_forms, and "one-hot einsum"."""
    dtypes: tuple[str, ...] = ("bfloat16",)
    """Of float32 and bfloat16."""
    batch: int = 1
    """Images."""
    add: bool = False
    """Keep the rows of the file that are not compiled again; without this only what is compiled now is in it."""
    out: Path = OUT
    """The result file."""


def plan(options: Options) -> list[tuple[str, Group]]:
    """A topology and a group of forms for each thing to compile; InputError for names that do not exist, or if nothing is left."""
    forms = {form for kind in OPERATIONS.values() for form in ops.roi_implementations(*kind[:3])} | {ONE_HOT}
    workloads = WORKLOADS | {TINY.name: TINY}
    for option, known in (("operations", OPERATIONS), ("workloads", workloads), ("forms", sorted(forms)), ("dtypes", DTYPES)):
        for name in getattr(options, option):
            if name not in known:
                raise InputError(f"--{option} does not know {name!r}: choose from {', '.join(map(repr, known))}")
    if options.batch < 1:
        raise InputError(f"--batch must be at least 1, not {options.batch}")
    groups = []
    for name in options.topologies:
        for workload in (workloads[name] for name in options.workloads or WORKLOADS):
            for dtype in options.dtypes:
                for operation in options.operations or OPERATIONS:
                    own = (*ops.roi_implementations(*OPERATIONS[operation][:3]), *([ONE_HOT] if operation == "align" else []))
                    own = tuple(form for form in own if form in (options.forms or own))
                    for direction in (FORWARD, BACKWARD) if workload.training else (FORWARD,):
                        groups += [(name, Group(workload, options.batch, dtype, operation, direction, own))] if own else []
    if not groups:
        raise InputError("These options select nothing: none of the --operations has one of the --forms")
    return groups


def structs(group: Group) -> list[Any]:
    """Shapes and dtypes of a program's arguments."""
    workload, batch = group.workload, group.batch
    features = [jax.ShapeDtypeStruct((batch, *side, workload.channels), group.dtype) for side in workload.maps]
    boxes, levels = jax.ShapeDtypeStruct((batch, workload.rois, 4), jnp.float32), jax.ShapeDtypeStruct((batch, workload.rois), jnp.int32)
    cotangent = jax.ShapeDtypeStruct((batch, workload.rois, workload.bins, workload.bins, workload.channels), group.dtype)
    return [features, boxes, levels, cotangent] if group.direction == BACKWARD else [features, boxes, levels]


def compile_groups(options: Options, bars: Progress) -> Iterator[dict[str, Any]]:
    """A row of the result file for every program, as soon as it is compiled; one that is refused has the reason as ``unavailable``."""
    groups = plan(options)
    devices = {name: topology(name)[0] for name in options.topologies}
    task = bars.add_task("", total=sum(len(group.forms) for _, group in groups))
    products = lru_cache(_product_flops)  # the same for all topologies
    for name, group in groups:
        arguments = structs(group)
        features, pooled = sum(_bytes(level) for level in arguments[0]), _bytes(structs(Group(**vars(group) | {"direction": BACKWARD}))[3])
        for form in group.forms:
            bars.update(task, description=f"{name} {group.workload.name}, {group.dtype}: {group.name} {group.direction}, {form}")
            row = {"topology": name, **group.key, "form": form, "is_default": form == ops.default_implementation(*group.kind[:3], "tpu")}
            row["bound_bytes"] = 2 * pooled + features
            chip = CHIPS[name.partition(":")[0]]
            try:
                row |= figures(compile_for(program(group, form), arguments, devices[name]), chip)
            except (RuntimeError, NotImplementedError) as error:  # too large for the chip, or not for this platform
                row["unavailable"] = first_sentence(error)
            else:
                row["product_flops"] = products(group, form)
                row["least_ms"] = estimate(row["product_flops"], row["argument_bytes"] + row["output_bytes"], chip)
            yield row
            bars.advance(task)


def _product_flops(group: Group, form: str) -> int:
    inputs = make_inputs(group.workload, group.batch, group.dtype)
    return product_flops(program(group, form), inputs if group.direction == BACKWARD else inputs[:3], "tpu")


def _bytes(struct: jax.ShapeDtypeStruct) -> int:
    return struct.size * struct.dtype.itemsize


def run(options: Options, console: Console) -> None:
    """Compiles, and writes the result file again after every program."""
    rows = read_rows(options.out) if options.add else []
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        for row in compile_groups(options, bars):
            rows = [old for old in rows if _identity(old) != _identity(row)] + [row]
            write_json(options.out, {"machine": machine(rows), "command": command_line("python -m benchmarks.roi.compile_for_tpu", options), "rows": rows})


def machine(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was compiled for, and with what."""
    names = dict.fromkeys(row["topology"] for row in rows)
    return {"platform": "tpu", "device_kind": ", ".join(names), "jax": jax.__version__, "libtpu": version("libtpu")}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a result file, none if there is no such file yet; InputError if it is something else."""
    try:
        return json.loads(path.read_text())["rows"] if path.exists() else []
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no result file of the RoI operations: {error}") from error


def _identity(row: dict[str, Any]) -> tuple:
    return tuple(row[field] for field in ("topology", "operation", "reduction", "samples", "form", "workload", "batch", "dtype", "direction"))


def main(arguments: list[str] | None = None) -> int:
    """The program; returns the exit status."""
    options = tyro.cli(Options, prog="python -m benchmarks.roi.compile_for_tpu", args=arguments)
    console = Console(stderr=True)
    try:
        run(options, console)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    console.print(f"The figures are in {options.out}.", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # compile seconds are those of a machine that sees the program for the first time
    sys.exit(main())
