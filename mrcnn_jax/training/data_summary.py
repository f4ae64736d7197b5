"""One line about the training objects at the start of a run: how many, which classes are rare, anchors."""

from typing import Any

import numpy as np

from mrcnn_jax.config import Experiment
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.data.image_sampling import merged_objects
from mrcnn_jax.data.mixture import Mixture
from mrcnn_jax.data.object_table import ObjectTable, read_table
from mrcnn_jax.training.anchor_coverage import POOR, coverage, resize_boxes

RARE = 10
"""Images with a class up to which LVIS calls the class rare."""
_GROUPS = {"below 32 pixels a side": (0, 32), "to 128": (32, 128), "above": (128, np.inf)}
_IMAGES = 5000  # whose objects are compared with anchors
_NAMED = 3


def summarize_objects(experiment: Experiment, source: DatasetSplit | Mixture) -> str:
    """Returns a line about the training objects, from their tables alone; "" if a set has none.

    Anchors are compared with the objects of up to 5,000 images of each data set, spread evenly.
    """
    tables = [read_table(part.directory, part.split, len(part)) for part in source.parts]
    if None in tables or not sum(len(table.classes) for table in tables):
        return ""
    limit, counts = experiment.data.max_objects, np.concatenate([table.counts for table in tables])
    text = f"Objects: {counts.sum():,} in {len(counts):,} images, "
    text += f"{(counts - limit).clip(0).sum():,} beyond data.max_objects {limit}"
    for part in (_rare_classes(source), _anchors(experiment, tables)):
        text += f"; {part}" if part else ""
    return text


def _rare_classes(source: DatasetSplit | Mixture) -> str:
    images, classes = merged_objects(source)
    with_class = np.unique(np.stack([classes, images]), axis=1)[0]
    numbers = np.bincount(with_class, minlength=source.info.num_classes)
    order = np.argsort(numbers, kind="stable")
    rare = [index for index in order if 0 < numbers[index] <= RARE]  # others without any are warned of
    named = ", ".join(f"{source.info.category_names[index]} {numbers[index]}" for index in rare[:_NAMED])
    more = ", ..." if len(rare) > _NAMED else ""
    many = f"{len(rare)} of {len(numbers)} classes are in {RARE} images or fewer"
    return f"{many} ({named}{more})" if rare else ""


def _anchors(experiment: Experiment, tables: list[ObjectTable]) -> str:
    rows: list[dict[str, Any]] = []
    for table in tables:
        number = min(len(table.counts), _IMAGES)
        table = table.take(np.linspace(0, len(table.counts) - 1, number).astype(int))
        rows += coverage(resize_boxes(table, experiment), table)

    def share(low: float, high: float) -> str:
        chosen = [row for row in rows if low <= row["from"] < high]
        objects, poor = (sum(row[key] for row in chosen) for key in ("objects", "poor"))
        return f"{1 - poor / objects:.0%}" if objects else ""

    groups = {name: share(*bounds) for name, bounds in _GROUPS.items()}
    parts = ", ".join(f"{name} {found}" for name, found in groups.items() if found)
    return f"anchors overlap {share(0, np.inf)} of them with an IoU of {POOR} or more ({parts})"
