"""Progress of a run on the console, and its speed."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from mrcnn_jax.errors import printable

_SECONDS_BETWEEN_LINES = 30  # of evaluations, outside terminals


def warn(console: Console, message: str) -> None:
    """Prints a warning."""
    text = f"Warning: {printable(message)}"
    console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


class StepTimer:
    """Measures the speed of training and the shares of time spent waiting."""

    def __init__(self, images_per_step: int):
        self._images_per_step = images_per_step
        self.reset()

    def reset(self) -> None:
        """Begins a new count, for instance after an evaluation."""
        self._since, self._steps, self._waited = time.perf_counter(), 0, {"images": 0.0, "devices": 0.0}

    def count_step(self) -> None:
        self._steps += 1

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Counts the time of a block as spent waiting for "images" or "devices"."""
        begin = time.perf_counter()
        yield
        self._waited[what] += time.perf_counter() - begin

    def lap(self) -> dict[str, float]:
        """Returns the metrics since the last lap, and begins the next one."""
        seconds = time.perf_counter() - self._since
        speed = {"images_per_second": self._steps * self._images_per_step / seconds}
        waited = {f"waited_for_{what}": value / seconds for what, value in self._waited.items()}
        self.reset()
        return speed | waited


class SaveTimer:
    """Tells when a checkpoint is due by time.

    Args:
        minutes: between checkpoints; 0 is never.
    """

    _FIRST_MINUTES = 2.0

    def __init__(self, minutes: float):
        self._minutes, self._due = minutes, math.inf

    def reset(self, first: bool = False) -> None:
        """Begins to wait; for the first checkpoint of a process two minutes at most."""
        minutes = min(self._minutes, self._FIRST_MINUTES) if first else self._minutes
        self._due = time.monotonic() + 60 * minutes if minutes else math.inf

    def is_due(self) -> bool:
        return time.monotonic() >= self._due


class ProgressDisplay:
    """Shows the steps of a run: a progress bar in a terminal, single lines elsewhere.

    In a narrow terminal the losses are cut off, never the numbers before them.
    """

    def __init__(self, console: Console, steps: int, start: int):
        name = TextColumn("{task.description}", table_column=Column(no_wrap=True))
        losses = TextColumn(
            "{task.fields[losses]}", markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        )  # fmt: skip
        times = TimeElapsedColumn(), TimeRemainingColumn()
        columns = (name, BarColumn(bar_width=10), MofNCompleteColumn(), *times, losses)
        self._console, self._steps = console, steps
        self._begin, self._first = time.monotonic(), None  # step and time of the first one shown
        self._bar = Progress(
            *columns, console=console, disable=not console.is_terminal, expand=True, speed_estimate_period=600
        )
        self._task = self._bar.add_task("compiling", total=steps, completed=start, losses="")
        if start < steps:
            self._print("compiling the training step, which takes a minute or more where no cache holds it")

    def step(self, done: int, scalars: dict[str, float]) -> None:
        """Shows losses and speed."""
        names = [name for name in scalars if name.startswith("loss")]
        losses = " ".join(f"{name.removeprefix('loss_')} {scalars[name]:.3f}" for name in names)
        losses = f"{losses} | {scalars['images_per_second']:.1f} images/s"
        self._bar.update(self._task, description="training", completed=done, losses=losses)
        now = time.monotonic()
        first, since = self._first = self._first or (done, now)
        times = _clock(now - self._begin)
        if done > first:
            times += f", {_clock((now - since) / (done - first) * (self._steps - done))} left"
        self._print(f"step {done:>7,}/{self._steps:,} ({times}) {losses}")

    @contextmanager
    def evaluation(self, images: int) -> Iterator[Callable[[int], None]]:
        """Shows a second bar; yields a function to call with the number of images done."""
        task, printed = self._bar.add_task("evaluating", total=images, losses=""), time.monotonic()
        self._print(f"evaluating {images:,} images")

        def update(done: int) -> None:
            nonlocal printed
            self._bar.update(task, completed=done)
            if time.monotonic() - printed > _SECONDS_BETWEEN_LINES:
                self._print(f"evaluated {done:,}/{images:,} images")
                printed = time.monotonic()

        yield update
        self._bar.remove_task(task)

    def _print(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _clock(seconds: float) -> str:
    """Returns a duration as hours:minutes:seconds."""
    return str(timedelta(seconds=round(seconds)))
