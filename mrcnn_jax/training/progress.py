"""Progress of a run on the console, and its speed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def warn(console: Console, message: str) -> None:
    """Prints a warning."""
    console.print(f"Warning: {message}", style="yellow", highlight=False, soft_wrap=True)


class StepTimer:
    """Measures the speed of training and the shares of time spent waiting."""

    def __init__(self, images_per_step: int):
        self._images_per_step = images_per_step
        self.reset()

    def reset(self) -> None:
        """Begins anew, for instance after an evaluation."""
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


class ProgressDisplay:
    """Shows the steps of a run: a progress bar in a terminal, single lines elsewhere."""

    def __init__(self, console: Console, steps: int, start: int):
        name, terms = TextColumn("{task.description}"), TextColumn("{task.fields[terms]}")
        times = TimeElapsedColumn(), TimeRemainingColumn()
        columns = (name, BarColumn(bar_width=20), MofNCompleteColumn(), *times, terms)
        self._console, self._steps = console, steps
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("training", total=steps, completed=start, terms="compiling")

    def step(self, done: int, scalars: dict[str, float], print_line: bool) -> None:
        """Shows losses and speed; ``print_line`` prints them outside terminals."""
        names = [name for name in scalars if name.startswith("loss")]
        losses = " ".join(f"{name.removeprefix('loss_')} {scalars[name]:.3f}" for name in names)
        terms = f"{losses} | {scalars['images_per_second']:.1f} images/s"
        self._bar.update(self._task, completed=done, terms=terms)
        if print_line and not self._console.is_terminal:
            self._console.print(f"step {done:>7,}/{self._steps:,} {terms}", highlight=False)

    @contextmanager
    def evaluation(self, images: int) -> Iterator[Callable[[int], None]]:
        """Shows a second bar; yields a function to call with the number of images done."""
        task = self._bar.add_task("evaluating", total=images, terms="")
        yield lambda done: self._bar.update(task, completed=done)
        self._bar.remove_task(task)

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
