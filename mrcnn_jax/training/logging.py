"""Metrics of a run on disk: history.jsonl, curves.png and TensorBoard."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from etils import epath

from mrcnn_jax.atomic_io import write_text
from mrcnn_jax.training.history import evaluations, losses, read_history
from mrcnn_jax.visualize.files import reduced, save_picture

SPEED_METRICS = ("images_per_second", "waited_for_images", "waited_for_devices")
"""Entries of a history line that measure speed; all others are reproducible."""


class MetricLogger:
    """The history of a run, one line per log entry; entries after the step resumed from are dropped.

    In a bucket, where nothing can be appended to, the file is written with each checkpoint and there is no
    TensorBoard log. Whatever cannot be read, written or drawn is a warning: a log never stops a run.

    Args:
        directory: of the run.
        start: step resumed from.
        enabled: False makes every method do nothing, for all processes but the primary one.
        warn: prints a warning.
    """

    def __init__(
        self, directory: epath.Path, start: int, enabled: bool = True,
        warn: Callable[[str], None] = lambda message: None,
    ):  # fmt: skip
        self.enabled, self.lines, self._warn, self._failed = enabled, [], warn, set()
        self._directory, self._file = directory, directory / "history.jsonl"
        self._appends, self._writer = "://" not in str(directory), None
        if not enabled:
            return
        with self._warning_of("history.jsonl"):
            self.lines = [line for line in read_history(self._file, warn) if line["step"] <= start]
        self.flush()
        if self._appends:
            with self._warning_of("tensorboard"):
                from tensorboardX import SummaryWriter

                self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=start or None)

    def log(self, step: int, scalars: dict[str, float | None]) -> None:
        """Adds a line."""
        if not self.enabled:
            return
        self.lines.append({"step": step, **scalars})
        if self._appends:
            with self._warning_of("history.jsonl"), self._file.open("a") as file:
                file.write(json.dumps(self.lines[-1]) + "\n")
        with self._warning_of("tensorboard"):
            for name, value in scalars.items():
                if value is not None and self._writer:
                    self._writer.add_scalar(name, value, step)

    def log_evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        """Adds a line with the headline metrics of an evaluation, and redraws the curves."""
        headlines = {f"{kind}/{name}": of_kind[name] for kind, of_kind in metrics.items()
                     for name in headline_metrics(of_kind)}  # fmt: skip
        self.log(step, headlines)
        self.plot()

    def has_evaluation(self, step: int) -> bool:
        """Returns whether an evaluation was logged at a step."""
        return any(line["step"] == step and "loss" not in line for line in self.lines)

    def log_image(self, step: int, draw: Callable[[], np.ndarray], file: epath.Path | None = None) -> None:
        """Adds a picture of predictions to TensorBoard, and saves it in a file if one is named."""
        if self.enabled and (self._writer or file):
            with self._warning_of("predictions.png"):
                image = draw()
                if file:
                    file.with_suffix(".jpg").unlink(missing_ok=True)  # of an earlier evaluation
                    save_picture(file, image)
                if self._writer:
                    self._writer.add_image("predictions", reduced(image, 2000), step, dataformats="HWC")

    def flush(self) -> None:
        """Rewrites the whole file atomically."""
        if self.enabled:
            with self._warning_of("history.jsonl"):
                write_text(self._file, "".join(json.dumps(line) + "\n" for line in self.lines))

    def plot(self) -> None:
        """Draws curves.png."""
        if self.enabled:
            with self._warning_of("curves.png"):
                from mrcnn_jax.visualize.plots import plot_curves

                plot_curves(losses(self.lines), self._directory / "curves.png", evaluations(self.lines))

    def close(self) -> None:
        """Writes everything to disk."""
        self.flush()
        if self._writer:
            with self._warning_of("tensorboard"):
                self._writer.close()

    @contextmanager
    def _warning_of(self, name: str) -> Iterator[None]:
        """Turns the first failure of a file into a warning, and suppresses later ones."""
        try:
            yield
        except Exception as error:
            if name not in self._failed:
                self._warn(f"{self._directory / name} cannot be written ({type(error).__name__}: {error})")
            self._failed.add(name)


def headline_metrics(metrics: dict[str, Any]) -> tuple[str, ...]:
    """Returns the names of the metrics of one kind that are logged; proposals have no precision."""
    return ("AP", "AP50", "AP75") if "AP" in metrics else ("AR100", "AR1000")
