"""python -m experiments.overlap_pictures PICTURE RUN RUN ...: draws overlapping objects of one class, as they
are annotated and as each run detects them (figure 6 of the paper)."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from pycocotools import mask as coco_mask

from mrcnn_jax.atomic_io import replacing
from mrcnn_jax.cli.exit_codes import exit_status
from mrcnn_jax.data.catalog import open_split
from mrcnn_jax.data.dataset import DatasetSplit, Record
from mrcnn_jax.data.transforms import decode_record
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import Detector, load
from mrcnn_jax.visualize.draw import Picture, draw_detections
from mrcnn_jax.visualize.files import jpeg_within
from mrcnn_jax.visualize.sheets import annotated_picture, contact_sheet

PROGRAM = "python -m experiments.overlap_pictures"
SIDE, MAX_BYTES = 320, 190_000


@dataclass(frozen=True)
class Options:
    """Draw the validation images in which objects of one class overlap most, as each run detects them."""

    picture: tyro.conf.Positional[Path]
    """JPEG file to write."""
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs on the same data set."""
    images: int = 6
    """Number of images, a row each."""
    score: float = 0.5
    """Minimum score of detections that are drawn."""


def overlap_of(record: Record) -> float:
    """Returns the sum of the IoU of all pairs of boxes of one class in an image."""
    classes, boxes = record.objects.classes, np.float64(record.objects.boxes)
    if len(classes) < 2:
        return 0.0
    boxes[:, 2:] -= boxes[:, :2]
    pairs = np.triu(classes[:, None] == classes[None], k=1)
    return float(coco_mask.iou(boxes, boxes, np.zeros(len(boxes), np.uint8))[pairs].sum())


def most_overlapping(split: Iterable[Record], count: int) -> list[Record]:
    """Returns the records with the most overlap, most first."""
    return sorted(split, key=overlap_of, reverse=True)[:count]


def draw(split: DatasetSplit, detectors: Sequence[Detector], count: int, score: float) -> Picture:
    """Draws images in rows: as annotated, then as each detector sees them."""
    pictures, titles = [], []
    for record in most_overlapping(split, count):
        image = decode_record(record)
        pictures.append(annotated_picture(split, record, image, SIDE))
        titles.append("annotated")
        for detector in detectors:
            found = detector(image)
            pictures.append(draw_detections(image, found, score_threshold=score, max_side=SIDE))
            titles.append(detector.experiment.name)
    return contact_sheet(pictures, 1 + len(detectors), titles)


def main(arguments: list[str] | None = None) -> int:
    """Draws the picture; returns the exit status."""
    options = tyro.cli(Options, prog=PROGRAM, args=arguments)
    try:
        if options.images < 1 or not options.runs:
            raise InputError("needs one run or more, and --images of 1 or more")
        detectors = [load(run) for run in options.runs]
        data = detectors[0].experiment.data
        split = open_split(data, data.validation_split)
        picture = draw(split, detectors, options.images, options.score)
        with replacing(options.picture) as unfinished:
            unfinished.write_bytes(jpeg_within(picture, MAX_BYTES))
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return exit_status(error)
    print(f"Wrote {options.picture}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
