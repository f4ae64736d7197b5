"""Loggers: callbacks that get a run's metrics and pictures. TensorBoard, Weights & Biases and MLflow."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from jaxtyping import UInt8

from mrcnn_jax import distributed
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.errors import InputError, Interrupted, first_line
from mrcnn_jax.paths import read_bytes
from mrcnn_jax.training.run_lock import by_primary

RUNS = "loggers.json"
"""File of a run's directory: its ids at the services it is logged to."""
_LARGEST_BATCH, _LONGEST_VALUE = 100, 500  # of MLflow's parameters
_START_SECONDS = 30  # for Weights & Biases to answer


class Logger:
    """Gets the metrics and pictures of a run; ``train(..., loggers=[...])`` takes instances of subclasses.

    Methods are called by the primary process alone, between steps. What ``log``, ``log_image`` and ``close``
    raise becomes a warning, as a log never stops a run. After an interruption entries since the step resumed
    from come again, with equal values, as training is reproducible.

    Attributes:
        error: when ``close`` is called, what ended the training before its end: an ``Interrupted`` if it can
            be resumed; None otherwise.
    """

    error: BaseException | None = None

    def start(self, directory: epath.Path, experiment: Experiment, step: int) -> None:
        """Begins, before anything is compiled; raises InputError if it cannot.

        Args:
            directory: of the run, on disk or in a bucket.
            experiment: completed from its data set.
            step: resumed from, or 0.
        """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs losses and speed, or an evaluation.

        Args:
            step: number of steps done.
            metrics: losses by name ("loss", "loss_mask", ...), the gradient's norm, the learning rate, images
                per second and shares of waiting time from 0 to 1; or COCO metrics in percent ("segm/AP", ...)
                and validation losses.
        """

    def log_image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Logs a picture.

        Args:
            step: number of steps done.
            name: of the picture, such as "predictions".
            image: RGB, not written to afterwards, so that it may be kept.
        """

    def close(self) -> None:
        """Ends, when training is finished, is interrupted or fails."""


