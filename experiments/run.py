"""python -m experiments.run TABLE [--scale SCALE] [--rows ...] [--seeds N]: the rows of a table of the paper, trained and scored.

A row whose result is in experiments/results/tables already, with the same settings, is skipped; what was cut short goes on where it was.
`python -m experiments.report` makes a page of what there is.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")  # as the command line does

import gc
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax
import tyro
from rich.console import Console

from experiments.export_result import result
from experiments.page import agreement, results_of
from experiments.results_io import FOLDER, result_file, same_settings
from experiments.rows import TABLES, System
from experiments.scales import SCALES, experiment_of, fit_to_devices
from mrcnn_jax import distributed
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.cli import exit_codes
from mrcnn_jax.cli.exit_codes import exit_status
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.errors import InputError, Interrupted, TrainingError
from mrcnn_jax.training.loop import train

PROGRAM = "python -m experiments.run"


@dataclass(frozen=True)
class Options:
    """Train and score the rows of a table of the paper."""

    table: Annotated[Literal[tuple(TABLES)], tyro.conf.Positional]
    scale: Literal[tuple(SCALES)] = "shapes"
    """paper: as in the paper, for accelerators; the others are small enough for two CPU cores, and shapes and shapes-long need no data."""
    rows: tuple[str, ...] = ()
    """Names of rows, as in the paper; by default all that can be run."""
    seeds: int = 1
    """Runs of each row: of seeds 0, 1, ..."""
    directory: Path = Path("runs/tables")
    """Where the runs are kept, in a folder for the scale."""
    results: Path = FOLDER
    """Where their results are written."""
    plan: bool = False
    """Only say what there is and what would be run."""


class Job(NamedTuple):
    """A run of a system."""

    row: str  # that it is for
    system: System
    seed: int
    experiment: Experiment  # as one device would train it
    directory: Path
    file: Path  # of its result

    @property
    def is_done(self) -> bool:
        return self.file.exists() and same_settings(json.loads(self.file.read_text()), self.experiment)


def jobs(options: Options) -> list[Job]:
    """A run for each row and seed, all rows of a seed before those of the next. InputError for rows that there are not, or that cannot be run."""
    table, systems = TABLES[options.table], TABLES[options.table].systems()
    rows = {row.name: row for row in table.rows}
    for name in options.rows:
        if name not in systems:
            why = f"is only reported ({rows[name].note})" if name in rows else "does not exist"
            raise InputError(f"row {name!r} of {table.key} {why}; choose from {', '.join(map(repr, systems))}")
    if options.seeds < 1:
        raise InputError(f"--seeds is {options.seeds}, but must be 1 or more")
    return [_job(options, row, systems[row], seed) for seed in range(options.seeds) for row in options.rows or systems]


def _job(options, row, system, seed):
    folder = options.directory / options.scale
    runs = {other.name: str(folder / f"{other.name}_{seed}") for other in system.needs()}
    experiment = experiment_of(system, SCALES[options.scale], seed, runs)
    return Job(row, system, seed, experiment, folder / f"{system.name}_{seed}", result_file(options.scale, system.name, seed, options.results))


def to_do(options: Options, wanted: list[Job]) -> list[Job]:
    """Those of the wanted runs that have no result yet, each after the runs that it needs."""
    found: dict[Path, Job] = {}
    for job in wanted:
        if not job.is_done:
            for system in job.system.needs():
                needed = _job(options, job.row, system, job.seed)
                found.setdefault(needed.directory, needed)
            found.setdefault(job.directory, job)
    return list(found.values())


def run(options: Options, console: Console) -> list[str]:
    """Runs what there is to do; returns a sentence for each run that failed."""
    wanted = jobs(options)
    todo, failures, failed = to_do(options, wanted), [], set()
    for job in wanted:
        console.print(f"{options.table}, {job.row}, seed {job.seed}: {'is in ' + str(job.file) if job.is_done else 'to be run'}", highlight=False, soft_wrap=True)
    for number, job in enumerate([] if options.plan else todo, start=1):
        console.rule(f"{number} of {len(todo)}: {job.system.name}, seed {job.seed}, for {options.table}, {job.row}")
        try:
            if missing := [other.name for other in job.system.needs() if (other.name, job.seed) in failed]:
                raise TrainingError(f"it needs {missing[0]}, which failed")
            begun, anew = time.monotonic(), not job.directory.exists()
            train(fit_to_devices(job.experiment, jax.device_count()), job.directory, console)
        except TrainingError as error:  # the rows that do not need it go on
            failed.add((job.system.name, job.seed))
            failures.append(f"{job.system.name}, seed {job.seed}: {error}")
            console.print(failures[-1], style="red", highlight=False, soft_wrap=True)
            continue
        if distributed.is_primary() and not job.is_done:  # what only had to be there for another run keeps its result
            command = f"{PROGRAM} {options.table} --scale {options.scale}" + (f" --seeds {options.seeds}" if options.seeds > 1 else "")
            about = {"system": job.system.name, "scale": options.scale, "seed": job.seed, "recipe": job.system.recipe}
            if anew:  # with compiling and scoring
                about["seconds"] = round(time.monotonic() - begun)
            content = about | result(job.directory, command) | {"experiment_of_one_device": to_dict(job.experiment)}
            for experiment in (content["config"], content["experiment_of_one_device"]):  # where a machine keeps its runs is of no use elsewhere
                experiment["train"]["init_from"] = Path(experiment["train"]["init_from"]).name
                experiment["model"]["rpn"]["proposals_from"] = Path(experiment["model"]["rpn"]["proposals_from"]).name
            write_json(job.file, content)
        jax.clear_caches()  # nothing of one row is of use to the next
        gc.collect()
    return failures


def say(options: Options, console: Console) -> None:
    """What the results say by now, and how a page of them is made."""
    if found := results_of(TABLES[options.table], SCALES[options.scale], options.results):
        where = "" if options.results == FOLDER else f" --results {options.results}"
        console.print(f"{options.table}: {agreement(TABLES[options.table], found)}", highlight=False, soft_wrap=True)
        console.print(f"python -m experiments.report{where} makes a page of them.", highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """The program; returns the exit status."""
    options, console = tyro.cli(Options, prog=PROGRAM, args=arguments), Console()
    try:
        distributed.initialize()
        console = console if distributed.is_primary() else Console(quiet=True)
        failures = run(options, console)
        say(options, console)
    except (InputError, Interrupted) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return exit_status(error)
    return exit_codes.FAILED if failures else 0


if __name__ == "__main__":
    sys.exit(main())
