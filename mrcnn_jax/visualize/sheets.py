"""Contact sheets: pictures in rows, and images of a data set with their detected or annotated objects."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from mrcnn_jax.data.dataset import DatasetSplit, Record
from mrcnn_jax.data.transforms import decode_mask, decode_record
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import Detections
from mrcnn_jax.visualize.draw import Picture, draw_detections, draw_ground_truth, load_font

COLUMNS = 4


def sheet_records(split: DatasetSplit, count: int) -> list[Record]:
    """Returns ``count`` records of a split, or all if it has fewer, spread evenly over it."""
    chosen = np.linspace(0, len(split) - 1, min(count, len(split))).astype(int)
    return [split[int(index)] for index in chosen]


def prediction_sheet(
    split: DatasetSplit, examples: Mapping[int, Detections], score_threshold: float
) -> Picture:
    """Draws images of a split with their detections.

    Args:
        split: holds the images.
        examples: detections by image id, of the images that ``sheet_records`` chooses.
        score_threshold: detections below it are not drawn.
    """

    def draw(record: Record) -> Picture:
        image, found, skeleton = decode_record(record), examples[record.image_id], split.info.skeleton
        return draw_detections(image, found, score_threshold=score_threshold, skeleton=skeleton)

    return _sheet(split, len(examples), draw)


def ground_truth_sheet(split: DatasetSplit, count: int) -> Picture:
    """Draws ``count`` images of a split with their annotated objects."""
    info = split.info

    def draw(record: Record) -> Picture:
        objects, size = record.objects, (record.height, record.width)
        masks = np.array([decode_mask(rle, *size) for rle in objects.rles], bool).reshape(-1, *size)
        keypoints = objects.keypoints if info.keypoint_names else None
        return draw_ground_truth(
            decode_record(record), objects.boxes, objects.classes, masks, info.category_names,
            keypoints=keypoints, skeleton=info.skeleton,
        )  # fmt: skip

    return _sheet(split, count, draw)


def _sheet(split: DatasetSplit, count: int, draw: Callable[[Record], Picture]) -> Picture:
    return contact_sheet([draw(record) for record in sheet_records(split, count)], COLUMNS)


def contact_sheet(
    pictures: Sequence[Picture], columns: int, titles: Sequence[str] | None = None, pad: int = 8
) -> Picture:
    """Arranges pictures of any sizes in rows on white, each centred in its cell and below its title.

    Args:
        pictures: one or more.
        columns: maximum number of pictures in a row.
        titles: one for each picture.
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
    band = 0 if titles is None else 24  # height of the title above each row
    size = sum(widths) + pad * (columns + 1), sum(heights) + (pad + band) * len(rows) + pad
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        left = sum(widths[:column]) + pad * (column + 1)
        top = sum(heights[:row]) + (pad + band) * row + pad
        if titles is not None:
            middle = left + widths[column] / 2, top + band / 2
            pen.text(middle, titles[index], "black", load_font(15), anchor="mm")
        inset = (widths[column] - picture.shape[1]) // 2, band + (heights[row] - picture.shape[0]) // 2
        sheet.paste(Image.fromarray(picture), (left + inset[0], top + inset[1]))
    return np.array(sheet)
