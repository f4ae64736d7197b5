"""python -m experiments.costs [--systems ...]: cost of the systems of the paper's tables at full size on
TPUs, or with --recipes of recipes after the paper.

Compiles each training step for a slice of TPUs, on a machine without one (pip install "jax[tpu]"), and adds
a row to the result file that `python -m experiments.report` renders. Existing rows with the same settings are
kept. Nothing runs on a TPU.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: libtpu only compiles

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tyro
from rich.console import Console

from benchmarks._program import check, versions
from benchmarks.tpu._compile import compile_step
from benchmarks.tpu._estimate import estimate_step, free_bytes, used_bytes
from benchmarks.tpu._programs import GIB, topology
from experiments._results import COSTS, RECIPE_COSTS, settings_of
from experiments.recipes import compiled_recipes
from experiments.rows import all_systems
from experiments.scales import SCALES, experiment_of, fit_to_devices
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.cli.exit_codes import FAILED, OK, exit_status
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.errors import InputError

PROGRAM = "python -m experiments.costs"
SLICES = {8: "v5e:2x4", 32: "v5e:4x8"}
"""TPU slices by their number of chips."""
KEPT = ("topology", "chips", "images_per_chip", "accumulate", "dtype", "effort", "product_flops")


@dataclass(frozen=True)
class Options:
    """Compile the training steps of the paper's tables for TPUs, and estimate their cost."""

    systems: tuple[str, ...] = ()
    """Names of systems, as in the names of their runs, or of recipes; by default all."""
    recipes: bool = False
    """Compile the recipes after the paper, each for as many chips as it had GPUs."""
    topology: str = "v5e:2x4"
    """TPU slice of the systems, with as many chips as the paper had GPUs."""
    effort: float = -1.0
    """Compiler effort: -1 takes a third of the time of a run's 0, for a slower program."""
    out: Path | None = None
    """Result file; by default that of the systems or of the recipes."""


class Program(NamedTuple):
    """A training step to compile."""

    experiment: Experiment
    """Settings that a row is for, of a single device for a system."""
    topology: str
    is_system: bool

    def for_slice(self) -> Experiment:
        """Returns the experiment for the chips of the slice, in bfloat16."""
        experiment = self.experiment
        if self.is_system:
            experiment = fit_to_devices(experiment, len(topology(self.topology)))
        return replace(experiment, train=replace(experiment.train, dtype="bfloat16"))


def programs(options: Options) -> dict[str, Program]:
    """Returns the training steps that can be compiled, by name."""
    if options.recipes:
        recipes = compiled_recipes()
        return {name: Program(recipe, SLICES[chips_of(recipe)], False) for name, recipe in recipes.items()}
    return {
        name: Program(experiment_of(system, SCALES["paper"]), options.topology, True)
        for name, system in all_systems(of_paper=True).items() if not system.evaluates
    }  # fmt: skip


def chips_of(recipe: Experiment) -> int:
    """Returns the number of devices that share the batch of a recipe."""
    return recipe.train.reference_batch // recipe.train.images_per_device


def cost(name: str, program: Program, effort: float) -> dict[str, Any]:
    """Returns a row of the result file; a program that does not fit has the compiler's reason as
    ``unavailable``."""
    experiment = program.for_slice()
    figures = compile_step(experiment, program.topology, effort)
    row = {"system": name} | {key: figures[key] for key in KEPT} | {
        "steps": experiment.train.steps,
        "settings": settings_of(to_dict(program.experiment)),
        "versions": versions("jax", "libtpu"),
    }  # fmt: skip
    if "unavailable" in figures:
        return row | {"unavailable": figures["unavailable"]}
    least = round(estimate_step(figures).least_ms, 2)
    return row | {"used_bytes": used_bytes(figures), "free_bytes": free_bytes(figures), "least_ms": least}


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return {row["system"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no result file of {PROGRAM}: {error}") from error


def run(options: Options, console: Console) -> int:
    """Compiles the systems without a row; returns how many programs were refused."""
    out = options.out or (RECIPE_COSTS if options.recipes else COSTS)
    check(replace(options, out=out), effort=-1)
    known = programs(options)
    if unknown := set(options.systems) - known.keys():
        raise InputError(f"--systems has {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    refused, names = 0, options.systems or tuple(known)
    for number, name in enumerate(names, start=1):
        program, old = known[name], _rows(out).get(name)
        settings = settings_of(to_dict(program.experiment))
        if old and (old["topology"], settings_of(old["settings"])) == (program.topology, settings):
            continue
        row = cost(name, program, options.effort)
        jax.clear_caches()  # each program would keep hundreds of MiB
        rows = _rows(out) | {name: row}  # read again: another process may have added some
        write_json(out, {"rows": [rows[each] for each in known if each in rows]})
        refused += "unavailable" in row
        text = row.get("unavailable") or _describe(row)
        console.print(f"{number} of {len(names)}: {name}: {text}", highlight=False, soft_wrap=True)
    return refused


def _describe(row: dict[str, Any]) -> str:
    used, free = row["used_bytes"] / GIB, row["free_bytes"] / GIB
    return f"{used:.2f} GiB per chip, {free:.2f} free; at least {row['least_ms']:.1f} ms per step"


def main(arguments: list[str] | None = None) -> int:
    """Compiles; returns the exit status, 1 if a program was refused."""
    options = tyro.cli(Options, prog=PROGRAM, args=arguments)
    try:
        return FAILED if run(options, Console()) else OK
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return exit_status(error)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # so that compile times are measured
    sys.exit(main())
