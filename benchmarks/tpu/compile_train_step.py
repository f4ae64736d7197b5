"""python -m benchmarks.tpu.compile_train_step --topology v5e:16x16 --experiment mask_rcnn_r50_fpn
[--train.FIELD ...]

Compiles the whole training step (data shapes, losses, optimizer and all-reduce) for every chip of a TPU
slice, on a machine without a TPU (pip install "jax[tpu]"), and prints what a chip needs: HBM, FLOPs, traffic
between chips, and estimates of its speed. Nothing is allocated and nothing runs. Fields of the experiment are
changed as in `mrcnn train`. Exit status: 0 if it fits, 1 if not, 2 for invalid input.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: libtpu only compiles

import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import tyro
from flax.traverse_util import flatten_dict

from benchmarks.tpu._compile import compile_step
from benchmarks.tpu._estimate import assumptions
from benchmarks.tpu._programs import topology
from benchmarks.tpu._rows import COLUMNS, cells, program_of, read_rows
from mrcnn_jax import presets
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.cli.exit_codes import FAILED, OK, exit_status
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.errors import InputError

PROGRAM = "python -m benchmarks.tpu.compile_train_step"
ADVICE = (
    "use a smaller --train.images-per-device, --train.remat, or a larger --train.accumulate, which processes "
    "the images in parts"
)


@dataclass(frozen=True)
class Options:
    """Slices, compiler effort and result file."""

    experiment: str = "mask_rcnn_r50_fpn"
    """Name of a preset; `mrcnn train` lists them, `mrcnn train NAME --help` the fields."""
    topology: tuple[str, ...] = ("v5e:16x16",)
    """TPU slices: v4, v5e, v5p or v6e and the sides of the slice, such as v5e:2x4, v4:2x2x2, v5p:4x8x8."""
    effort: float = 0.0
    """Compiler effort, from -1 to 0. 0 compiles the program of a run; -1 takes a third of the time, for a
    much slower program that needs about as much memory: use 0 where little memory is left."""
    out: Path | None = None
    """JSON file for the figures, written after every slice; rows of other programs in it are kept."""


def parse(arguments: list[str] | None) -> tuple[Options, Experiment, dict[str, Any]]:
    """Returns options, the experiment, and the fields that were given, with their values."""
    description = __doc__.partition("\n\n")[2]
    options, fields = tyro.cli(
        Options, prog=PROGRAM, description=description, args=arguments, return_unknown_args=True
    )
    base = presets.get(options.experiment)
    base = replace(base, train=replace(base.train, dtype="bfloat16"))
    experiment = tyro.cli(Experiment, prog=PROGRAM, default=base, args=fields)
    before, after = (flatten_dict(to_dict(each), sep=".") for each in (base, experiment))
    changes = {name: value for name, value in after.items() if before.get(name, ...) != value}
    return options, experiment, changes


def run(options: Options, experiment: Experiment, changes: dict[str, Any]) -> int:
    """Compiles for every slice, prints and writes; returns the exit status."""
    if not -1 <= options.effort <= 0:
        raise InputError(f"--effort is {options.effort:g}, but must be between -1 and 0")
    for name in options.topology:  # invalid ones are refused before anything is compiled
        topology(name)
    rows, status = read_rows(options.out) if options.out else [], OK
    for name in options.topology:
        row = compile_step(experiment, name, options.effort)
        row |= {"changes": changes, "jax": jax.__version__, "libtpu": version("libtpu")}
        key = program_of(row), row["effort"]
        for old in rows:  # the parts of the first compilation are kept
            if (program_of(old), old["effort"]) == key and (before := old.get("before", old.get("parts"))):
                row["before"] = before
        rows = [old for old in rows if (program_of(old), old["effort"]) != key] + [row]
        if options.out:
            write_json(options.out, {"rows": rows})
        if "unavailable" in row:
            status, reason = FAILED, row["unavailable"]
            reason += f"; {ADVICE}" if "memory" in reason else ""
            print(f"{experiment.name} does not compile for {name}: {reason}", file=sys.stderr)
        else:
            print(*map("{:<23}  {}".format, COLUMNS, cells(row)), sep="\n", end="\n\n", flush=True)
    if status == OK:
        print(assumptions(), end="")
    return status


def main(arguments: list[str] | None = None) -> int:
    """Compiles; returns the exit status."""
    try:
        return run(*parse(arguments))
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return exit_status(error)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # so that compile times are measured
    sys.exit(main())
