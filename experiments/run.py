"""python -m experiments.run TABLE [--scale SCALE] [--rows ...] [--seeds N]: trains and scores the rows of a
table.

A row whose result file exists, with the same settings, is skipped; an interrupted run is resumed.
`python -m experiments.report` renders the results.
"""

import gc
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro
from rich.console import Console

from experiments._results import TABLES_FOLDER, has_result, load_rows, result_file
from experiments._tables_page import agreement, shown_scales
from experiments.export_result import result_of
from experiments.rows import TABLES
from experiments.scales import SCALES, experiment_of, fit_to_devices
from experiments.systems import RECIPE, System
from mrcnn_jax import distributed
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.cli import exit_codes
from mrcnn_jax.cli.exit_codes import exit_status
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.data.catalog import open_split
from mrcnn_jax.errors import InputError, Interrupted, TrainingError
from mrcnn_jax.inference.detector import load
from mrcnn_jax.inference.evaluate import evaluate_split
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


class Job(NamedTuple):
    """A run of a system."""

    row: str
    """Row that it is for."""
    system: System
    seed: int
    experiment: Experiment
    """Experiment for a single device."""
    directory: Path
    file: Path
    """Result file."""

    @property
    def is_done(self) -> bool:
        """Returns whether a result with the same settings exists."""
        return has_result(self.file, self.experiment)


def requested_jobs(options: Options) -> list[Job]:
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


def _job(options: Options, row: str, system: System, seed: int) -> Job:
    folder = options.directory / options.scale
    runs = {other.name: str(folder / f"{other.name}_{seed}") for other in system.prerequisites()}
    experiment = experiment_of(system, SCALES[options.scale], seed, runs)
    if options.backbones and not experiment.train.init_from:
        backbone = experiment.model.backbone
        name = backbone.name.replace("resnet", "resnext") if backbone.groups > 1 else backbone.name
        train = replace(experiment.train, init_from=str(options.backbones / name))
        experiment = replace(experiment, train=train)
    file = result_file(options.scale, system.name, seed, options.results)
    return Job(row, system, seed, experiment, folder / f"{system.name}_{seed}", file)


def pending_jobs(options: Options, requested: list[Job]) -> list[Job]:
    """Returns the requested jobs without a result, each after its prerequisites."""
    found: dict[Path, Job] = {}
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
    pending, failures, failed = pending_jobs(options, requested), [], set()
    for job in requested:
        state = f"result in {job.file}" if job.is_done else "to be run"
        text = f"{options.table}, {job.row}, seed {job.seed}: {state}"
        console.print(text, highlight=False, soft_wrap=True)
    for number, job in enumerate([] if options.plan else pending, start=1):
        console.rule(f"{number} of {len(pending)}: {job.system.name}, seed {job.seed}, for {job.row}")
        try:
            for other in job.system.prerequisites():
                if (other.name, job.seed) in failed:
                    raise TrainingError(f"{other.name}, which must be trained before, failed")
            start, is_new = time.monotonic(), not job.directory.exists()
            if job.system.evaluates:
                evaluate_trained(job, job.directory.with_name(f"{job.system.evaluates.name}_{job.seed}"))
            else:
                train(fit_to_devices(job.experiment, jax.device_count()), job.directory, console)
        except TrainingError as error:  # rows that do not need this run continue
            failed.add((job.system.name, job.seed))
            failures.append(f"{job.system.name}, seed {job.seed}: {error}")
            console.print(failures[-1], style="red", highlight=False, soft_wrap=True)
            continue
        if distributed.is_primary() and not job.is_done:  # a mere prerequisite keeps the result it has
            seconds = round(time.monotonic() - start) if is_new else None
            write_json(job.file, result_of_job(options, job, seconds))
        jax.clear_caches()  # other rows have other programs
        gc.collect()
    return failures


def evaluate_trained(job: Job, trained: Path) -> None:
    """Evaluates a finished run with a job's test-time augmentation; writes the files of a run."""
    views = {name: getattr(job.experiment.evaluation, name) for name in ("tta_scales", "tta_flip")}
    detector = load(trained).with_settings(**views)
    data = detector.experiment.data
    metrics = evaluate_split(detector, open_split(data, data.validation_split)).metrics
    if distributed.is_primary():
        job.directory.mkdir(parents=True, exist_ok=True)
        shutil.copy(trained / "history.jsonl", job.directory)
        experiment = replace(detector.experiment, name=job.experiment.name)
        write_json(job.directory / "experiment.json", to_dict(experiment))
        write_json(job.directory / "metrics.json", metrics)


def result_of_job(options: Options, job: Job, seconds: int | None) -> dict[str, Any]:
    """Returns the content of a job's result file.

    Args:
        options: of this program.
        job: a finished one.
        seconds: its time with compilation and evaluation; None for a resumed run.
    """
    seeds = f" --seeds {options.seeds}" if options.seeds > 1 else ""
    command = f"{PROGRAM} {options.table} --scale {options.scale}{seeds}"
    content = {"system": job.system.name, "scale": options.scale, "seed": job.seed, "recipe": RECIPE}
    content |= {} if seconds is None else {"seconds": seconds}
    content |= result_of(job.directory, command) | {"experiment_of_one_device": to_dict(job.experiment)}
    for experiment in (content["config"], content["experiment_of_one_device"]):
        train, rpn = experiment["train"], experiment["model"]["rpn"]
        train["init_from"] = Path(train["init_from"]).name  # the folder is of no use elsewhere
        rpn["proposals_from"] = Path(rpn["proposals_from"]).name
    return content


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
        return exit_status(error)
    return exit_codes.FAILED if failures else 0


if __name__ == "__main__":
    sys.exit(main())
