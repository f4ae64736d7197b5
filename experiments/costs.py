"""python -m experiments.costs [--systems ...]: what the systems of the paper's tables cost at full size.

Compiles the whole train step of each for the eight chips of a slice of TPUs, on a machine without one (pip install "jax[tpu]"), as benchmarks.tpu.compile_train_step does, and
adds a row to a result file, which `python -m experiments.report` renders. Rows that are there, of the same settings, are left alone. Nothing runs on a TPU.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: libtpu shall compile, not look for a TPU

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console

from benchmarks._program import check, versions
from benchmarks.tpu._estimate import chip_of, estimate_step, used_bytes
from benchmarks.tpu._programs import GIB, topology
from benchmarks.tpu.compile_train_step import compile_step
from experiments.results_io import COSTS, settings_of
from experiments.rows import systems
from experiments.scales import SCALES, experiment_of, fit_to_devices
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.cli.exit_codes import exit_status
from mrcnn_jax.config import to_dict
from mrcnn_jax.errors import InputError

PROGRAM = "python -m experiments.costs"


@dataclass(frozen=True)
class Options:
    """Compile the train steps of the paper's tables for TPUs, and say what they cost."""

    systems: tuple[str, ...] = ()
    """Names of systems, as in the names of their runs; by default all."""
    topology: str = "v5e:2x4"
    """The slice, with as many chips as the paper had GPUs."""
    effort: float = -1.0
    """Of the compiler: -1 takes a third of the time of a run's 0, and gives the memory of a slower program."""
    out: Path = COSTS
    """The result file."""


def cost(system: str, options: Options) -> dict[str, Any]:
    """A row: what a step needs of a chip, and how many there are. A program that does not fit has the compiler's reason as ``unavailable``."""
    one = _at_full_size(system)
    experiment = fit_to_devices(one, len(topology(options.topology)))
    figures, _ = compile_step(replace(experiment, train=replace(experiment.train, dtype="bfloat16")), options.topology, options.effort)
    kept = {name: figures[name] for name in ("topology", "chips", "images_per_chip", "accumulate", "dtype", "effort", "product_flops")}
    row = {"system": system} | kept | {"steps": experiment.train.steps, "settings": settings_of(to_dict(one)), "versions": versions("jax", "libtpu")}
    if "unavailable" in figures:
        return row | {"unavailable": figures["unavailable"]}
    used = used_bytes(figures)
    return row | {"used_bytes": used, "free_bytes": int(chip_of(figures).available - used), "least_ms": round(estimate_step(figures).least_ms, 2)}


def _at_full_size(system):
    return experiment_of(systems()[system], SCALES["paper"])


def _rows(path):
    try:
        return {row["system"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no result file of {PROGRAM}: {error}") from error


def run(options: Options, console: Console) -> int:
    """Compiles what there is no row of; returns how many programs were refused."""
    check(options, effort=-1)
    if unknown := set(options.systems) - systems().keys():
        raise InputError(f"--systems has {', '.join(sorted(unknown))}; choose from {', '.join(systems())}")
    refused, wanted = 0, options.systems or tuple(systems())
    for number, name in enumerate(wanted, start=1):
        there = _rows(options.out).get(name)
        if there and (there["topology"], there["settings"]) == (options.topology, settings_of(to_dict(_at_full_size(name)))):
            continue
        row = cost(name, options)
        jax.clear_caches()  # each program would keep some hundred MiB, or more than 1 GiB
        rows = _rows(options.out) | {name: row}  # read again: another process may have added some
        write_json(options.out, {"rows": [rows[system] for system in systems() if system in rows]})
        refused += "unavailable" in row
        said = row.get("unavailable") or f"{row['used_bytes'] / GIB:.2f} GiB of a chip, {row['free_bytes'] / GIB:.2f} free; at least {row['least_ms']:.1f} ms a step"
        console.print(f"{number} of {len(wanted)}: {name}: {said}", highlight=False, soft_wrap=True)
    return refused


def main(arguments: list[str] | None = None) -> int:
    """The program; returns the exit status."""
    try:
        return 1 if run(tyro.cli(Options, prog=PROGRAM, args=arguments, description=__doc__.partition("\n")[2].strip()), Console()) else 0
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return exit_status(error)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # compile seconds are those of a machine that sees the program for the first time
    sys.exit(main())
