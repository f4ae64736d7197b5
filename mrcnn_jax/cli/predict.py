"""`mrcnn predict`: detects objects in image and video files."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.inference_options import DetectorOptions, given_settings, parse_with_settings
from mrcnn_jax.cli.terminal import TrainedDirectory, folder_name, progress_bar, refuse_experiment
from mrcnn_jax.config.validation import LARGEST_BATCH, require_whole
from mrcnn_jax.errors import InputError, KeyboardInterrupted, printable
from mrcnn_jax.inference.settings import SETTINGS

SETTINGS_OF_PREDICTIONS = [
    name for name in SETTINGS if not name.startswith("evaluation.") and name != "data.threads"
] + ["evaluation.tta_scales", "evaluation.tta_flip"]
"""Settings that matter where images have no annotations."""


@dataclass(frozen=True)
class Options(DetectorOptions):
    """Detect objects in image and video files; write pictures and COCO files."""

    directory: TrainedDirectory
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Images and videos, folders of them, or quoted patterns such as "photos/**/*.jpg"."""
    out: str = "predictions"
    """Directory of coco.json, results.json, images.json, one overlay picture for each image or video, and a
    contact sheet; those of an earlier prediction are replaced."""
    score: float = 0.5
    """Minimum score of the objects in pictures, masks, crops and coco.json; results.json has all of them."""
    every: int = 1
    """Distance of the frames that are taken of videos."""
    masks: bool = False
    """Write a PNG of the objects' numbers for each image, and a legend."""
    crops: bool = False
    """Write a picture of each object."""
    batch_size: int = 1
    """Images (or tiles) of equal padded size that are computed at once."""
    color_by: Literal["object", "class"] | None = None
    """Colours of the pictures: one for each object, or for each class, which is the default for videos."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn predict`; returns the exit status."""
    options = parse_with_settings(Options, "predict", arguments, SETTINGS_OF_PREDICTIONS)
    refuse_experiment(options.directory)
    if not 0 <= options.score <= 1:
        raise InputError(f"--score must lie between 0 and 1, not {options.score:g}")
    require_whole("--batch-size", options.batch_size, 1, LARGEST_BATCH)
    require_whole("--every", options.every, 1, 1_000_000)
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
                color_by=options.color_by, masks=options.masks, crops=options.crops, every=options.every,
                batch_size=options.batch_size, tile=options.tile, tile_overlap=options.tile_overlap,
                store_programs=True, checkpoint=options.checkpoint,
            )  # fmt: skip
    except KeyboardInterrupt:
        kept = f"what was found in {lines} images is in {options.out}" if lines else "nothing is written"
        raise KeyboardInterrupted(f"interrupted; {kept}") from None
    if found.skipped:
        kinds = ", ".join(f"{count} x {suffix or 'no suffix'}" for suffix, count in found.skipped.items())
        print(f"Files that are no images were passed over: {printable(kinds)}.")
    detections, images = found.counts
    if images:
        files = f"pictures, coco.json (objects above {options.score:g}), results.json (all detections)"
        text = f"{files} and images.json (files of each image_id) are in {folder_name(options.out)}"
        print(f"{detections} detections in {images} images: {text}.")
    found.raise_unreadable()
    return OK


def line_printer() -> Callable[[str], None]:
    """Returns a function that prints a line to stdout at once, above a progress bar on a terminal."""
    piped = None if sys.stdout.isatty() else sys.stdout  # a bar redirects stdout while it is shown
    return lambda line: print(printable(line), file=piped or sys.stdout, flush=True)
