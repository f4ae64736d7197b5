"""Measures the speed of the RoI operations in each implementation: python -m benchmarks.roi.measure.

Compares with torchvision's C++ and CUDA, in an interpreter that has it (--torchvision-python, the environment
variable MRCNN_TORCHVISION_PYTHON, or this one), and with RoIAlign as dense one-hot matrix products. Writes
a JSON file, tables and plots to benchmarks/results/, named after the platform.

A whole run measures every implementation of RoIAlign and RoIPool on three workloads with one image in
float32, and of the other operations on one. The rest, including bfloat16 and two images, it measures in
part, with the default implementation and torchvision's; --all measures the whole product, which takes many
times as long. Groups that --minutes do not suffice for are listed as not measured.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")  # as the command line does
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU must also hold torch's arrays

import importlib.util
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._program import command_line, processor, write_files
from benchmarks.roi import _torchvision_process as torchvision_process
from benchmarks.roi import report
from benchmarks.roi._programs import (
    BACKWARD,
    BY_NAME,
    DTYPES,
    FORWARD,
    OPERATIONS,
    TORCHVISION,
    Group,
    bounds,
    check_names,
    make_inputs,
    program,
)
from benchmarks.roi._torchvision_process import Side
from mrcnn_jax import ops
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.errors import InputError

PROGRAM = "python -m benchmarks.roi.measure"
SLOW = 1.0  # seconds of a first call after which a single further one is enough
COPIED = 2**25  # float32 numbers of the copy that bandwidth is measured by: 128 MiB


class Stage(NamedTuple):
    """A part of the plan; more important ones come first, in case time runs out."""

    operations: Sequence[str]
    workloads: Sequence[str]
    batch: int = 1
    dtype: str = "float32"
    complete: bool = False  # every implementation, or only the default one and torchvision's


MAIN, OTHERS = ("align", "pool"), ("align-adaptive", "align-max", "warp")
PYRAMIDS = ("FPN box training", "FPN mask training", "FPN inference")
PLAN = (
    Stage(MAIN, ("FPN box training", "one map", "C4"), complete=True),
    Stage(MAIN, ("FPN mask training", "FPN inference")),
    Stage(OTHERS, ("FPN box training",), complete=True),
    Stage(MAIN, (*PYRAMIDS, "C4"), dtype="bfloat16"),
    Stage(MAIN, PYRAMIDS, batch=2),
    Stage(MAIN, ("FPN box training",), batch=2, dtype="bfloat16"),
    Stage(OTHERS, ("C4", "one map")),
)
QUICK = (Stage(MAIN, ("FPN box training", "one map")),)
EVERYTHING = tuple(
    Stage((*MAIN, *OTHERS), (*PYRAMIDS, "C4", "one map"), batch, dtype, complete=True)
    for batch in (1, 2) for dtype in DTYPES
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Measure the RoI operations and write a result file, its tables and its plots."""

    quick: bool = False
    """RoIAlign and RoIPool on two workloads, in float32 and few rounds: less than a minute on two cores."""
    all: bool = False
    """All combinations of operations, implementations, workloads, dtypes and one or two images."""
    operations: tuple[str, ...] = ()
    """Of align, pool, align-adaptive, align-max, warp; by default the plan's, as in the next options."""
    workloads: tuple[str, ...] = ()
    """Of "FPN box training", "FPN mask training", "FPN inference", "C4", "one map"; "tiny" is for tests."""
    implementations: tuple[str, ...] = ()
    """Those of mrcnn_jax.ops.roi_implementations, "one-hot einsum" and "torchvision", wherever they exist."""
    dtypes: tuple[str, ...] = ()
    """Of float32 and bfloat16."""
    torchvision_python: Path | None = None
    """A Python interpreter that has torch and torchvision."""
    out: Path | None = None
    """Result file, with tables and plots beside it; by default roi_ops_PLATFORM.json in benchmarks/results
    for a whole run, in runs/roi_ops for --quick or a selection."""
    minutes: float = 9.0
    """Time after which no further group of measurements begins."""
    rounds: int = 7
    """Maximum number of times that each program is timed; 3 with --quick."""
    seconds: float = 0.7
    """Time for all rounds of one program, which is timed at least 3 times."""


