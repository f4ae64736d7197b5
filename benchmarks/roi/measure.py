"""Measures the speed of the RoI operations in each implementation: python -m benchmarks.roi.measure.

Compares with torchvision's C++ and CUDA, which run in a process of their own: by the Python that
MRCNN_TORCHVISION_PYTHON names, or this one. Writes a JSON file, tables and plots to
benchmarks/results/.

A whole run measures every implementation of RoIAlign and RoIPool on three workloads with one image in
float32, and of the other operations on one. The rest, including bfloat16 and two images, it measures in
part, with the default implementation and torchvision's; --all measures the whole product, which takes many
times as long. Groups that --minutes do not suffice for are listed as not measured.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU must also hold torch's arrays

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _torchvision
from benchmarks._program import RESULTS, command_line, machine, rounded, write_files
from benchmarks.roi import report
from benchmarks.roi._programs import OPERATIONS, Group, bounds, program
from benchmarks.roi._rows import TORCHVISION
from benchmarks.roi._workloads import BY_NAME
from mrcnn_jax import ops
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.errors import InputError, first_line

PROGRAM = "python -m benchmarks.roi.measure"
EFFORT, QUICK_EFFORT = (7, 0.7), (3, 0.35)  # rounds of a program at most, of at least 3, and their seconds
SLOW = 1.0  # seconds of a first call after which a single further one is enough
COPIED = 2**25  # float32 numbers of the copy that bandwidth is measured by: 128 MiB


class Stage(NamedTuple):
    """A part of the plan; more important ones come first, in case time runs out."""

    operations: Sequence[str]
    workloads: Sequence[str]
    batch: int = 1
    dtype: str = "float32"
    complete: bool = False  # every implementation, or only the default one and torchvision's


MAIN, OTHERS, PARTS = ("align", "pool"), ("align-adaptive", "align-max", "warp"), ("ps-pool", "ps-align")
PYRAMIDS = ("FPN box training", "FPN mask training", "FPN inference")
PLAN = (
    Stage(MAIN, ("FPN box training", "one map", "C4"), complete=True),
    Stage(MAIN, ("FPN mask training", "FPN inference")),
    Stage(PARTS, ("FCIS",), complete=True),
    Stage(OTHERS, ("FPN box training",), complete=True),
    Stage(MAIN, (*PYRAMIDS, "C4"), dtype="bfloat16"),
    Stage(MAIN, PYRAMIDS, batch=2),
    Stage(MAIN, ("FPN box training",), batch=2, dtype="bfloat16"),
    Stage(OTHERS, ("C4", "one map")),
)
QUICK = (Stage(MAIN, ("FPN box training", "one map")),)
EVERYTHING = tuple(
    Stage((*MAIN, *OTHERS, *PARTS), (*PYRAMIDS, "C4", "one map", "FCIS"), batch, dtype, complete=True)
    for batch, dtype in product((1, 2), ("float32", "bfloat16"))
)


@dataclass(frozen=True)
class Options:
    """Measure the RoI operations and write a result file, its tables and its plots."""

    quick: bool = False
    """RoIAlign and RoIPool on two workloads, in float32 and few rounds: less than a minute on two cores."""
    all: bool = False
    """All combinations of operations, implementations, workloads, dtypes and one or two images."""
    operations: tuple[Literal[*OPERATIONS], ...] = ()
    """By default the plan's."""
    workloads: tuple[Literal[*BY_NAME], ...] = ()
    """By default the plan's; "tiny" is for tests."""
    out: Path | None = None
    """Folder of the result file, its tables and plots; by default benchmarks/results for a whole run, and
    runs/roi_ops for --quick or a selection."""
    minutes: float = 9.0
    """Time after which no further group of measurements begins."""


def plan(options: Options, torchvision: bool) -> list[Group]:
    """Returns the groups to measure; InputError if nothing is selected."""
    groups = {}
    for stage in QUICK if options.quick else EVERYTHING if options.all else PLAN:
        operations = [name for name in stage.operations if name in (options.operations or OPERATIONS)]
        workloads = [BY_NAME[name] for name in options.workloads or stage.workloads]
        for workload, name in product(workloads, operations):
            kind = OPERATIONS[name]
            if not kind.is_for(workload):
                continue
            default = ops.default_implementation(*kind.arguments)
            names = kind.implementations if stage.complete else (default,)
            names = (*names, TORCHVISION) if kind.torchvision and torchvision else names
            for direction in workload.directions:
                group = Group(workload, stage.batch, stage.dtype, name, direction, names)
                groups.setdefault(tuple(group.key.values()), group)  # the first stage decides
    if not groups:
        raise InputError("Nothing that these options select is in the plan; --all has every combination")
    return list(groups.values())


