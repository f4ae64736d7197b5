"""`mrcnn predict`: detects objects in image files."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.terminal import TrainedDirectory, parse, progress_bar


@dataclass(frozen=True)
class Options:
    """Detect objects in image files; write overlay pictures and a COCO results file."""

    directory: TrainedDirectory
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, or folders of them."""
    out: Path = Path("predictions")
    """Directory of results.json, images.json and one overlay picture for each image."""
    score: float = 0.5
    """Minimum score of detections that are drawn; results.json has all of them."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn predict`; returns the exit status."""
    options = parse(Options, "predict", arguments)
    from mrcnn_jax.inference.predict import predict_files

    with progress_bar("detecting") as progress:
        found = predict_files(
            options.directory, options.images, options.out, score_threshold=options.score, progress=progress
        )
    if found.images:
        counts = f"{len(found.results)} detections in {len(found.images)} images"
        text = "pictures, results.json (COCO results) and images.json (file of each image_id) are in"
        Console().print(f"{counts}: {text} {options.out}.", highlight=False)
    found.raise_unreadable()
    return OK
