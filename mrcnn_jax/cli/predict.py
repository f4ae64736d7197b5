"""`mrcnn predict`: detects objects in image files."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.inference_options import given_settings, parse_with_settings
from mrcnn_jax.cli.terminal import (
    TrainedDirectory,
    folder_name,
    printable,
    progress_bar,
    refuse_experiment,
)
from mrcnn_jax.config.validation import LARGEST_BATCH, require_whole
from mrcnn_jax.errors import InputError, KeyboardInterrupted
from mrcnn_jax.inference.settings import SETTINGS

_SETTINGS = [name for name in SETTINGS if not name.startswith("evaluation.") and name != "data.threads"]


@dataclass(frozen=True)
class Options:
    """Detect objects in image files; write overlay pictures and a COCO results file."""

    directory: TrainedDirectory
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, or folders of them."""
    out: str = "predictions"
    """Directory of results.json, images.json and one overlay picture for each image; those of an earlier
    prediction are replaced."""
    score: float = 0.5
    """Minimum score of detections that are drawn; results.json has all of them."""
    batch_size: int = 1
    """Images (or tiles) of equal padded size that are computed at once."""
    tile: int = 0
    """Side in pixels of the tiles in which images are seen, for small objects in large images; objects that
    several tiles see are joined. 0 takes images whole."""
    tile_overlap: float = 0.25
    """Share of its side that a tile has in common with the next; small objects should fit into it."""
    color_by: Literal["object", "class"] = "object"
    """Colours of the pictures: one for each object, or one for each class."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn predict`; returns the exit status."""
    options = parse_with_settings(Options, "predict", arguments, _SETTINGS)
    refuse_experiment(options.directory)
    if not 0 <= options.score <= 1:
        raise InputError(f"--score must lie between 0 and 1, not {options.score:g}")
    require_whole("--batch-size", options.batch_size, 1, LARGEST_BATCH)
    from mrcnn_jax.inference.predict import predict_files

    lines, print_line = 0, line_printer()

    def report(line: str) -> None:
        nonlocal lines
        lines += 1
        print_line(line)

    try:
        with progress_bar("detecting") as progress:
            found = predict_files(
                options.directory, options.images, options.out, score_threshold=options.score,
                progress=progress, report=report, settings=given_settings(options),
                color_by=options.color_by, batch_size=options.batch_size, tile=options.tile,
                tile_overlap=options.tile_overlap, store_programs=True,
            )  # fmt: skip
    except KeyboardInterrupt:
        kept = f"what was found in {lines} images is in {options.out}" if lines else "nothing is written"
        raise KeyboardInterrupted(f"interrupted; {kept}") from None
    if found.skipped:
        kinds = ", ".join(f"{count} x {suffix or 'no suffix'}" for suffix, count in found.skipped.items())
        print(f"Files that are no images were passed over: {printable(kinds)}.")
    if found.images:
        counts = f"{len(found.results)} detections in {len(found.images)} images"
        text = "pictures, results.json (COCO results) and images.json (file of each image_id) are in"
        print(f"{counts}: {text} {folder_name(options.out)}.")
    found.raise_unreadable()
    return OK


def line_printer() -> Callable[[str], None]:
    """Returns a function that prints a line to stdout at once, above a progress bar on a terminal."""
    piped = None if sys.stdout.isatty() else sys.stdout  # a bar redirects stdout while it is shown
    return lambda line: print(printable(line), file=piped or sys.stdout, flush=True)
