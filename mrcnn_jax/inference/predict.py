"""Detection in image files: overlay pictures and a COCO results file."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.data.image_io import read_image, save_image
from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.results import coco_results
from mrcnn_jax.inference.detector import Detector, load
from mrcnn_jax.visualize.draw import draw_detections

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
"""Suffixes of the files that are taken from a folder."""


@dataclass(frozen=True)
class FilePredictions:
    """Result of detecting in image files."""

    results: list[dict[str, Any]]  # entries of a COCO results file; image_id counts the files from 1
    images: list[dict[str, Any]]  # id, file_name, height and width of each image
    unreadable: list[str]  # a message for each file that could not be read

    def raise_unreadable(self) -> None:
        """Raises InputError if files could not be read."""
        first, count = next(iter(self.unreadable), None), len(self.unreadable)
        if count > 1:
            first = f"{count} of {count + len(self.images)} images cannot be read; the first: {first}"
        if count:
            raise InputError(first)


def predict_files(
    detector: Detector | str | os.PathLike, images: Sequence[str | os.PathLike],
    out: str | os.PathLike | None = None, *, score_threshold: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
) -> FilePredictions:  # fmt: skip
    """Detects objects in image files. Those that cannot be read are listed and do not stop the others.

    Args:
        detector: or the directory of a training run or of imported weights.
        images: files, or folders of them. Pictures are turned upright as their EXIF orientation says.
        out: directory that gets an overlay picture of each image, results.json (COCO results) and images.json
            (file of each image_id); None writes nothing.
        score_threshold: detections below it are not drawn; the results have all of them.
        progress: called with the number of images done and of all images.

    Raises:
        InputError: there is no such file or folder, no image in them, or no detector in the directory.
    """
    files = find_images(images)
    detector = load(detector) if isinstance(detector, str | os.PathLike) else detector
    found = FilePredictions([], [], [])
    for number, file in enumerate(files, start=1):
        if progress:
            progress(number - 1, len(files))
        try:
            image = read_image(file, upright=True)
        except InputError as error:
            found.unreadable.append(str(error))
            continue
        detections, (height, width) = detector(image), image.shape[:2]
        found.images.append({"id": number, "file_name": str(file), "height": height, "width": width})
        found.results.extend(coco_results(number, detections, detector.info))
        if out:
            overlay = draw_detections(
                image, detections, score_threshold=score_threshold, skeleton=detector.info.skeleton
            )
            save_image(epath.Path(out) / f"{number:04}_{file.stem}.png", overlay)
    if progress:
        progress(len(files), len(files))
    if out and found.images:
        write_json(epath.Path(out) / "results.json", found.results, indent=None)
        write_json(epath.Path(out) / "images.json", found.images)
    return found


def find_images(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """Returns the given files, and the image files of given folders in alphabetical order.

    Raises:
        InputError: a path does not exist, or there are no image files.
    """
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"there is no image file or folder {path}")
        if path.is_dir():
            files += sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        else:
            files.append(path)
    if not files:
        given, suffixes = ", ".join(map(str, paths)) or "the command line", ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"no image files in {given}: give image files, or folders that hold {suffixes}")
    return files
