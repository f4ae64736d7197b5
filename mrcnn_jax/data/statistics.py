"""Statistics of a data set's splits: counted while it is written, shown as tables."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mrcnn_jax.data.contents import ContentsDigest
from mrcnn_jax.data.dataset import Record, read_metadata
from mrcnn_jax.errors import printable

SMALL, LARGE = 32.0**2, 96.0**2
"""Areas in pixels from which COCO calls an object medium and large."""
CLASSES_SHOWN = 100
"""Rows of the table of classes; the classes with the fewest objects share one more."""


class Statistics:
    """Counts the images and objects of a split as its records pass through."""

    def __init__(self, num_classes: int):
        self.sizes: list[tuple[int, int]] = []
        self.objects_per_image: list[int] = []
        self.per_class = np.zeros(num_classes, np.int64)
        self._digest, self._fullest, self._first_without_mask = ContentsDigest(), (-1, ""), ""
        kinds = "crowd", "small", "medium", "large", "without_mask", "masks", "with_keypoints"
        self.counts = dict.fromkeys(kinds, 0)

    def count(self, records: Iterable[Record]) -> Iterator[Record]:
        """Passes records through unchanged, counting them."""
        for record in records:
            objects = record.objects
            self._digest.add(record)
            self.sizes.append((record.height, record.width))
            self.objects_per_image.append(len(objects.ids))
            self.per_class += np.bincount(objects.classes, minlength=len(self.per_class))
            has_mask = np.array([bool(rle) for rle in objects.rles], bool)
            if not (self._first_without_mask or has_mask.all()):
                self._first_without_mask = record.file_name
            self._fullest = max(self._fullest, (len(objects.ids), record.file_name), key=lambda one: one[0])
            found = {
                "crowd": objects.crowd,
                "small": objects.areas < SMALL,
                "medium": (objects.areas >= SMALL) & (objects.areas < LARGE),
                "large": objects.areas >= LARGE,
                "without_mask": ~has_mask,
                "masks": has_mask & ~objects.crowd,
                "with_keypoints": (objects.keypoints[..., 2] > 0).any(axis=1),
            }
            for kind, flags in found.items():
                self.counts[kind] += int(np.sum(flags))
            yield record

    def as_dict(self) -> dict[str, Any]:
        """Returns the counts, and minimum, median and maximum of sizes and of objects per image."""

        def spread(values: Any) -> list[float]:
            return [float(f(values)) for f in (np.min, np.median, np.max)]

        heights, widths = zip(*self.sizes, strict=True)
        return self._digest.contents()._asdict() | self.counts | {
            "images": len(self.sizes),
            "objects": sum(self.objects_per_image),
            "empty_images": self.objects_per_image.count(0),
            "objects_per_class": self.per_class.tolist(),
            "objects_per_image": spread(self.objects_per_image),
            "images_by_objects": {str(n): count for n, count in Counter(self.objects_per_image).items()},
            "fullest_image": self._fullest[1],
            "first_without_mask": self._first_without_mask,
            "heights": spread(heights),
            "widths": spread(widths),
        }


def summary(directory: str | os.PathLike) -> Group:
    """Returns two tables for ``rich.print``: images and objects of each split, and the objects of each class.

    Raises:
        InputError: the directory is no prepared data set.
    """
    info, statistics = read_metadata(directory)
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
    overview = Table("", title=Text(printable(info.name)))
    classes = Table("id", "class", title="objects per class")
    classes.columns[0].justify = "right"
    for split in statistics:
        overview.add_column(split, justify="right")
        classes.add_column(split, justify="right")
    for title, template in rows.items():
        overview.add_row(title, *(template.format(**values) for values in statistics.values()))
    per_class = np.array([values["objects_per_class"] for values in statistics.values()]).T
    order = np.argsort(-per_class.sum(axis=1), kind="stable")
    shown, rest = np.sort(order[:CLASSES_SHOWN]), order[CLASSES_SHOWN:]
    for class_ in shown:
        id_, name = str(info.category_ids[class_]), Text(printable(info.category_names[class_]))
        classes.add_row(id_, name, *(f"{count:,}" for count in per_class[class_]))
    if len(rest):
        classes.add_row("", f"{len(rest):,} classes more", *(f"{n:,}" for n in per_class[rest].sum(axis=0)))
    return Group(overview, classes)