def plan(options: Options, torchvision: bool) -> list[Group]:
    """Returns the groups to measure; InputError for unknown names, or if nothing is selected."""
    check_names(options, TORCHVISION)
    for option in ("minutes", "rounds", "seconds"):
        if getattr(options, option) <= 0:
            raise InputError(f"--{option} must be more than 0, not {getattr(options, option)}")
    groups = {}
    for stage in QUICK if options.quick else EVERYTHING if options.all else PLAN:
        if options.dtypes and stage.dtype not in options.dtypes:
            continue
        for workload in (BY_NAME[name] for name in options.workloads or stage.workloads):
            for name in stage.operations:
                selected = _implementations(name, stage.complete, options.implementations, torchvision)
                if not selected or (options.operations and name not in options.operations):
                    continue
                for direction in (FORWARD, BACKWARD) if workload.training else (FORWARD,):
                    group = Group(workload, stage.batch, stage.dtype, name, direction, selected)
                    groups.setdefault(tuple(group.key.values()), group)  # the first stage decides
    if not groups:
        raise InputError("Nothing that these options select is in the plan; --all has every combination")
    return list(groups.values())


def _implementations(name, complete, selected, torchvision):
    kind = OPERATIONS[name]
    own = (*kind.implementations, *((TORCHVISION,) if kind.torchvision and torchvision else ()))
    if not complete and not selected:
        selected = (ops.default_implementation(*kind[:3]), TORCHVISION)
    return tuple(implementation for implementation in own if not selected or implementation in selected)


def torchvision_interpreter(options: Options) -> str | None:
    """Returns a Python that has torchvision; None if there is none or it is not needed."""
    unwanted = options.implementations and TORCHVISION not in options.implementations
    if jax.default_backend() == "tpu" or unwanted:
        return None
    given = options.torchvision_python or os.environ.get("MRCNN_TORCHVISION_PYTHON")
    own = sys.executable if importlib.util.find_spec("torchvision") else None
    return str(given) if given else own