class TensorBoardLogger(Logger):
    """Writes tensorboard/ of the run; in a bucket, where nothing can be appended to, it does nothing."""

    def start(self, directory: epath.Path, experiment: Experiment, step: int) -> None:
        self._place = None if "://" in str(directory) else str(directory / "tensorboard")
        self._step = step

    @cached_property
    def _writer(self) -> Any:
        from tensorboardX import SummaryWriter

        return SummaryWriter(self._place, purge_step=self._step or None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items() if self._place else ():
            self._writer.add_scalar(name, value, step)

    def log_image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        if self._place:
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        if self._place:
            self._writer.close()


class WandbLogger(Logger):
    """Logs to Weights & Biases: the project WANDB_PROJECT, by default mrcnn_jax, or a file (WANDB_MODE)."""

    def start(self, directory: epath.Path, experiment: Experiment, step: int) -> None:
        wandb, id_ = import_module("wandb"), _run_id(directory, "wandb")
        local = "://" not in str(directory)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "mrcnn_jax"), name=directory.name, id=id_,
                resume="allow", config=to_dict(experiment), dir=str(directory) if local else None,
                settings=wandb.Settings(init_timeout=_START_SECONDS, console="off"),
            )  # fmt: skip
        except (wandb.errors.Error, OSError) as error:
            raise InputError(
                f"train.loggers wandb: Weights & Biases cannot start ({first_line(error)}): `wandb login` "
                "logs in, and WANDB_MODE=offline needs no network"
            ) from error
        self._image = wandb.Image
        _write_run_id(directory, "wandb", self._run.id)
        # a row of its own for each entry, as rows that W&B numbers cannot be added to after an interruption
        self._run.define_metric("*", step_metric="step")
        self._last = int(self._run.summary.get("step") or 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > self._last or (step == self._last and "loss" not in metrics):
            self._run.log({"step": step, **metrics})

    def log_image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        self._run.log({"step": step, name: self._image(image)})

    def close(self) -> None:
        self._run.finish(exit_code=0 if self.error is None else 1)


class MlflowLogger(Logger):
    """Logs to MLflow: to the store MLFLOW_TRACKING_URI, as MLFLOW_EXPERIMENT_NAME, by default mrcnn_jax."""

    def start(self, directory: epath.Path, experiment: Experiment, step: int) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # by default they take minutes
        mlflow, id_ = import_module("mlflow"), _run_id(directory, "mlflow")
        self._entities, self._last = mlflow.entities, {}
        try:
            self._client = mlflow.MlflowClient()
            if id_ is None:
                self._id = self._new_run(directory, experiment)
                _write_run_id(directory, "mlflow", self._id)
            else:
                self._id = id_
                self._client.update_run(id_, status="RUNNING")
                for name in self._client.get_run(id_).data.metrics:
                    points = self._client.get_metric_history(id_, name)
                    self._last[name] = max(point.step for point in points)
        except (mlflow.exceptions.MlflowException, OSError) as error:
            store = os.environ.get("MLFLOW_TRACKING_URI", "the default store")
            raise InputError(
                f"train.loggers mlflow: MLflow cannot use {store} ({first_line(error)}): "
                "MLFLOW_TRACKING_URI names another"
            ) from error

    def _new_run(self, directory: epath.Path, experiment: Experiment) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mrcnn_jax")
        known = self._client.get_experiment_by_name(name)
        parent = known.experiment_id if known else self._client.create_experiment(name)
        id_ = self._client.create_run(parent, run_name=directory.name).info.run_id
        fields = flatten_dict(to_dict(experiment), sep=".")
        params = [self._entities.Param(key, str(value)[:_LONGEST_VALUE]) for key, value in fields.items()]
        for first in range(0, len(params), _LARGEST_BATCH):
            self._client.log_batch(id_, params=params[first : first + _LARGEST_BATCH])
        return id_

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        new = [self._entities.Metric(name, value, now, step) for name, value in metrics.items()
               if step > self._last.get(name, -1)]  # fmt: skip
        if new:
            self._client.log_batch(self._id, metrics=new)

    def log_image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        self._client.log_image(self._id, image, key=name, step=step)

    def close(self) -> None:
        status = "KILLED" if isinstance(self.error, Interrupted) else "FAILED"
        self._client.set_terminated(self._id, "FINISHED" if self.error is None else status)


LOGGERS = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger, "mlflow": MlflowLogger}
"""Loggers by their names in train.loggers."""


def require_loggers(experiment: Experiment, directory: epath.Path) -> None:
    """Checks that the packages of train.loggers are installed.

    Raises:
        InputError: one is not.
    """

    def check() -> None:
        for name in experiment.train.loggers:
            if name != "tensorboard" and find_spec(name) is None:
                package = f'pip install "mrcnn_jax[{name}]"'
                raise InputError(f"train.loggers has {name}, which needs a package: `{package}` installs it")

    by_primary(check, directory)


def start_loggers(
    experiment: Experiment, directory: epath.Path, step: int, others: Sequence[Logger] = ()
) -> list[Logger]:
    """Makes the loggers of train.loggers and starts them and others, in the primary process.

    Raises:
        InputError: one cannot start, in all processes.
    """
    loggers: list[Logger] = [LOGGERS[name]() for name in experiment.train.loggers]
    loggers = [*loggers, *others] if distributed.is_primary() else []
    by_primary(lambda: [logger.start(directory, experiment, step) for logger in loggers], directory)
    return loggers


def _run_id(directory: epath.Path, service: str) -> str | None:
    """Returns the id of the run at a service; None if it has none yet."""
    return _run_ids(directory).get(service)


def _write_run_id(directory: epath.Path, service: str, id_: str) -> None:
    write_json(directory / RUNS, _run_ids(directory) | {service: id_})


def _run_ids(directory: epath.Path) -> dict[str, str]:
    try:
        ids = json.loads(read_bytes(directory / RUNS))
    except (OSError, ValueError):
        return {}
    return ids if isinstance(ids, dict) else {}
