"""`mrcnn inspect`: shows the contents of a data set, a run or weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.terminal import parse, progress_bar, wide_console
from mrcnn_jax.config.validation import MOST_PICTURES, require_whole
from mrcnn_jax.errors import InputError, printable


@dataclass(frozen=True)
class Options:
    """Show the contents of a data set, a run or weights, and likely mistakes in them. Nothing is changed."""

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH|NAME")]
    """Prepared data set; what `mrcnn dataset` prepares, which is done in a temporary directory; directory of
    a run, of imported weights, of a model to share or of an exported detector; or a name of published weights
    (`mrcnn zoo`) that were downloaded before."""
    experiment: str | None = None
    """Name of an experiment, or directory of a run, whose image sizes, anchors and data.max_objects a data
    set is held against; by default the one that `mrcnn dataset` proposes."""
    out: Path | None = None
    """File of the report as one HTML page, with figures and pictures."""
    json: Path | None = None
    """File of all numbers as JSON."""
    pictures: int = 16
    """Images of each split on the page."""
    near_duplicates: int = 2000
    """Images of each split that are compared for near duplicates in other splits; 0 compares none."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn inspect`; returns the exit status."""
    options = parse(Options, "inspect", arguments)
    require_whole("--pictures", options.pictures, 1, MOST_PICTURES)
    require_whole("--near-duplicates", options.near_duplicates, 0, 10_000_000)
    from mrcnn_jax.atomic_io import require_writable
    from mrcnn_jax.inspection.inspect import inspect
    from mrcnn_jax.inspection.report import render, write_data, write_page

    files = [file for file in (options.out, options.json) if file]
    if len(files) == 2 and files[0].absolute() == files[1].absolute():
        raise InputError(f"--out and --json are the same file {files[0]}")
    for file in files:
        require_writable(file.absolute().parent, [file.name])
    with progress_bar("reading") as progress:
        report = inspect(
            options.path, options.experiment, near=options.near_duplicates,
            pictures=options.pictures if options.out else 0, progress=progress,
        )  # fmt: skip
    wide_console().print(render(report))
    if options.out:
        write_page(report, options.out)
        print(f"The page is {printable(options.out)}.")
    if options.json:
        write_data(report, options.json)
        print(f"The numbers are in {printable(options.json)}.")
    return OK
