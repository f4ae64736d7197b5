"""python -m experiments.run TABLE [--scale SCALE] [--rows ...] [--seeds N]: trains and scores the rows of a
table.

A row whose result file exists, with the same settings, is skipped; an interrupted run is resumed.
`python -m experiments.report` renders the results.
"""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from rich.console import Console

from experiments._jobs import Job, evaluate_as_run, result_content, run_jobs
from experiments._results import TABLES_FOLDER, load_rows, result_file
from experiments._tables_page import agreement, shown_scales
from experiments.rows import TABLES
from experiments.scales import SCALES, experiment_of, fit_to_devices
from experiments.systems import RECIPE, System
from mrcnn_jax import distributed
from mrcnn_jax.cli import exit_codes
from mrcnn_jax.errors import InputError, Interrupted, TrainingError
from mrcnn_jax.inference.detector import load
from mrcnn_jax.training.loop import train

PROGRAM = "python -m experiments.run"


@dataclass(frozen=True)
class Options:
    """Train and score the rows of a table of the paper."""

    table: Annotated[Literal[tuple(TABLES)], tyro.conf.Positional]
    """Table of the paper."""
    scale: Literal[tuple(SCALES)] = "shapes"
    """Scale: paper is for accelerators, the others for two CPU cores; shapes and shapes-long need no data."""
    rows: tuple[str, ...] = ()
    """Names of rows, as in the paper; by default all that can be trained."""
    seeds: int = 1
    """Runs per row, with seeds 0, 1, ..."""
    directory: Path = Path("runs/tables")
    """Folder of the runs, which are kept in a subfolder named by the scale."""
    results: Path = TABLES_FOLDER
    """Folder of the result files."""
    backbones: Path | None = None
    """Folder of imported ImageNet backbones (resnet50, resnet101, resnext101, resnet152) to start from."""
    plan: bool = False
    """Only list which results exist and which runs would be started."""


@dataclass(frozen=True)
class SystemJob(Job):
    """A run of a system."""

    system: System
    seed: int

    @property
    def title(self) -> str:
        """Name in messages."""
        return f"{self.system.name}, seed {self.seed}"


def requested_jobs(options: Options) -> list[SystemJob]:
    """Returns a job for each row and seed, seed by seed; InputError for rows that cannot be trained."""
    table, systems = TABLES[options.table], TABLES[options.table].systems()
    rows = {row.name: row for row in table.rows}
    for name in options.rows:
        if name not in systems:
            reason = f"is quoted from the paper ({rows[name].note})" if name in rows else "does not exist"
            choices = ", ".join(map(repr, systems))
            raise InputError(f"row {name!r} of {table.key} {reason}; choose from {choices}")
    if options.seeds < 1:
        raise InputError(f"--seeds is {options.seeds}, but must be 1 or more")
    seeds, names = range(options.seeds), options.rows or systems
    return [_job(options, row, systems[row], seed) for seed in seeds for row in names]


def _job(options: Options, row: str, system: System, seed: int) -> SystemJob:
    folder = options.directory / options.scale
    runs = {other.name: str(folder / f"{other.name}_{seed}") for other in system.prerequisites()}
    experiment = experiment_of(system, SCALES[options.scale], seed, runs)
    if options.backbones and not experiment.train.init_from:
        backbone = experiment.model.backbone
        name = backbone.name.replace("resnet", "resnext") if backbone.groups > 1 else backbone.name
        train = replace(experiment.train, init_from=str(options.backbones / name))
        experiment = replace(experiment, train=train)
    file = result_file(options.scale, system.name, seed, options.results)
    return SystemJob(row, experiment, folder / f"{system.name}_{seed}", file, system, seed)


def pending_jobs(options: Options, requested: list[SystemJob]) -> list[SystemJob]:
    """Returns the requested jobs without a result, each after its prerequisites."""
    found: dict[Path, SystemJob] = {}
    for job in requested:
        if not job.is_done:
            for system in job.system.prerequisites():
                prerequisite = _job(options, job.row, system, job.seed)
                found.setdefault(prerequisite.directory, prerequisite)
            found.setdefault(job.directory, job)
    return list(found.values())


def run(options: Options, console: Console) -> list[str]:
    """Runs the pending jobs; returns a message for each that failed."""
    requested = requested_jobs(options)
    pending, finished = pending_jobs(options, requested), set()
    for job in requested:
        state = f"result in {job.file}" if job.is_done else "to be run"
        text = f"{options.table}, {job.row}, seed {job.seed}: {state}"
        console.print(text, highlight=False, soft_wrap=True)

    def execute(job: SystemJob) -> None:
        for other in job.system.prerequisites():
            if (other.name, job.seed) not in finished:
                raise TrainingError(f"{other.name}, which must be trained before, failed")
        if job.system.evaluates:
            evaluate_trained(job, job.directory.with_name(f"{job.system.evaluates.name}_{job.seed}"))
        else:
            train(fit_to_devices(job.experiment, jax.device_count()), job.directory, console)
        finished.add((job.system.name, job.seed))

    return run_jobs([] if options.plan else pending, execute, partial(result_of_job, options), console)


def evaluate_trained(job: SystemJob, trained: Path) -> None:
    """Evaluates a finished run with a job's test-time augmentation; writes the files of a run."""
    views = {name: getattr(job.experiment.evaluation, name) for name in ("tta_scales", "tta_flip")}
    detector = load(trained).with_settings(**views)
    detector.experiment = replace(detector.experiment, name=job.experiment.name)
    evaluate_as_run(detector, trained, job.directory)


def result_of_job(options: Options, job: SystemJob, seconds: int | None) -> dict[str, Any]:
    """Returns the content of a job's result file.

    Args:
        options: of this program.
        job: a finished one.
        seconds: its time with compilation and evaluation; None for a resumed run.
    """
    seeds = f" --seeds {options.seeds}" if options.seeds > 1 else ""
    command = f"{PROGRAM} {options.table} --scale {options.scale}{seeds}"
    origin = {"system": job.system.name, "scale": options.scale, "seed": job.seed, "recipe": RECIPE}
    return result_content(job, origin, seconds, command)


def summarise(options: Options, console: Console) -> None:
    """Prints how the results so far compare with the paper, and how to render them."""
    table, scale = TABLES[options.table], SCALES[options.scale]
    folder = "" if options.results == TABLES_FOLDER else f" --results {options.results}"
    if scale in shown_scales(table, options.results):
        text = agreement(table, load_rows(table, scale.name, options.results))
        console.print(f"{options.table}: {text}.", highlight=False, soft_wrap=True)
        console.print(f"Render them: python -m experiments.report{folder}", highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the rows; returns the exit status."""
    options, console = tyro.cli(Options, prog=PROGRAM, args=arguments), Console()
    try:
        distributed.initialize()
        console = console if distributed.is_primary() else Console(quiet=True)
        failures = run(options, console)
        summarise(options, console)
    except (InputError, Interrupted) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return exit_codes.exit_status(error)
    return exit_codes.FAILED if failures else exit_codes.OK


if __name__ == "__main__":
    sys.exit(main())
