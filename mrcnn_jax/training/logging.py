"""Metrics of a run on disk, history.jsonl, metrics.csv and curves.png, and with its loggers."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
from etils import epath

from mrcnn_jax.atomic_io import write_text
from mrcnn_jax.training.history import evaluations, losses, read_history
from mrcnn_jax.training.loggers import Logger
from mrcnn_jax.visualize.files import reduced, save_picture

SPEED_METRICS = ("images_per_second", "waited_for_images", "waited_for_devices")
"""Entries of a history line that measure speed; all others are reproducible."""


class MetricLogger:
    """The history of a run, one line per log entry; entries after the step resumed from are dropped.

    In a bucket, where nothing can be appended to, the files are written with each checkpoint. Whatever cannot
    be read, written or drawn is a warning: a log never stops a run.

    Args:
        directory: of the run.
        start: step resumed from.
        enabled: False makes every method do nothing, for all processes but the primary one.
        warn: prints a warning.
        loggers: get every entry and picture too; they are started already.
    """

    def __init__(
        self, directory: epath.Path, start: int, enabled: bool = True,
        warn: Callable[[str], None] = lambda message: None, loggers: Sequence[Logger] = (),
    ):  # fmt: skip
        self.enabled, self.lines, self._warn, self._failed = enabled, [], warn, set()
        self._directory, self._file = directory, directory / "history.jsonl"
        self._table, self._columns = directory / "metrics.csv", {}
        self._appends, self._loggers = "://" not in str(directory), loggers
        if not enabled:
            return
        with self._warning_of(self._file):
            self.lines = [line for line in read_history(self._file, warn) if line["step"] <= start]
        self.flush()

    def log(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Adds a line."""
        if not self.enabled:
            return
        line = {"step": step, **scalars}
        self.lines.append(line)
        if self._appends:
            with self._warning_of(self._file), self._file.open("a") as file:
                file.write(json.dumps(line) + "\n")
            with self._warning_of(self._table):
                if line.keys() <= self._columns.keys():
                    with self._table.open("a") as file:
                        file.write(_csv([line], self._columns))
                else:
                    self._write_table()
        defined = {name: value for name, value in scalars.items() if value is not None}
        self._pass_on(lambda logger: logger.log(step, defined))

    def log_evaluation(
        self, step: int, metrics: Mapping[str, Any],
        validation: Mapping[str, float | None] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Adds a line with the headline metrics of an evaluation and the validation losses, and redraws the
        curves."""
        headlines = {f"{kind}/{name}": of_kind[name] for kind, of_kind in metrics.items()
                     for name in headline_metrics(of_kind)}  # fmt: skip
        self.log(step, headlines | dict(validation))
        self.plot()

    def has_evaluation(self, step: int) -> bool:
        """Returns whether an evaluation was logged at a step."""
        return any(line["step"] == step and "loss" not in line for line in self.lines)

    def log_image(self, step: int, draw: Callable[[], np.ndarray], file: epath.Path | None = None) -> None:
        """Passes a picture of predictions to the loggers, and saves it in a file if one is named."""
        if self.enabled and (self._loggers or file):
            with self._warning_of(self._directory / "predictions.png"):
                image = draw()
                if file:
                    file.with_suffix(".jpg").unlink(missing_ok=True)  # of an earlier evaluation
                    save_picture(file, image)
                small = reduced(image, 2000)
                self._pass_on(lambda logger: logger.log_image(step, "predictions", small))

    def flush(self) -> None:
        """Rewrites the files as a whole, atomically."""
        if self.enabled:
            with self._warning_of(self._file):
                write_text(self._file, "".join(json.dumps(line) + "\n" for line in self.lines))
            with self._warning_of(self._table):
                self._write_table()

    def plot(self) -> None:
        """Draws curves.png."""
        if self.enabled:
            file = self._directory / "curves.png"
            with self._warning_of(file):
                from mrcnn_jax.visualize.plots import plot_curves

                plot_curves(losses(self.lines), file, evaluations(self.lines))

    def close(self, error: BaseException | None = None) -> None:
        """Writes everything to disk, and ends the loggers.

        Args:
            error: what ended the training before its end.
        """
        self.flush()

        def end(logger: Logger) -> None:
            logger.error = error
            logger.close()

        self._pass_on(end)

    def _write_table(self) -> None:
        """Writes metrics.csv, with a column for everything that was logged so far."""
        self._columns = dict.fromkeys(name for line in self.lines for name in line)
        header = dict(zip(self._columns, self._columns, strict=True))
        write_text(self._table, _csv([header, *self.lines], self._columns) if self.lines else "")

    def _pass_on(self, act: Callable[[Logger], None]) -> None:
        """Calls a method of each logger, if this process logs at all."""
        for logger in self._loggers if self.enabled else ():
            name = type(logger).__name__.removesuffix("Logger").lower()
            with self._warning_of(self._directory / name if name == "tensorboard" else name):
                act(logger)

    @contextmanager
    def _warning_of(self, place: object) -> Iterator[None]:
        """Turns the first failure of a file or logger into a warning, and suppresses later ones."""
        try:
            yield
        except Exception as error:
            if place not in self._failed:
                verb = "written" if isinstance(place, epath.Path) else "logged to"
                self._warn(f"{place} cannot be {verb} ({type(error).__name__}: {error})")
            self._failed.add(place)


def headline_metrics(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the metrics of one kind that are logged; proposals have no precision."""
    return ("AP", "AP50", "AP75") if "AP" in metrics else ("AR100", "AR1000")


def _csv(lines: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> str:
    """Returns rows of a CSV file; what a line lacks, and undefined metrics, are empty cells."""
    text = io.StringIO()
    csv.DictWriter(text, list(columns), lineterminator="\n").writerows(lines)
    return text.getvalue()
