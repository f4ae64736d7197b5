"""`mrcnn zoo`: lists published weights."""

from dataclasses import dataclass

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.terminal import parse
from mrcnn_jax.errors import InputError


@dataclass(frozen=True)
class Options:
    """List published weights of torchvision and Detectron2, which `predict`, `evaluate`, `train` and
    `import-weights` take by name: they are downloaded once and imported."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """List only weights whose name, tasks or data set contain all of these words, such as `masks R_101`."""
    urls: bool = False
    """Show the address of each file too."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn zoo`; returns the exit status."""
    options = parse(Options, "zoo", arguments)
    from mrcnn_jax.weights import zoo
    from mrcnn_jax.weights.download import cache_directory, mirrored

    entries = zoo.find(options.words)
    if not entries:
        close = zoo.nearest(" ".join(options.words))
        hint = f": did you mean {' or '.join(close)}?" if close else "; `mrcnn zoo` lists all"
        raise InputError(f"no published weights match {' '.join(options.words)!r}{hint}")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("name", overflow="fold")
    for column in ("predicts", "trained on"):
        table.add_column(column)
    for column in ("box AP", "mask AP", "keypoint AP", "MB"):
        table.add_column(column, justify="right")
    table.add_column("here")
    if options.urls:
        table.add_column("address", overflow="fold")
    cache = cache_directory() / "weights"
    for entry in entries:
        numbers = (_text(value) for value in (entry.box_ap, entry.mask_ap, entry.keypoint_ap))
        here = "yes" if (cache / entry.name / "experiment.json").exists() else ""
        address = [mirrored(entry.url)] if options.urls else []
        table.add_row(entry.name, entry.description, entry.trained_on, *numbers, _text(entry.megabytes, 0),
                      here, *address)  # fmt: skip
    console = Console()
    if not console.is_terminal:  # a pipe or a file has no width
        console.width = 400
    console.print(table)
    for library in dict.fromkeys(entry.library for entry in entries):
        console.print(f"Terms of {library}'s weights: {zoo.LICENCES[library]}.", highlight=False)
    return OK


def _text(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
