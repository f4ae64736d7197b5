"""Statistics of a data set's splits: counted while it is written, shown as tables."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mrcnn_jax.data.contents import ContentsDigest
from mrcnn_jax.data.dataset import Record, read_metadata
from mrcnn_jax.data.object_table import ObjectTable, TableBuilder
from mrcnn_jax.errors import printable
from mrcnn_jax.structures import DatasetInfo

SMALL, LARGE = 32.0**2, 96.0**2
"""Areas in pixels from which COCO calls an object medium and large."""
CLASSES_SHOWN = 100
"""Rows of the table of classes; the classes with the fewest objects share one more."""


class Statistics:
    """Counts the images and objects of a split as its records pass through."""

    def __init__(self, num_classes: int):
        self._num_classes, self._builder, self._digest = num_classes, TableBuilder(), ContentsDigest()
        self._fullest, self._first_without_mask = (-1, ""), ""

    def count(self, records: Iterable[Record]) -> Iterator[Record]:
        """Passes records through unchanged, counting them."""
        for record in records:
            objects = record.objects
            self._digest.add(record)
            self._builder.add(record)
            if not (self._first_without_mask or all(objects.rles)):
                self._first_without_mask = record.file_name
            self._fullest = max(self._fullest, (len(objects.ids), record.file_name), key=lambda one: one[0])
            yield record

    def table(self) -> ObjectTable:
        """Returns all objects that were counted."""
        return self._builder.table()

    def as_dict(self, table: ObjectTable) -> dict[str, Any]:
        """Returns the counts, and minimum, median and maximum of sizes and of objects per image.

        Args:
            table: that of ``table``.
        """

        def spread(values: Any) -> list[float]:
            return [float(f(values)) for f in (np.min, np.median, np.max)]

        areas, per_image = table.areas, np.unique(table.counts, return_counts=True)
        flags = {
            "crowd": table.crowd,
            "small": areas < SMALL,
            "medium": (areas >= SMALL) & (areas < LARGE),
            "large": areas >= LARGE,
            "without_mask": ~table.with_mask,
            "masks": table.with_mask & ~table.crowd,
            "with_keypoints": table.with_keypoints,
        }
        return self._digest.contents()._asdict() | {kind: int(flag.sum()) for kind, flag in flags.items()} | {
            "images": len(table.counts),
            "objects": len(table.classes),
            "empty_images": int((table.counts == 0).sum()),
            "objects_per_class": np.bincount(table.classes, minlength=self._num_classes).tolist(),
            "objects_per_image": spread(table.counts),
            "images_by_objects": {str(n): int(images) for n, images in zip(*per_image, strict=True)},
            "fullest_image": self._fullest[1],
            "first_without_mask": self._first_without_mask,
            "heights": spread(table.sizes[:, 0]),
            "widths": spread(table.sizes[:, 1]),
        }


def overview(info: DatasetInfo, statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns texts with the numbers of each split, by what they count."""
    keypoints = f"with keypoints (of {len(info.keypoint_names)})"
    spread = "{0[0]:g} / {0[1]:g} / {0[2]:g}"
    rows = {
        "images": "{images:,}",
        "images without objects": "{empty_images:,}",
        "height (min / median / max)": spread.replace("0[", "heights["),
        "width (min / median / max)": spread.replace("0[", "widths["),
        "objects": "{objects:,}",
        "objects per image (min / median / max)": spread.replace("0[", "objects_per_image["),
        "small / medium / large": "{small:,} / {medium:,} / {large:,}",
        "crowd": "{crowd:,}",
        "without a mask": "{without_mask:,}",
    } | ({keypoints: "{with_keypoints:,}"} if info.keypoint_names else {})
    return {title: [row.format(**values) for values in statistics.values()] for title, row in rows.items()}


def summary(directory: str | os.PathLike) -> Group:
    """Returns two tables for ``rich.print``: images and objects of each split, and the objects of each class.

    Raises:
        InputError: the directory is no prepared data set.
    """
    info, statistics = read_metadata(directory)
    counts = Table("", title=Text(printable(info.name)))
    classes = Table("id", "class", title="objects per class")
    classes.columns[0].justify = "right"
    for split in statistics:
        counts.add_column(split, justify="right")
        classes.add_column(split, justify="right")
    for title, numbers in overview(info, statistics).items():
        counts.add_row(title, *numbers)
    per_class = np.array([values["objects_per_class"] for values in statistics.values()]).T
    order = np.argsort(-per_class.sum(axis=1), kind="stable")
    shown, rest = np.sort(order[:CLASSES_SHOWN]), order[CLASSES_SHOWN:]
    for class_ in shown:
        id_, name = str(info.category_ids[class_]), Text(printable(info.category_names[class_]))
        classes.add_row(id_, name, *(f"{count:,}" for count in per_class[class_]))
    if len(rest):
        classes.add_row("", f"{len(rest):,} classes more", *(f"{n:,}" for n in per_class[rest].sum(axis=0)))
    return Group(counts, classes)
