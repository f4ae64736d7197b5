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
def progress_bar(console: Console, description: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a progress bar; yields the function that updates it with the number done and the total."""
    with Progress(console=console) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
