"""python -m experiments.evidence TASK [--rows ...]: small sets of real photos, without one ingredient each.

Every run is the preset `finetune`, ResNet-50-FPN at full width, on images and heads that two CPU cores can
train. A row whose result file exists, with the same settings, is skipped; an interrupted run is resumed.
`python -m experiments.report` renders the results.
"""

import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro
from rich.console import Console

from experiments._jobs import Job, evaluate_as_run, result_content, run_jobs
from experiments._results import EVIDENCE
from mrcnn_jax import presets
from mrcnn_jax.checkpoint import CheckpointStore
from mrcnn_jax.cli import exit_codes
from mrcnn_jax.config import AUGMENTATIONS, Experiment, to_dict, with_changes
from mrcnn_jax.errors import InputError, Interrupted
from mrcnn_jax.inference.detector import Detector
from mrcnn_jax.training.loop import train

PROGRAM = "python -m experiments.evidence"
COMMON = {
    "model.backbone.freeze_stages": 3,
    "model.rpn.anchor_sizes": (16.0, 32.0, 64.0, 128.0, 256.0),
    "model.rpn.pre_nms_train": 400, "model.rpn.post_nms_train": 400,
    "model.rpn.pre_nms_test": 400, "model.rpn.post_nms_test": 300,
    "model.roi.samples_per_image": 64, "model.roi.canonical_size": 96.0, "model.box.max_candidates": 600,
    "model.mask.channels": 128, "model.keypoint.layers": 4, "model.keypoint.channels": 128,
    "data.short_edge": (256,), "data.short_edge_test": 256, "data.long_edge": 352,
    "data.max_objects": 64, "data.mask_size": 56, "data.threads": 2,
    "train.images_per_device": 2, "train.warmup_steps": 40, "train.log_every": 10,
    "train.checkpoint_every": 50, "train.checkpoint_minutes": 0.0, "evaluation.pictures": 8,
}  # fmt: skip
"""Images of at most 256 x 352 pixels, and what follows from their size; heads with fewer channels."""


class Task(NamedTuple):
    """A data set, what is learned from it, and for how long."""

    title: str
    changes: Mapping[str, Any]


def _task(title: str, dataset: str, steps: int, **changes: Any) -> Task:
    schedule = {"train.steps": steps, "train.evaluate_every": steps // 2}
    return Task(title, {"data.dataset": f"data/{dataset}"} | schedule | changes)


TASKS = {
    "people": _task("130 photos of people in COCO, 60 for validation: boxes, masks and keypoints",
                    "coco_person", 1200, **{"model.tasks": ("boxes", "masks", "keypoints")}),
    "coco": _task("175 photos of COCO, 143 for validation: 80 classes", "coco_instances", 400),
    "fruits": _task("15 photos of fruits and nuts, 3 for validation: 3 classes", "fruits", 300),
    "nuclei": _task(
        "504 microscopy images, 80 for validation: nuclei", "nuclei", 400,
        **{"model.rpn.anchor_sizes": (8.0, 16.0, 32.0, 64.0, 128.0), "data.max_objects": 256,
           "model.box.max_detections": 400, "evaluation.max_detections": (1, 100, 400),
           "data.augment": to_dict(AUGMENTATIONS["microscopy"])},
    ),
}  # fmt: skip
WITHOUT_AVERAGE = "no moving average"
"""Row that shares the training of "all": the average is kept beside the parameters and changes none."""
ROWS: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    "from scratch": {
        "model.backbone.norm": "group", "model.backbone.pyramid_norm": "group",
        "model.backbone.freeze_stages": 0, "train.layer_decay": 1.0, "train.init_from": "",
        "train.learning_rate": 0.004,
    },
    "no augmentation": {"data.augment": to_dict(AUGMENTATIONS["none"])},
    WITHOUT_AVERAGE: {"train.ema_decay": 0.0},
    "step decay": {"train.schedule": "step"},
}  # fmt: skip
"""Ingredients that a row does without. Without pretrained weights group norm takes the place of frozen batch
norm, and all stages are trained, at the rate of the other presets for small machines."""
DECAYS = 0.7, 0.9
"""Fractions of the steps after which step decay divides the learning rate by 10."""


