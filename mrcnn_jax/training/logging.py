"""What was measured on the way: history.jsonl, curves.png, and TensorBoard."""

import json
from typing import Any

import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

from mrcnn_jax.atomic_io import write_text
from mrcnn_jax.visualize.draw import plot_curves

SPEED = ("images_per_second", "waited_for_images", "waited_for_devices")
"""What of a line tells how fast it went, and not what was learned."""


class MetricLogger:
    """The lines of history.jsonl, one for each time that something was logged; steps beyond the one resumed from are forgotten.

    Only the first process keeps one; those of the others do nothing. In a directory at a gs:// address, where nothing can be appended to, the file is written when a
    checkpoint is, and there is no TensorBoard log.
    """

    def __init__(self, directory: epath.Path, start: int, first: bool = True):
        self.directory, self.file, self.first, self.remote = directory, directory / "history.jsonl", first, "://" in str(directory)
        self.lines, self.writer = [], None
        if not first:
            return
        if self.file.exists():
            whole = self.file.read_text().rpartition("\n")[0]  # a process that was killed may have left a part of a line
            self.lines = [line for line in map(json.loads, whole.splitlines()) if line["step"] <= start]
        self.flush()
        if not self.remote:
            self.writer = SummaryWriter(str(directory / "tensorboard"), purge_step=start if start else None)

    def add(self, step: int, scalars: dict[str, float | None]) -> None:
        if not self.first:
            return
        self.lines.append({"step": step, **scalars})
        if not self.remote:
            with self.file.open("a") as file:
                file.write(json.dumps(self.lines[-1]) + "\n")
        for name, value in scalars.items():
            if value is not None and self.writer:
                self.writer.add_scalar(name, value, step)

    def add_evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        self.add(step, {f"{kind}/{name}": figures[name] for kind, figures in metrics.items() for name in headlines(figures)})
        self.plot()

    def has_evaluation(self, step: int) -> bool:
        return any(line["step"] == step and "loss" not in line for line in self.lines)

    def picture(self, step: int, picture: np.ndarray) -> None:
        if self.writer:
            self.writer.add_image("predictions", picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Writes the file anew, as it stands, all of it or nothing."""
        if self.first:
            write_text(self.file, "".join(json.dumps(line) + "\n" for line in self.lines))

    def plot(self) -> None:
        if self.first:
            evaluations = [line for line in self.lines if any("/" in name for name in line)]
            plot_curves([line for line in self.lines if "loss" in line], self.directory / "curves.png", evaluations)

    def close(self) -> None:
        self.flush()
        if self.writer:
            self.writer.close()


def headlines(figures: dict[str, Any]) -> tuple[str, ...]:
    """The figures of a kind that are watched on the way; proposals have no precision."""
    return ("AP", "AP50", "AP75") if "AP" in figures else ("AR100", "AR1000")
