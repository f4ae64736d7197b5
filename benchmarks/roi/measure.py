"""python -m benchmarks.roi.measure [--quick] [--operations ...] [--workloads ...] ...: how fast the RoI operations are, in each of their forms.

Compared with torchvision's C++ and CUDA where an interpreter has it (--torchvision-python, the environment variable MRCNN_TORCHVISION_PYTHON,
or the one that runs this), and with RoIAlign as dense one-hot matrix products. Leaves a JSON file, tables and pictures in benchmarks/results/,
named after the platform.

A whole run takes every form of RoIAlign and RoIPool on three workloads with one image in float32, and every form of the other operations on one.
The rest, bfloat16 and two images too, it takes in the default form and torchvision's, and only in part: the whole product, --all, would take many
times as long. What --minutes do not suffice for is listed in the file as not measured.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")  # as the command line does
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU has to hold torch's arrays beside ours

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

from benchmarks._program import command_line, processor
from benchmarks.roi import _torchvision_process as torchvision_process
from benchmarks.roi import report as roi_report
from benchmarks.roi._programs import (
    BACKWARD,
    DTYPES,
    FORWARD,
    ONE_HOT,
    OPERATIONS,
    TORCHVISION,
    Group,
    bounds,
    default_implementation,
    make_inputs,
    program,
)
from benchmarks.roi._torchvision_process import Side
from benchmarks.roi._workloads import TINY, WORKLOADS
from mrcnn_jax import ops
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.errors import InputError

SLOW = 1.0  # seconds of a first call after which a single further one is enough
COPIED = 2**25  # float32 numbers of the copy that bandwidth is measured by: 128 MiB


class Stage(NamedTuple):
    """A part of the plan; the more important ones come first, lest time run out."""

    operations: Sequence[str]
    workloads: Sequence[str] = ("FPN box training", "FPN mask training", "FPN inference", "C4", "one map")
    batch: int = 1
    dtype: str = "float32"
    every_form: bool = True  # or the default one and torchvision's


USUAL, OTHERS = ("align", "pool"), ("align-adaptive", "align-max", "warp")
DETECTORS, PYRAMIDS = ("FPN box training", "FPN mask training", "FPN inference", "C4"), ("FPN box training", "FPN mask training", "FPN inference")
PLAN = (
    Stage(USUAL, ("FPN box training", "one map", "C4")),
    Stage(USUAL, ("FPN mask training", "FPN inference"), every_form=False),
    Stage(OTHERS, ("FPN box training",)),
    Stage(USUAL, DETECTORS, dtype="bfloat16", every_form=False),
    Stage(USUAL, PYRAMIDS, batch=2, every_form=False),
    Stage(USUAL, ("FPN box training",), batch=2, dtype="bfloat16", every_form=False),
    Stage(OTHERS, ("C4", "one map"), every_form=False),
)
QUICK = (Stage(USUAL, ("FPN box training", "one map"), every_form=False),)
EVERYTHING = tuple(Stage(tuple(OPERATIONS), batch=batch, dtype=dtype) for batch in (1, 2) for dtype in DTYPES)


@dataclass(frozen=True)
class Options:
    """Time the RoI operations and write a result file, its tables and its pictures."""

    quick: bool = False
    """RoIAlign and RoIPool on two workloads, in float32 and few rounds: less than a minute on two cores."""
    all: bool = False
    """Every form of every operation on every workload in both dtypes, with one image and with two; give it more --minutes."""
    operations: tuple[str, ...] = ()
    """Of align, pool, align-adaptive, align-max, warp; by default what the plan has, as with the options below."""
    workloads: tuple[str, ...] = ()
    """Of "FPN box training", "FPN mask training", "FPN inference", "C4", "one map"; "tiny" is for tests."""
    forms: tuple[str, ...] = ()
    """Those of mrcnn_jax.ops.roi_forms, "one-hot einsum" and "torchvision", wherever they exist."""
    dtypes: tuple[str, ...] = ()
    """Of float32 and bfloat16."""
    torchvision_python: Path | None = None
    """A Python interpreter that has torch and torchvision."""
    out: Path | None = None
    """The result file; tables and pictures are drawn beside it. By default benchmarks/results/roi_ops_PLATFORM.json for a whole run, and the same
    name under runs/roi_ops for --quick or a selection."""
    minutes: float = 9.0
    """After this time no further group of measurements begins."""
    rounds: int = 7
    """How often each program is timed, at most; 3 times at most with --quick."""
    seconds: float = 0.7
    """Programs are timed fewer times, but at least 3, where all rounds of one would take longer than this."""


# ---------------------------------------------------------------- the plan


def plan(options: Options, torchvision: bool) -> list[Group]:
    """The groups to measure, the more important ones first; InputError for names that do not exist, or if nothing is left of the plan."""
    known_forms = {form for kind in OPERATIONS.values() for form in (*ops.roi_implementations(*kind[:3]), ONE_HOT, TORCHVISION)}
    workloads = WORKLOADS | {TINY.name: TINY}
    for option, known in (("operations", OPERATIONS), ("workloads", workloads), ("forms", sorted(known_forms)), ("dtypes", DTYPES)):
        for name in getattr(options, option):
            if name not in known:
                raise InputError(f"--{option} does not know {name!r}: choose from {', '.join(map(repr, known))}")
    for option in ("minutes", "rounds", "seconds"):
        if getattr(options, option) <= 0:
            raise InputError(f"--{option} must be more than 0, not {getattr(options, option)}")
    groups = {}
    for stage in QUICK if options.quick else EVERYTHING if options.all else PLAN:
        if options.dtypes and stage.dtype not in options.dtypes:
            continue
        for workload in (workloads[name] for name in options.workloads or stage.workloads):
            for name in stage.operations:
                forms = _forms(name, stage.every_form, options.forms, torchvision)
                if forms and (not options.operations or name in options.operations):
                    for direction in (FORWARD, BACKWARD) if workload.training else (FORWARD,):
                        group = Group(workload, stage.batch, stage.dtype, name, direction, forms)
                        groups.setdefault(tuple(group.key.values()), group)  # the first stage that has it decides on the forms
    if not groups:
        raise InputError("Nothing that these options select is in the plan; --all has every combination, and --help says which forms there are")
    return list(groups.values())


def _forms(name: str, every: bool, selected: Sequence[str], torchvision: bool) -> tuple[str, ...]:
    kind = OPERATIONS[name]
    forms = [*ops.roi_implementations(*kind[:3])]
    if name == "align":
        forms.append(ONE_HOT)
    if kind.theirs and torchvision:
        forms.append(TORCHVISION)
    if not every and not selected:
        selected = (default_implementation(kind), TORCHVISION)
    return tuple(form for form in forms if not selected or form in selected)


# ---------------------------------------------------------------- measuring


def torchvision_interpreter(options: Options) -> str | None:
    """A Python that has, or is said to have, torch and torchvision; None if there is none, or nothing to ask it."""
    if jax.default_backend() == "tpu" or (options.forms and TORCHVISION not in options.forms):
        return None
    given = options.torchvision_python or os.environ.get("MRCNN_TORCHVISION_PYTHON")
    own = sys.executable if importlib.util.find_spec("torchvision") else None
    return str(given) if given else own


def ours(group: Group, form: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """A compiled program: its fields of the result file, and a function that runs it and returns the seconds."""
    arguments = make_inputs(group.workload, group.batch, group.dtype)
    arguments = arguments if group.direction == BACKWARD else arguments[:3]
    start = time.perf_counter()
    compiled = jax.jit(program(group, form)).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    fields = {
        "compile_seconds": round(seconds, 3), "temp_bytes": memory.temp_size_in_bytes, "output_bytes": memory.output_size_in_bytes,
        "bytes_accessed": costs.get("bytes accessed"), "flops": costs.get("flops"), "is_default": form == default_implementation(group.kind),
    }  # fmt: skip

    def call() -> float:
        start = time.perf_counter()
        results = jax.block_until_ready(compiled(*arguments))  # named, lest the clock see them freed
        seconds = time.perf_counter() - start
        del results
        return seconds

    return fields, call


def measure(group: Group, side: Side | None, most: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of the result file: every form of a group, warmed up by two calls, then timed in turn, each round beginning with another form."""
    rows, calls, rounds = [], [], []
    for form in group.forms:
        row = group.key | {"form": form, "is_default": False, **bounds(group)}
        rows.append(row)
        try:
            fields, call = torchvision_process.theirs(side, group) if form == TORCHVISION else ours(group, form)
            first = call()
            number = 1 if first > SLOW else int(np.clip(seconds / call(), min(3, most), most))
        except (RuntimeError, ValueError) as error:  # not for this dtype or platform, or out of memory
            row["unavailable"] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            continue
        calls.append((row, fields, call, []))
        rounds.append(number)
    for turn in range(max(rounds, default=0)):
        start = turn % len(calls)
        for index in (*range(start, len(calls)), *range(start)):
            if turn < rounds[index]:
                *_, call, taken = calls[index]
                taken.append(call())
    for row, fields, _, taken in calls:
        row |= fields | {"median_ms": _short(1e3 * np.median(taken)), "min_ms": _short(1e3 * min(taken)), "rounds": len(taken)}
    return rows


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def copy_speed(rounds: int = 5) -> list[float]:
    """Bytes a second, read and written, of copies of a large array."""
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
    """What was measured on, without names of hosts, users or folders."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "/" not in flag]
    return {
        "platform": jax.default_backend(), "device_kind": jax.devices()[0].device_kind, "processor": processor(), "cores": os.cpu_count(),
        "python": platform.python_version(), "jax": jax.__version__, "xla_flags": " ".join(flags), **(side.versions if side else {"torchvision": None}),
    }  # fmt: skip


def run(options: Options, console: Console) -> Path:
    """Measures, and writes the result file again after every group; returns its path."""
    python = torchvision_interpreter(options)
    groups = plan(options, torchvision=python is not None)
    out, begin, place = options.out or default_out(options), time.monotonic(), None
    if not out.match(roi_report.PATTERN):
        raise InputError(f"--out must be named {roi_report.PATTERN}, for the tables are made from files of such names, not {out.name}")
    if python is None and not options.forms:
        console.print("torchvision is not measured: neither --torchvision-python nor MRCNN_TORCHVISION_PYTHON names an interpreter that has it.")
    rounds, seconds = (min(3, options.rounds), 0.5 * options.seconds) if options.quick else (options.rounds, options.seconds)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console, disable=not console.is_terminal)
    with torchvision_process.start(python) if python else nullcontext() as side, bars:
        content = {"machine": machine(side), "command": command_line("python -m benchmarks.roi.measure", options), "copy_gigabytes_per_second": None, "rows": [], "not_measured": []}
        copies = copy_speed()
        task = bars.add_task("", total=len(groups))
        for group in groups:
            if time.monotonic() - begin > 60 * options.minutes:
                content["not_measured"].append(group.key | {"forms": group.forms, "reason": f"{options.minutes:g} minutes were over"})
                continue
            bars.update(task, description=f"{group.workload.name}, {group.batch} x {group.dtype}: {group.name} {group.direction}")
            if place != (group.workload, group.batch, group.dtype):
                place = group.workload, group.batch, group.dtype
                copies += copy_speed()
            content["rows"] += measure(group, side, rounds, seconds)
            write(out, content, copies)
            bars.advance(task)
        write(out, content, copies)
    make_inputs.cache_clear()
    if content["not_measured"]:
        console.print(f"{len(content['not_measured'])} of {len(groups)} groups were not measured: {options.minutes:g} minutes were over.")
    return out


def default_out(options: Options) -> Path:
    """A whole run renews the published results; anything less leaves them alone."""
    whole = not (options.quick or options.operations or options.workloads or options.forms or options.dtypes)
    folder = roi_report.RESULTS if whole else Path("runs/roi_ops")
    # roi_ops_tpu.json is what was compiled for a TPU elsewhere
    return folder / {"tpu": "roi_ops_tpu_measured.json"}.get(jax.default_backend(), f"roi_ops_{jax.default_backend()}.json")


def write(out: Path, content: dict[str, Any], copies: Sequence[float]) -> None:
    """The result file, whole or not at all, with each row's share of the bandwidth of a copy."""
    speed = float(np.median(copies))
    content["copy_gigabytes_per_second"] = _short(speed / 1e9)
    for row in content["rows"]:
        if "median_ms" in row:
            row["share_of_copy"] = _short(row["necessary_bytes"] / (1e-3 * row["median_ms"]) / speed)
    write_json(out, content)


def main(arguments: list[str] | None = None) -> int:
    """The program; returns the exit status."""
    options = tyro.cli(Options, prog="python -m benchmarks.roi.measure", args=arguments)
    console = Console(stderr=True)
    try:
        out = run(options, console)
        roi_report.render(out.parent)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    console.print(f"The figures are in {out}, tables and pictures in {out.parent / roi_report.TABLES}.", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # compile seconds are those of a machine that sees the program for the first time
    sys.exit(main())