def prepare(group: Group, implementation: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """Compiles a program; returns its fields of the result file, and a function that times it."""
    arguments = make_inputs(group.workload, group.batch, group.dtype)
    arguments = arguments if group.direction == BACKWARD else arguments[:3]
    start = time.perf_counter()
    compiled = jax.jit(program(group, implementation)).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    fields = {
        "compile_seconds": round(seconds, 3), "temp_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes, "bytes_accessed": costs.get("bytes accessed"),
        "flops": costs.get("flops"),
        "is_default": implementation == ops.default_implementation(*group.kind[:3]),
    }  # fmt: skip

    def call() -> float:
        start = time.perf_counter()
        results = jax.block_until_ready(compiled(*arguments))  # freed after the time is taken
        seconds = time.perf_counter() - start
        del results
        return seconds

    return fields, call


def measure(group: Group, side: Side | None, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Returns the rows of a group: two calls to warm up, then timed in turn, each round in another order."""
    rows, timed = [], []
    for implementation in group.implementations:
        row = group.key | {"implementation": implementation, "is_default": False, **bounds(group)}
        rows.append(row)
        try:
            is_torchvision = implementation == TORCHVISION
            prepared = (
                torchvision_process.prepare(side, group) if is_torchvision else prepare(group, implementation)
            )
            fields, call = prepared
            first = call()
            number = 1 if first > SLOW else int(np.clip(seconds / call(), min(3, rounds), rounds))
        except (RuntimeError, ValueError) as error:  # unsupported dtype or platform, or out of memory
            row["unavailable"] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            continue
        timed.append((row, fields, call, number, []))
    for turn in range(max((number for *_, number, _ in timed), default=0)):
        start = turn % len(timed)
        for _, _, call, number, taken in (*timed[start:], *timed[:start]):
            if turn < number:
                taken.append(call())
    for row, fields, _, _, taken in timed:
        times = {"median_ms": _short(1e3 * np.median(taken)), "min_ms": _short(1e3 * min(taken))}
        row |= fields | times | {"rounds": len(taken)}
    return rows


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def copy_speeds(rounds: int = 5) -> list[float]:
    """Measures the bytes per second, read and written, of copies of a large array."""
    array = jnp.zeros(COPIED, jnp.float32)
    copy = jax.jit(jnp.copy).lower(array).compile()
    jax.block_until_ready(copy(array))
    speeds = []
    for _ in range(rounds):
        start = time.perf_counter()
        copied = jax.block_until_ready(copy(array))
        speeds.append(2 * array.nbytes / (time.perf_counter() - start))
        del copied
    return speeds


def machine(side: Side | None) -> dict[str, Any]:
    """Describes the machine, without names of hosts, users or folders."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "/" not in flag]
    return {
        "platform": jax.default_backend(), "device_kind": jax.devices()[0].device_kind,
        "processor": processor(), "cores": os.cpu_count(),
        "python": platform.python_version(), "jax": jax.__version__,
        "xla_flags": " ".join(flags), **(side.versions if side else {"torchvision": None}),
    }  # fmt: skip


def run(options: Options) -> list[Path]:
    """Measures, writing the result file after every group, and renders it; returns the files."""
    python = torchvision_interpreter(options)
    groups = plan(options, torchvision=python is not None)
    out, begin, inputs = options.out or default_out(options), time.monotonic(), None
    if not out.match(report.PATTERN):
        raise InputError(
            f"--out must be named {report.PATTERN}, from which the tables are made, not {out.name}"
        )
    rounds = min(3, options.rounds) if options.quick else options.rounds
    seconds = 0.5 * options.seconds if options.quick else options.seconds
    with torchvision_process.start(python) if python else nullcontext() as side:
        content = {
            "machine": machine(side), "command": command_line(PROGRAM, options),
            "copy_gigabytes_per_second": None, "rows": [], "not_measured": [],
        }  # fmt: skip
        copies = copy_speeds()
        for number, group in enumerate(groups, start=1):
            if time.monotonic() - begin > 60 * options.minutes:
                reason = f"{options.minutes:g} minutes were over"
                fields = {"implementations": group.implementations, "reason": reason}
                content["not_measured"].append(group.key | fields)
                continue
            name, what = group.workload.name, f"{group.batch} x {group.dtype}"
            print(f"{number}/{len(groups)} {name}, {what}: {group.name} {group.direction}")
            if inputs != (inputs := (group.workload, group.batch, group.dtype)):
                copies += copy_speeds()
            content["rows"] += measure(group, side, rounds, seconds)
            _write(out, content, copies)
        _write(out, content, copies)
    make_inputs.cache_clear()
    return [out, *report.render(out.parent)]


def default_out(options: Options) -> Path:
    """Returns the published result file for a whole run, otherwise one under runs/."""
    partial = options.operations or options.workloads or options.implementations or options.dtypes
    folder = Path("runs/roi_ops") if options.quick or partial else report.RESULTS
    # roi_ops_tpu.json holds programs compiled for a TPU on another machine
    suffix = {"tpu": "tpu_measured"}.get(jax.default_backend(), jax.default_backend())
    return folder / f"roi_ops_{suffix}.json"


def _write(out, content, copies):
    speed = float(np.median(copies))
    content["copy_gigabytes_per_second"] = _short(speed / 1e9)
    for row in content["rows"]:
        if "median_ms" in row:
            row["share_of_copy"] = _short(row["necessary_bytes"] / (1e-3 * row["median_ms"]) / speed)
    write_json(out, content)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # compile seconds are those of a first compilation
    sys.exit(main())
