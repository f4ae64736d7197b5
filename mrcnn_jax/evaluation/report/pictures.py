"""Pictures of a report: annotated objects on the left, detections on the right, reduced and few."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from mrcnn_jax.data.dataset import DatasetSplit, Record
from mrcnn_jax.data.transforms import decode_record
from mrcnn_jax.detections import Detections
from mrcnn_jax.evaluation.report.html import shortened
from mrcnn_jax.visualize.draw import Picture, draw_detections, draw_ground_truth
from mrcnn_jax.visualize.files import jpeg_within
from mrcnn_jax.visualize.sheets import annotated_picture, contact_sheet

MAX_WORST, MAX_SUSPECTS = 12, 8
"""Pictures of images with mistakes, and of each sort of suspected annotations."""
_WORST_SIDE, _WORST_BYTES = 560, 120_000
_CROP_SIDE, _CROP_BYTES, _SMALLEST_CROP = 300, 40_000, 64


class Shown(NamedTuple):
    """A picture as the content of a JPEG file, and its caption."""

    content: bytes
    caption: str


class Illustrator:
    """Draws images of a split with their objects and detections.

    Args:
        split: of the evaluation.
        results: entries of a COCO results file.
        min_score: detections below it are not drawn.
    """

    def __init__(self, split: DatasetSplit, results: Sequence[dict[str, Any]], min_score: float):
        images = split.ground_truth()["images"]
        self._split, self._min_score = split, min_score
        self._index = {image["id"]: index for index, image in enumerate(images)}
        self._entries = defaultdict(list)
        for entry in results:
            self._entries[entry["image_id"]].append(entry)

    def worst(self, images: Sequence[dict[str, Any]]) -> list[Shown]:
        """Draws the first entries of ``worst_images``."""
        return [self._pair(entry) for entry in images[:MAX_WORST]]

    def suspects(self, entries: Sequence[dict[str, Any]]) -> list[Shown]:
        """Draws the surroundings of the first suspected annotations, at most one of each image."""
        first = {entry["image_id"]: entry for entry in reversed(entries)}
        chosen = [entry for entry in entries if first[entry["image_id"]] is entry][:MAX_SUSPECTS]
        return [self._crop(entry) for entry in chosen]

    def _pair(self, entry: dict[str, Any]) -> Shown:
        record, image, found = self._open(entry["image_id"])
        detected = draw_detections(
            image, found, score_threshold=self._min_score, skeleton=self._split.info.skeleton,
            max_side=_WORST_SIDE,
        )  # fmt: skip
        both = contact_sheet([annotated_picture(self._split, record, image, _WORST_SIDE), detected], 2, pad=2)
        missed = f"{entry['missed']} of {entry['objects']} objects missed"
        caption = f"{shortened(record.file_name)}: {missed}, {entry['false']} false detections"
        return Shown(jpeg_within(both, _WORST_BYTES), caption)

    def _crop(self, entry: dict[str, Any]) -> Shown:
        record, image, found = self._open(entry["image_id"])
        info, window = self._split.info, _surroundings(entry["box"], *image.shape[:2])
        x1, y1, x2, y2 = window
        part, corner = image[y1:y2, x1:x2], np.float32([x1, y1, x1, y1])
        inside = _touching(record.objects.boxes, window)
        left = draw_ground_truth(
            part, record.objects.boxes[inside] - corner, record.objects.classes[inside], None,
            info.category_names, max_side=_CROP_SIDE,
        )  # fmt: skip
        near = _touching(found.boxes, window) & (found.scores >= min(self._min_score, entry.get("score", 1)))
        detected = replace(found[near], masks=None, keypoints=None, boxes=found.boxes[near] - corner)
        right = draw_detections(part, detected, score_threshold=0, max_side=_CROP_SIDE)
        name = entry["class"] + (f" {entry['score']:.2f}" if "score" in entry else "")
        name += f" on {entry['annotated']}" if "annotated" in entry else ""
        caption = f"{name} in {shortened(record.file_name)}"
        return Shown(jpeg_within(contact_sheet([left, right], 2, pad=2), _CROP_BYTES), caption)

    def _open(self, image_id: int) -> tuple[Record, Picture, Detections]:
        record = self._split[self._index[image_id]]
        found = Detections.from_coco(self._entries[image_id], self._split.info, record.height, record.width)
        return record, decode_record(record), found


def _surroundings(box: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """Returns x1, y1, x2, y2 of a part of an image, three times as large as a box in it, or more."""
    x, y, box_width, box_height = box
    half = max(1.5 * box_width, 1.5 * box_height, _SMALLEST_CROP / 2)
    centre = min(max(x + box_width / 2, 0), width), min(max(y + box_height / 2, 0), height)
    x1, y1 = (int(max(middle - half, 0)) for middle in centre)
    x2, y2 = (
        int(np.ceil(min(middle + half, side))) for middle, side in zip(centre, (width, height), strict=True)
    )
    return min(x1, width - 1), min(y1, height - 1), x2, y2


def _touching(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    x1, y1, x2, y2 = window
    return (boxes[:, 0] < x2) & (boxes[:, 2] > x1) & (boxes[:, 1] < y2) & (boxes[:, 3] > y1)