def prepare(group: Group, implementation: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """Compiles a program; returns its fields of the result file, and a function that times it."""
    if implementation == TORCHVISION:
        return {}, prepare_torchvision(group)
    arguments, start = group.arguments, time.perf_counter()
    compiled = jax.jit(program(group, implementation)).lower(*arguments).compile()
    fields = {
        "compile_seconds": round(time.perf_counter() - start, 3),
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "is_default": implementation == ops.default_implementation(*group.kind.arguments),
    }
    return fields, _timer(lambda: jax.block_until_ready(compiled(*arguments)))


@cache
def torchvision() -> _torchvision.Torchvision | None:
    """Returns torchvision's process, None without it."""
    return _torchvision.start("benchmarks.roi._torchvision", jax.default_backend())


def prepare_torchvision(group: Group) -> Callable[[], float]:
    """Returns a function that times torchvision's program."""
    features, *others = jax.tree.map(lambda array: np.asarray(array, np.float32), group.arguments)
    arrays = {f"map{level}": features for level, features in enumerate(features)}
    arrays |= zip(("boxes", "levels", "cotangent"), others, strict=False)
    process, kind, load = torchvision(), group.kind, group.workload
    settings = {"strides": load.strides, "bins": load.bins, "samples": kind.sampling_ratio,
                "groups": load.groups}  # fmt: skip
    process("prepare", arrays, operation=kind.torchvision, dtype=group.dtype, **settings)
    return partial(process, "run")


def _timer(run):
    """Returns a function that runs a program and returns its seconds."""

    def call() -> float:
        start = time.perf_counter()
        results = run()  # freed after the time is taken
        seconds = time.perf_counter() - start
        del results
        return seconds

    return call


def measure(group: Group, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Returns the rows of a group: two calls to warm up, then timed in turn, each round in another order."""
    rows, timed = [], []
    for implementation in group.implementations:
        row = group.key | {"implementation": implementation, "is_default": False, **bounds(group)}
        rows.append(row)
        try:
            fields, call = prepare(group, implementation)
            first = call()
            number = 1 if first > SLOW else int(np.clip(seconds / call(), min(3, rounds), rounds))
        except (RuntimeError, ValueError) as error:  # unsupported dtype or platform, or out of memory
            row["unavailable"] = first_line(error)[:200]
            continue
        timed.append((row, fields, call, number, []))
    for turn in range(max((number for *_, number, _ in timed), default=0)):
        start = turn % len(timed)
        for _, _, call, number, taken in (*timed[start:], *timed[:start]):
            if turn < number:
                taken.append(call())
    for row, fields, _, _, taken in timed:
        times = {"median_ms": rounded(1e3 * np.median(taken)), "min_ms": rounded(1e3 * min(taken))}
        row |= fields | times | {"rounds": len(taken)}
    return rows


def copy_speed(rounds: int = 20) -> float:
    """Measures the bytes per second, read and written, of copies of a large array."""
    array, copy = jnp.zeros(COPIED, jnp.float32), jax.jit(jnp.copy)
    call = _timer(lambda: jax.block_until_ready(copy(array)))
    call()  # compiles
    return float(2 * array.nbytes / np.median([call() for _ in range(rounds)]))


def run(options: Options) -> list[Path]:
    """Measures, writing the result file after every group, and renders it; returns the files."""
    # roi_ops_tpu.json holds programs compiled for a TPU on another machine
    suffix = {"tpu": "tpu_measured"}.get(jax.default_backend(), jax.default_backend())
    partial = options.quick or options.operations or options.workloads
    folder = options.out or (Path("runs/roi_ops") if partial else RESULTS)
    out = folder / f"roi_ops_{suffix}.json"
    begin, speed, groups = time.monotonic(), copy_speed(), plan(options, torchvision() is not None)
    content = {
        "machine": machine(torchvision()), "command": command_line(PROGRAM, options),
        "copy_gigabytes_per_second": rounded(speed / 1e9), "rows": [], "not_measured": [],
    }  # fmt: skip
    for number, group in enumerate(groups, start=1):
        if time.monotonic() - begin > 60 * options.minutes:
            content["not_measured"].append(group.key | {"reason": f"{options.minutes:g} minutes were over"})
            continue
        print(f"{number}/{len(groups)}", *group.key.values(), sep=", ")
        rows = measure(group, *(QUICK_EFFORT if options.quick else EFFORT))
        for row in rows:
            if "median_ms" in row:
                row["share_of_copy"] = rounded(1e3 * row["necessary_bytes"] / row["median_ms"] / speed)
        content["rows"] += rows
        write_json(out, content)
    write_json(out, content)
    return [out, *report.render(folder)]


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # compile seconds of a first compilation
    sys.exit(main())
