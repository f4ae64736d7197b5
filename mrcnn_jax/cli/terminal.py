"""Argument parsing and progress bars, shared by the subcommands."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, TypeVar

import tyro
from rich.console import Console
from rich.progress import Progress

PROGRAM = "mrcnn"
Options = TypeVar("Options")
TrainedDirectory = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="DIR", help="Directory of a training run, or of imported weights."),
]


def parse(options: type[Options], command: str, arguments: list[str]) -> Options:
    """Parses the arguments of a subcommand into a dataclass; exits with the help, or with an error."""
    return tyro.cli(options, prog=f"{PROGRAM} {command}", args=arguments)


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that shows progress on stderr, to be called with the number done and the total."""
    bar = Progress(console=Console(stderr=True))
    task = bar.add_task(description)

    def update(done: int, total: int) -> None:
        bar.start()  # not before: what is wrong with the arguments is printed without a bar
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()
