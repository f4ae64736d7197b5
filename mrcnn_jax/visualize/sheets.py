"""Contact sheets: pictures in rows, and images of a data set with their detected or annotated objects.

Images are reduced to the size of their tile one by one, before anything is drawn on them.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from mrcnn_jax.config import AugmentationConfig, DataConfig
from mrcnn_jax.data.augment.example import training_example
from mrcnn_jax.data.dataset import DatasetSplit, Record
from mrcnn_jax.data.transforms import decode_record
from mrcnn_jax.detections import Detections
from mrcnn_jax.errors import InputError
from mrcnn_jax.run_length_masks import RunLengthMasks
from mrcnn_jax.structures import Example
from mrcnn_jax.visualize.draw import ColorBy, Picture, draw_detections, draw_ground_truth
from mrcnn_jax.visualize.text import fit, load_font

COLUMNS = 4
TILE = 640
"""Longer side of the pictures of a sheet, in pixels."""
_TITLE_SIZE, _BAND = 15, 24  # of the title's font, and height of the title above a row


def sheet_records(split: DatasetSplit, count: int) -> list[Record]:
    """Returns ``count`` records of a split, or all if it has fewer, spread evenly over it."""
    chosen = np.linspace(0, len(split) - 1, min(count, len(split))).astype(int)
    return [split[int(index)] for index in chosen]


def prediction_sheet(
    split: DatasetSplit, examples: Mapping[int, Detections], score_threshold: float,
    color_by: ColorBy = "object",
) -> Picture:  # fmt: skip
    """Draws images of a split, each with its annotated objects on the left and the detected on the right.

    Args:
        split: holds the images.
        examples: detections by image id, of the images that ``sheet_records`` chooses.
        score_threshold: detections below it are not drawn.
        color_by: colours of the objects, as in ``draw_detections``.
    """
    pairs, titles = [], []
    for record in sheet_records(split, len(examples)):
        image, found = decode_record(record), examples[record.image_id]
        detected = draw_detections(
            image, found, score_threshold=score_threshold, skeleton=split.info.skeleton, max_side=TILE,
            color_by=color_by,
        )  # fmt: skip
        annotated = annotated_picture(split, record, image, color_by=color_by)
        pairs.append(contact_sheet([annotated, detected], 2, pad=2))
        count = int((np.asarray(found.scores) >= score_threshold).sum())
        above = f"{count or 'nothing'} detected above {score_threshold:g}"
        titles.append(f"{record.file_name}: {len(record.objects.ids)} annotated, {above}")
    return contact_sheet(pairs, COLUMNS // 2, titles)


def ground_truth_sheet(split: DatasetSplit, count: int, color_by: ColorBy = "object") -> Picture:
    """Draws ``count`` images of a split with their annotated objects."""
    records = sheet_records(split, count)
    pictures = [
        annotated_picture(split, record, decode_record(record), color_by=color_by) for record in records
    ]
    titles = [f"{record.file_name}: {len(record.objects.ids)} annotated" for record in records]
    return contact_sheet(pictures, COLUMNS, titles)


def augmented_sheet(split: DatasetSplit, count: int, augment: AugmentationConfig, seed: int = 0) -> Picture:
    """Draws ``count`` images of a split as a training with an augmentation sees them."""
    config = DataConfig(
        short_edge=(TILE * 3 // 4,), short_edge_test=TILE * 3 // 4, long_edge=TILE, augment=augment
    )
    pictures, titles = [], []
    for number, record in enumerate(sheet_records(split, count)):
        example = training_example(
            record, split.info, config, np.random.default_rng([seed, number]),
            sample_other=lambda random, render: render(split[int(random.integers(len(split)))]),
        )  # fmt: skip
        pictures.append(_draw_example(split, example))
        titles.append(f"{record.file_name}: {example.valid.sum()} of {len(record.objects.ids)} annotated")
    return contact_sheet(pictures, COLUMNS, titles)


def _draw_example(split: DatasetSplit, example: Example) -> Picture:
    """Draws the objects of a training example over its padded image."""
    info, shown = split.info, example.valid
    masks = np.zeros((shown.sum(), *example.images.shape[:2]), bool)
    for mask, box, crop in zip(masks, example.boxes[shown].astype(int), example.masks[shown], strict=True):
        (x1, y1), (x2, y2) = box[:2].clip(0), np.maximum(box[2:], box[:2].clip(0) + 1)
        part = mask[y1:y2, x1:x2]
        part[:] = cv2.resize(crop, (x2 - x1, y2 - y1))[: part.shape[0], : part.shape[1]]
    return draw_ground_truth(
        example.images, example.boxes[shown], example.classes[shown], masks, info.category_names,
        keypoints=example.keypoints[shown] if info.keypoint_names else None, skeleton=info.skeleton,
        max_side=TILE,
    )  # fmt: skip


def annotated_picture(
    split: DatasetSplit, record: Record, image: Picture, max_side: int = TILE, color_by: ColorBy = "object"
) -> Picture:
    """Draws the annotated objects of a record of a split over its decoded image."""
    objects, info = record.objects, split.info
    return draw_ground_truth(
        image, objects.boxes, objects.classes, RunLengthMasks(objects.rles, record.height, record.width),
        info.category_names, keypoints=objects.keypoints if info.keypoint_names else None,
        skeleton=info.skeleton, max_side=max_side, color_by=color_by,
    )  # fmt: skip


class SheetOfMany:
    """A contact sheet of a stream of images, which may have any length: of images evenly spread over it.

    Args:
        count: maximum number of pictures, which are kept in memory.
    """

    def __init__(self, count: int = 16):
        self._count, self._every = count, 1
        self._chosen: list[tuple[Picture, str]] = []

    def wants(self, number: int) -> bool:
        """Returns whether the sheet takes an image, by its number from 1."""
        return (number - 1) % self._every == 0

    def add(self, number: int, picture: Picture, title: str) -> None:
        """Adds an image, if the sheet wants it."""
        if self.wants(number):
            self._chosen.append((picture, title))
        if len(self._chosen) > self._count:
            self._chosen, self._every = self._chosen[::2], 2 * self._every

    def draw(self) -> Picture | None:
        """Returns the sheet, or None of fewer than two images."""
        if len(self._chosen) < 2:
            return None
        pictures, titles = zip(*self._chosen, strict=True)
        return contact_sheet(pictures, COLUMNS, titles)


def contact_sheet(
    pictures: Sequence[Picture], columns: int, titles: Sequence[str] | None = None, pad: int = 8
) -> Picture:
    """Arranges pictures of any sizes in rows on white, each centred in its cell and below its title.

    Args:
        pictures: one or more.
        columns: maximum number of pictures in a row.
        titles: one for each picture, shortened to the width of its column.
        pad: pixels between the pictures and around them.

    Raises:
        InputError: there is no picture, no column, or a different number of titles.
    """
    count = len(pictures)
    if not pictures or columns < 1:
        raise InputError(f"a contact sheet needs pictures and columns, not {count} and {columns}")
    if titles is not None and len(titles) != count:
        raise InputError(f"a contact sheet of {count} pictures needs as many titles, not {len(titles)}")
    columns = min(columns, count)
    rows = [pictures[start : start + columns] for start in range(0, count, columns)]
    widths = [max(picture.shape[1] for picture in pictures[column::columns]) for column in range(columns)]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    band = 0 if titles is None else _BAND
    size = sum(widths) + pad * (columns + 1), sum(heights) + (pad + band) * len(rows) + pad
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        left = sum(widths[:column]) + pad * (column + 1)
        top = sum(heights[:row]) + (pad + band) * row + pad
        if titles is not None:
            title = fit(titles[index], _TITLE_SIZE, widths[column])
            middle = left + widths[column] / 2, top + band / 2
            pen.text(middle, title, "black", load_font(_TITLE_SIZE, title), anchor="mm")
        inset = (widths[column] - picture.shape[1]) // 2, band + (heights[row] - picture.shape[0]) // 2
        sheet.paste(Image.fromarray(picture), (left + inset[0], top + inset[1]))
    return np.array(sheet)
