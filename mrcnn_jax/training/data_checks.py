"""Warnings about a run's data, from the statistics of the data set, before the first step."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mrcnn_jax.config import Experiment
from mrcnn_jax.data.dataset import DatasetSplit, read_metadata
from mrcnn_jax.structures import DatasetInfo

LARGE_SCALE = 4.0
"""Enlargement of images from which a warning says that it costs time and adds nothing."""
Statistics = Mapping[str, Any]


def split_statistics(split: DatasetSplit) -> Statistics:
    """Returns the statistics of a split; sets that were prepared earlier lack some of them."""
    return read_metadata(split.directory)[1].get(split.split, {})


def untaught_tasks(tasks: Sequence[str], statistics: Statistics) -> list[str]:
    """Returns the tasks for which no training object has an annotation, although there are objects."""
    counts = {"masks": statistics.get("masks"), "keypoints": statistics.get("with_keypoints")}
    return [task for task in tasks if counts.get(task) == 0 and _usable(statistics)]


def data_warnings(
    experiment: Experiment, info: DatasetInfo, splits: Mapping[str, Statistics], training: str
) -> list[str]:
    """Returns one sentence for everything in the data that makes results worse than one would expect.

    Args:
        experiment: with the classes of the data set.
        info: classes and keypoints of the data set.
        splits: statistics of the splits that are trained and evaluated on, by name.
        training: name of the split to train on.
    """
    found = [*_without_objects(splits, training), *_without_masks(experiment, splits, training)]
    found += [*_too_many_objects(experiment, splits, training), *_classes(info, splits)]
    if "keypoints" in experiment.model.tasks:
        found += _keypoints(experiment, info, splits, training)
    found += [f"{one}, in the split '{name}'" for name, s in splits.items() for one in _suspicions(s)]
    return [*found, *_sizes(experiment, splits[training])]


def _usable(statistics: Statistics) -> int:
    """Returns the number of objects that are no crowds."""
    return statistics.get("objects", 0) - statistics.get("crowd", 0)


def _suspicions(statistics: Statistics) -> Sequence[str]:
    """Returns what the reader of the data set found about boxes and masks when it was prepared."""
    return statistics.get("suspicions", ()) if _usable(statistics) else ()


def _without_objects(splits: Mapping[str, Statistics], training: str) -> Iterator[str]:
    for name, statistics in splits.items():
        outcome = "there is nothing to learn" if name == training else "its metrics will be undefined"
        number = statistics.get("objects")
        if number == 0:
            images = f"{statistics['images']:,} images"
            yield f"none of the {images} of the split '{name}' has an object: {outcome}"
        elif number and not _usable(statistics):
            yield (f"all {number:,} objects of the split '{name}' are crowds (iscrowd 1), which are neither "
                   f"learned nor scored: {outcome}")  # fmt: skip


def _without_masks(experiment: Experiment, splits: Mapping[str, Statistics], training: str) -> Iterator[str]:
    for name, statistics in splits.items() if "masks" in experiment.model.tasks else ():
        without, number = statistics.get("without_mask", 0), statistics.get("objects", 0)
        verb = "learned" if name == training else "scored"
        example = f", the first in {statistics.get('first_without_mask') or 'an unnamed image'}"
        if without and not statistics.get("masks", 1):
            yield f"no object of the split '{name}' has a mask: boxes alone are {verb}"
        elif without:
            yield (f"{without:,} of {number:,} objects of the split '{name}' have no mask{example}: masks "
                   f"are {verb} on the others")  # fmt: skip


def _too_many_objects(
    experiment: Experiment, splits: Mapping[str, Statistics], training: str
) -> Iterator[str]:
    model, counted = experiment.model, experiment.evaluation.max_detections[-1]
    limits = {"model.box.max_detections": model.box.max_detections, "evaluation.max_detections": counted}
    detections = min(limits, key=limits.__getitem__)
    for name, statistics in splits.items():
        field, limit = "data.max_objects", experiment.data.max_objects
        if name != training:
            field, limit = detections, limits[detections]
        counts = {int(n): images for n, images in statistics.get("images_by_objects", {}).items()}
        beyond = {n: images for n, images in counts.items() if n > limit}
        if not beyond or (name != training and not model.tasks):
            continue
        excess = sum((n - limit) * images for n, images in beyond.items())
        outcome = (f"the smallest {excess:,} are not learned" if name == training
                   else f"{excess:,} of them cannot be found")  # fmt: skip
        yield (f"{sum(beyond.values()):,} of {statistics['images']:,} images of the split '{name}' hold more "
               f"objects than {field} {limit}, the most {statistics['fullest_image']} with {max(beyond):,}: "
               f"{outcome}")  # fmt: skip


def _classes(info: DatasetInfo, splits: Mapping[str, Statistics]) -> Iterator[str]:
    """Warns of classes that are missing in one split or in all, and of repeated names."""
    repeated = [name for name, count in Counter(info.category_names).items() if count > 1]
    if repeated:
        named = zip(info.category_ids, info.category_names, strict=True)
        ids = [id_ for id_, name in named if name == repeated[0]]
        yield (f"{len(repeated)} class names are repeated, for example {repeated[0]} (ids "
               f"{', '.join(map(str, ids))}): they are learned as different classes")  # fmt: skip
    counts = {name: one["objects_per_class"] for name, one in splits.items() if _usable(one)}
    absent = {name: {index for index, n in enumerate(numbers) if not n} for name, numbers in counts.items()}
    everywhere = set.intersection(*absent.values()) if absent else set()
    groups = {"in any split": everywhere}
    groups |= {f"in the split '{name}'": missing - everywhere for name, missing in absent.items()}
    for where, missing in groups.items():
        if missing:
            names = ", ".join(info.category_names[index] for index in sorted(missing)[:3])
            yield (f"{len(missing)} of {info.num_classes} classes have no object {where}: "
                   f"{names}{', ...' if len(missing) > 3 else ''}")  # fmt: skip


def _keypoints(
    experiment: Experiment, info: DatasetInfo, splits: Mapping[str, Statistics], training: str
) -> Iterator[str]:
    for name, statistics in splits.items():
        if name != training and statistics.get("with_keypoints") == 0 and _usable(statistics):
            yield f"no object of the split '{name}' has keypoints: their metrics will be undefined"
    number = len(info.keypoint_flip)
    if experiment.data.augment.flip and number > 1 and info.keypoint_flip == tuple(range(number)):
        yield (f"none of the {number} keypoints, such as {info.keypoint_names[0]}, has a counterpart in the "
               "flipped image, though training images are flipped: --data.augment.flip 0 "
               "turns that off")  # fmt: skip


def _sizes(experiment: Experiment, statistics: Statistics) -> Iterator[str]:
    height, width = (statistics[sides][1] for sides in ("heights", "widths"))
    edge = min(experiment.data.short_edge)
    if edge >= LARGE_SCALE * min(height, width):
        yield (f"training images of {width:g} x {height:g} pixels (the median) are enlarged to a shorter "
               f"edge of {edge}, which takes time and adds nothing: lower data.short_edge")  # fmt: skip