@dataclass(frozen=True)
class Options:
    """Train small sets of real photos from a pretrained backbone, and without each ingredient."""

    task: Annotated[Literal[tuple(TASKS)], tyro.conf.Positional]
    """Data set, and what is learned from it."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Ingredients that are removed; "all" removes none."""
    backbone: str = "weights/resnet50"
    """Directory of imported ResNet-50 weights that have seen ImageNet."""
    directory: Path = Path("runs/evidence")
    """Folder of the runs."""
    results: Path = EVIDENCE
    """Folder of the result files."""
    plan: bool = False
    """Only list which results exist and which runs would be started."""


def experiment_of(task: str, row: str, backbone: str = "weights/resnet50") -> Experiment:
    """Returns the experiment of a row of a task."""
    changes = COMMON | {"train.init_from": backbone} | dict(TASKS[task].changes) | dict(ROWS[row])
    steps = changes["train.steps"]
    changes["train.decay_steps"] = tuple(round(fraction * steps) for fraction in DECAYS)
    return replace(with_changes(presets.get("finetune"), changes), name=name_of(task, row))


def name_of(task: str, row: str) -> str:
    """Returns the name of a row's run and result file."""
    return f"{task}_{row.replace(' ', '_')}"


@dataclass(frozen=True)
class TaskJob(Job):
    """A row of a task."""

    task: str

    @property
    def title(self) -> str:
        """Name in messages."""
        return f"{self.task}, {self.row}"


def jobs(options: Options) -> Iterator[TaskJob]:
    """Yields the job of each row; InputError for rows that do not exist."""
    for row in options.rows:
        if row not in ROWS:
            raise InputError(f"--rows has {row!r}; choose from {', '.join(map(repr, ROWS))}")
        experiment = experiment_of(options.task, row, options.backbone)
        file = options.results / f"{experiment.name}.json"
        yield TaskJob(row, experiment, options.directory / experiment.name, file, options.task)


def run(options: Options, console: Console) -> list[str]:
    """Runs the jobs without a result; returns a message for each that failed."""
    requested = list(jobs(options))
    for job in requested:
        state = f"result in {job.file}" if job.is_done else "to be run"
        console.print(f"{job.title}: {state}", highlight=False, soft_wrap=True)

    def execute(job: TaskJob) -> None:
        complete = options.directory / name_of(job.task, "all")
        if job.row == WITHOUT_AVERAGE and (complete / "metrics.json").exists():
            evaluate_as_run(without_average(complete, job.experiment), complete, job.directory)
        else:
            train(job.experiment, job.directory, console, store_programs=True)

    def result(job: TaskJob, seconds: int | None) -> dict[str, Any]:
        command = f"{PROGRAM} {job.task} --rows {shlex.quote(job.row)}"
        return result_content(job, {"task": job.task, "row": job.row}, seconds, command)

    pending = [] if options.plan else [job for job in requested if not job.is_done]
    return run_jobs(pending, execute, result, console)


def without_average(trained: Path, experiment: Experiment) -> Detector:
    """Returns the detector of a finished run's parameters themselves, in place of their moving average."""
    with CheckpointStore(trained / "checkpoints", read_only=True) as store:
        newest = store.restore_latest()
    if newest is None:
        raise InputError(f"{trained} holds no complete checkpoint")
    arrays = {name: array for name, array in newest.arrays.items() if not name.startswith("averaged.")}
    train = replace(newest.experiment.train, ema_decay=experiment.train.ema_decay)
    settings = replace(newest.experiment, name=experiment.name, train=train)
    return Detector(settings, newest.info, jax.device_put(newest._replace(arrays=arrays).variables))


def main(arguments: list[str] | None = None) -> int:
    """Runs the rows; returns the exit status."""
    options = tyro.cli(Options, prog=PROGRAM, args=arguments)
    try:
        return exit_codes.FAILED if run(options, Console()) else exit_codes.OK
    except (InputError, Interrupted) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return exit_codes.exit_status(error)


if __name__ == "__main__":
    sys.exit(main())
