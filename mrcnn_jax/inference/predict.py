"""Detection in image files: overlay pictures and a COCO results file."""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from etils import epath

from mrcnn_jax.atomic_io import require_writable, write_json
from mrcnn_jax.data.image_files import find_image_files
from mrcnn_jax.detections import Detections
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import Detector, load, print_warning
from mrcnn_jax.inference.result_files import Autosave, earlier_files
from mrcnn_jax.inference.stream import StreamResult
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.visualize.draw import ColorBy, Picture, draw_detections
from mrcnn_jax.visualize.files import save_picture

MAX_SIDE = 2048
"""Pixels of the longer side to which overlay pictures are reduced."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class FilePredictions:
    """Result of detecting in image files."""

    results: list[dict[str, Any]]  # entries of a COCO results file; image_id counts the files from 1
    images: list[dict[str, Any]]  # id, file_name, height, width and perhaps picture of each image
    unreadable: list[str]  # a message for each file that could not be read
    skipped: dict[str, int] = field(default_factory=dict)  # other files in the folders, by suffix

    def raise_unreadable(self) -> None:
        """Raises InputError if files could not be read."""
        first, count = next(iter(self.unreadable), None), len(self.unreadable)
        if count > 1:
            first = f"{count} of {count + len(self.images)} images cannot be read; the first: {first}"
        if count:
            raise InputError(first)


def predict_files(
    detector: Detector | str | os.PathLike, images: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike | None = None, *, score_threshold: float = 0.5,
    progress: Callable[[int, int], None] | None = None, report: Report = lambda line: None,
    settings: Mapping[str, Any] = MappingProxyType({}), color_by: ColorBy = "object",
    batch_size: int = 1, tile: int = 0, tile_overlap: float = 0.25, store_programs: bool = False,
) -> FilePredictions:  # fmt: skip
    """Detects objects in image files. Those that cannot be read are listed and do not stop the others.

    Args:
        detector: or the directory of a training run or of imported weights.
        images: a file, or a folder of them with the folders below, or a list of both. Pictures are turned
            upright as their EXIF orientation says.
        out: directory that gets an overlay picture of each image, of at most 2048 pixels a side and 3 MB (PNG
            or else JPEG), results.json (COCO results) and images.json (file and picture of each image_id).
            Both are rewritten now and then, and when something stops the detection. Those of an earlier
            prediction are removed first, with its pictures. None writes nothing.
        score_threshold: detections below it are not drawn; the results have all of them.
        progress: called with the number of images done and of all images.
        report: called with a line about each image: classes and numbers of the objects above
            ``score_threshold``, and seconds.
        settings: as for ``load``, if ``detector`` is a directory.
        store_programs: likewise.
        color_by: colours of the pictures, as in ``draw_detections``.
        batch_size: as in ``Detector.stream``.
        tile: likewise.
        tile_overlap: likewise.

    Raises:
        InputError: there is no such file or folder, no image in them, no detector in the directory, or
            ``out`` cannot be written.
    """
    if not 0 <= score_threshold <= 1:
        raise InputError(f"the score of drawn detections must lie between 0 and 1, not {score_threshold:g}")
    files, skipped = find_image_files(images)
    earlier = _prepare(out) if out else []
    if isinstance(detector, str | os.PathLike):
        detector = load(detector, settings, store_programs=store_programs)
    for file in earlier:
        file.unlink(missing_ok=True)
    found = FilePredictions([], [], [], skipped)
    drawing = _Drawing(score_threshold, detector.info.skeleton, color_by)
    writer = _Writer(found, epath.Path(out) if out else None, detector.info, drawing)
    results = detector.stream(files, batch_size=batch_size, tile=tile, tile_overlap=tile_overlap)
    autosave, begin = Autosave(writer.save), time.perf_counter()
    try:
        if progress:
            progress(0, len(files))
        for number, result in enumerate(results, start=1):
            if line := writer.add(number, result):
                end = time.perf_counter()
                report(f"{line} ({end - begin:.2f} s)")
                begin = end
            autosave()
            if progress:
                progress(number, len(files))
    finally:
        writer.save()
    return found


@dataclass(frozen=True)
class _Drawing:
    """Settings of the pictures."""

    score_threshold: float
    skeleton: Sequence[tuple[int, int]]
    color_by: ColorBy


@dataclass(frozen=True)
class _Writer:
    """Collects what is found, and writes it to a directory unless that is None."""

    found: FilePredictions
    out: Any
    info: DatasetInfo
    drawing: _Drawing

    def add(self, number: int, result: StreamResult) -> str | None:
        """Adds what was found in a file and draws it; returns a line about it, None if it is unreadable."""
        file, image, detections, error = result
        if error is not None:
            self.found.unreadable.append(str(error))
            print_warning(error)
            return None
        height, width = image.shape[:2]
        entry = {"id": number, "file_name": str(file), "height": height, "width": width}
        if self.out:
            entry["picture"] = _save_picture(image, detections, self.drawing, self.out, number, file)
        self.found.images.append(entry)
        self.found.results.extend(detections.to_coco(number, self.info))
        return f"{file}: {summarize(detections, self.drawing.score_threshold)}"

    def save(self) -> None:
        """Writes the lists of images and results so far, if there are any."""
        if self.out and self.found.images:
            write_json(self.out / "images.json", self.found.images)
            write_json(self.out / "results.json", self.found.results, indent=None)


def summarize(detections: Detections, score_threshold: float) -> str:
    """Returns the numbers of the detected objects above a score, by class: "2 person, 1 dog"."""
    names, scores = detections.class_names, np.asarray(detections.scores)
    counts = Counter(np.asarray(detections.class_ids)[scores >= score_threshold].tolist())
    words = [f"{count} {names[class_id] if names else f'class {class_id}'}"
             for class_id, count in counts.most_common()]  # fmt: skip
    return ", ".join(words) or f"nothing above {score_threshold:g}"


def _prepare(out: str | os.PathLike) -> list[Any]:
    """Checks that a directory can be written, and returns the files of an earlier prediction in it."""
    require_writable(out, ("results.json", "images.json"))
    return earlier_files(out)


def _save_picture(
    image: Picture, detections: Detections, drawing: _Drawing, out: Any, number: int, file: Path
) -> str | None:
    """Writes the overlay picture of an image; returns its name, or None if it cannot be drawn."""
    try:
        picture = draw_detections(
            image, detections, score_threshold=drawing.score_threshold, skeleton=drawing.skeleton,
            max_side=MAX_SIDE, color_by=drawing.color_by,
        )  # fmt: skip
    except Exception as error:  # the results are worth more than the picture
        print_warning(f"the picture of {file} cannot be drawn ({type(error).__name__}: {error})")
        return None
    stem = os.fsencode(file.stem)[:150].decode(errors="ignore")  # names are limited to 255 bytes
    return save_picture(out / f"{number:04}_{stem}.png", picture).name
