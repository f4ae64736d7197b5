"""Runs of a series of experiments, each with a result file."""

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
from rich.console import Console

from experiments._results import has_result
from experiments.export_result import result_of
from mrcnn_jax import distributed
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.data.catalog import open_split
from mrcnn_jax.errors import TrainingError
from mrcnn_jax.inference.detector import Detector
from mrcnn_jax.inference.evaluate import evaluate_split


@dataclass(frozen=True)
class Job:
    """A run of an experiment."""

    row: str
    """Row that it is for."""
    experiment: Experiment
    """Experiment for a single device."""
    directory: Path
    file: Path
    """Result file."""

    @property
    def title(self) -> str:
        """Name in messages."""
        return self.row

    @property
    def is_done(self) -> bool:
        """Returns whether a result with the same settings exists."""
        return has_result(self.file, self.experiment)


AnyJob = TypeVar("AnyJob", bound=Job)


def run_jobs(
    jobs: Sequence[AnyJob], execute: Callable[[AnyJob], None],
    result: Callable[[AnyJob, int | None], dict[str, Any]], console: Console,
) -> list[str]:  # fmt: skip
    """Runs jobs and writes their result files; the others go ahead if one fails.

    Args:
        jobs: in their order.
        execute: trains or evaluates, and writes the files of a run; TrainingError is a failure of the job.
        result: makes the content of a result file from the job and its seconds, which are None for a resumed
            run.
        console: shows progress and failures.

    Returns:
        A message for each job that failed.
    """
    failures = []
    for number, job in enumerate(jobs, start=1):
        console.rule(f"{number} of {len(jobs)}: {job.title}")
        start, is_new = time.monotonic(), not job.directory.exists()
        try:
            execute(job)
        except TrainingError as error:  # rows that do not need this run continue
            failures.append(f"{job.title}: {error}")
            console.print(failures[-1], style="red", highlight=False, soft_wrap=True)
            continue
        if distributed.is_primary() and not job.is_done:  # a mere prerequisite keeps the result it has
            write_json(job.file, result(job, round(time.monotonic() - start) if is_new else None))
        jax.clear_caches()  # other rows have other programs
        gc.collect()
    return failures


def evaluate_as_run(detector: Detector, trained: Path, directory: Path) -> None:
    """Evaluates a detector that was made from a finished run, and writes the files of a run of its own.

    Args:
        detector: its experiment becomes that of the files.
        trained: directory of the finished run, whose losses are copied; its evaluations are not.
        directory: of the files.
    """
    data = detector.experiment.data
    metrics = evaluate_split(detector, open_split(data, data.validation_split)).metrics
    if distributed.is_primary():
        directory.mkdir(parents=True, exist_ok=True)
        lines = (trained / "history.jsonl").read_text().splitlines(keepends=True)
        losses = "".join(line for line in lines if "loss" in json.loads(line))
        (directory / "history.jsonl").write_text(losses)
        write_json(directory / "experiment.json", to_dict(detector.experiment))
        write_json(directory / "metrics.json", metrics)


def result_content(job: Job, origin: Mapping[str, Any], seconds: int | None, command: str) -> dict[str, Any]:
    """Returns the content of a result file.

    Args:
        job: a finished one.
        origin: the first keys, of what was run.
        seconds: time of the run with compilation and evaluation; None if it is not known.
        command: that made the run.
    """
    content = {**origin} | ({} if seconds is None else {"seconds": seconds})
    content |= result_of(job.directory, command) | {"experiment_of_one_device": to_dict(job.experiment)}
    for experiment in (content["config"], content["experiment_of_one_device"]):
        train, rpn = experiment["train"], experiment["model"]["rpn"]
        train["init_from"] = Path(train["init_from"]).name  # the folder is of no use elsewhere
        rpn["proposals_from"] = Path(rpn["proposals_from"]).name
    return content
