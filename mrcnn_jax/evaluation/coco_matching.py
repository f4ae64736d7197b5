"""Matching of detections with objects, and its curves, as pycocotools computes them, for all images at once.

pycocotools visits every image, class, size, threshold and detection in Python. Here a group is what one class
has in one image, and the first detections of all groups are matched at once, then the second ones, and so on.
Every number equals that of pycocotools' ``COCOeval`` to the last bit.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mrcnn_jax.typing import Bool, Float, Int

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which the precision is averaged."""
Ranges = Sequence[tuple[float, float]]
Overlaps = Callable[[Int[np.ndarray, "d"], Int[np.ndarray, "g"]], Float[np.ndarray, "d g"]]
"""Computes the overlap of some detections with some objects of one image, both by index."""


class Objects(NamedTuple):
    """Annotated objects of all images."""

    images: Int[np.ndarray, "G"]  # numbers from 0 up
    classes: Int[np.ndarray, "G"]  # likewise
    areas: Float[np.ndarray, "G"]  # in pixels
    crowd: Bool[np.ndarray, "G"]  # any number of detections may match
    ignored: Bool[np.ndarray, "G"]  # neither found nor missed


class DetectionArrays(NamedTuple):
    """Detections in all images."""

    images: Int[np.ndarray, "D"]
    classes: Int[np.ndarray, "D"]
    areas: Float[np.ndarray, "D"]
    scores: Float[np.ndarray, "D"]


class Matching(NamedTuple):
    """Detections that count, grouped by class, and what each is at every area range and IoU threshold.

    The best of a class are first, equal scores in the order of images.
    """

    positions: Int[np.ndarray, "D"]  # among all detections
    found: DetectionArrays
    ranks: Int[np.ndarray, "D"]  # place among the detections of a class in an image
    true: Bool[np.ndarray, "D A T"]  # matched with an object that counts
    false: Bool[np.ndarray, "D A T"]  # matched with nothing
    objects: Int[np.ndarray, "D T"]  # index of the object that is matched at the first area range; -1: none


class Curves(NamedTuple):
    """Precision and recall, where something defines them; elsewhere -1."""

    precision: Float[np.ndarray, "T R K A"]  # at the largest limit
    recall: Float[np.ndarray, "T K A L"]


class Pairs(NamedTuple):
    """Pairs of a detection and an object that overlap enough, ordered by detection and then by object."""

    detections: Int[np.ndarray, "P"]
    objects: Int[np.ndarray, "P"]
    overlaps: Float[np.ndarray, "P"]


def match(
    objects: Objects, found: DetectionArrays, overlaps: Overlaps, limit: int, ranges: Ranges
) -> Matching:
    """Matches the best detections of each class in each image: every one, best first, with the object that
    it overlaps most among those that are left, and with an ignored one only if there is no other.

    Args:
        objects: all that are annotated.
        found: all detections.
        overlaps: similarity that is compared with the thresholds.
        limit: number of the best detections of a class in an image that count.
        ranges: areas of the objects that count.
    """
    images = 1 + max(found.images.max(initial=0), objects.images.max(initial=0))
    order = np.lexsort((-found.scores, found.classes * images + found.images))
    groups = (found.classes * images + found.images)[order]
    ranks = np.arange(len(groups)) - np.searchsorted(groups, groups)
    order, groups, ranks = order[ranks < limit], groups[ranks < limit], ranks[ranks < limit]
    found = DetectionArrays(*(values[order] for values in found))

    pairs = overlapping(
        groups, order, objects.classes * images + objects.images, overlaps, IOU_THRESHOLDS[0]
    )
    ignored = objects.ignored[:, None] | _outside(objects.areas, ranges)
    matched = np.zeros((len(order), len(ranges), len(IOU_THRESHOLDS)), bool)
    without_count = np.zeros_like(matched)
    chosen = np.full((len(order), len(IOU_THRESHOLDS)), -1, np.int32)
    _match_pairs(pairs, groups, objects.crowd, ignored, matched, without_count, chosen)
    without_count |= ~matched & _outside(found.areas, ranges)[:, :, None]
    best = np.lexsort((-found.scores, found.classes))
    without_count, matched = without_count[best], matched[best]
    return Matching(
        order[best], DetectionArrays(*(values[best] for values in found)), ranks[best],
        true=matched & ~without_count, false=~matched & ~without_count, objects=chosen[best],
    )  # fmt: skip


def accumulate(
    objects: Objects, matching: Matching, num_classes: int, limits: Sequence[int], ranges: Ranges
) -> Curves:
    """Computes precision and recall of each class and area range from what was matched.

    Args:
        objects: all that are annotated.
        matching: of all detections.
        num_classes: number of classes.
        limits: numbers of the best detections of a class in an image that count, ascending.
        ranges: areas of the objects that count.
    """
    shape = num_classes, len(ranges)
    precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), *shape), -1.0)
    recall = np.full((len(IOU_THRESHOLDS), *shape, len(limits)), -1.0)
    counted = ~(objects.ignored[:, None] | _outside(objects.areas, ranges))
    ends = np.searchsorted(matching.found.classes, np.arange(num_classes + 1))
    for class_ in range(num_classes):
        totals = counted[objects.classes == class_].sum(axis=0)
        own = slice(ends[class_], ends[class_ + 1])
        for area in np.flatnonzero(totals):
            true, false = (
                np.ascontiguousarray(kind[own, area].T) for kind in (matching.true, matching.false)
            )
            precision[:, :, class_, area] = _precision(true, false, totals[area])
            for column, limit in enumerate(limits):
                hits = true[:, matching.ranks[own] < limit].sum(axis=1)
                recall[:, class_, area, column] = hits / totals[area]
    return Curves(precision, recall)


def overlapping(
    groups: Int[np.ndarray, "D"], order: Int[np.ndarray, "D"], object_groups: Int[np.ndarray, "G"],
    overlaps: Overlaps, minimum: float,
) -> Pairs:  # fmt: skip
    """Compares detections with the objects of the same group.

    Args:
        groups: number of the group of each detection, ascending.
        order: index of each detection, for ``overlaps``.
        object_groups: number of the group of each object.
        overlaps: similarity that is computed.
        minimum: overlap of pairs that are returned.

    Returns:
        Pairs with the place of the detection in ``groups`` and the index of the object.
    """
    object_order = np.argsort(object_groups, kind="stable")
    object_groups = object_groups[object_order]
    common = np.intersect1d(groups, object_groups)
    bounds = (
        np.searchsorted(each, common, side) for each in (groups, object_groups) for side in ("left", "right")
    )
    pairs = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0))]
    for first, last, first_object, last_object in zip(*bounds, strict=True):
        chosen = object_order[first_object:last_object]
        values = np.asarray(overlaps(order[first:last], chosen))
        one, other = np.nonzero(values >= minimum)
        pairs.append((first + one, chosen[other], values[one, other]))
    return Pairs(*map(np.concatenate, zip(*pairs, strict=True)))


def _match_pairs(
    pairs: Pairs, groups: Int[np.ndarray, "D"], crowd: Bool[np.ndarray, "G"],
    ignored: Bool[np.ndarray, "G A"], matched: Bool[np.ndarray, "D A T"],
    without_count: Bool[np.ndarray, "D A T"], objects: Int[np.ndarray, "D T"],
) -> None:  # fmt: skip
    """Fills in which detections are matched, which of them with an ignored object, and the object that each
    is matched with at the first area range."""
    if not len(pairs.detections):
        return
    candidates, first, number = np.unique(pairs.detections, return_index=True, return_counts=True)
    # from 1: the larger overlap is the better one, of equal ones the later object
    preference = np.empty(len(pairs.detections), int)
    preference[np.lexsort((pairs.overlaps, pairs.detections))] = np.arange(len(preference))
    preference += 1 - np.repeat(first, number)
    turn = np.arange(len(candidates)) - np.searchsorted(groups[candidates], groups[candidates])
    enough = pairs.overlaps[:, None, None] >= IOU_THRESHOLDS
    free = np.ones((len(crowd), *matched.shape[1:]), bool)
    by_turn = np.argsort(turn, kind="stable")
    for now in np.split(by_turn, np.flatnonzero(np.diff(turn[by_turn])) + 1):
        found, counts = candidates[now], number[now]
        starts = np.cumsum(counts) - counts
        rows = np.repeat(first[now] - starts, counts) + np.arange(counts.sum())
        chosen = pairs.objects[rows]  # each object at most once, as the detections are of different groups
        # objects that count come before the ignored ones
        value = preference[rows, None] + np.repeat(counts, counts)[:, None] * ~ignored[chosen]
        value = np.where(enough[rows] & free[chosen], value[:, :, None], 0)
        best = np.maximum.reduceat(value, starts, axis=0)
        taken = (value > 0) & (value == np.repeat(best, counts, axis=0))
        free[chosen] &= ~taken | crowd[chosen, None, None]
        matched[found] = best > 0
        without_count[found] = (best > 0) & (best <= counts[:, None, None])
        row, threshold = np.nonzero(taken[:, 0])
        objects[pairs.detections[rows[row]], threshold] = chosen[row]


def _outside(areas: Float[np.ndarray, "N"], ranges: Ranges) -> Bool[np.ndarray, "N A"]:
    low, high = np.transpose(ranges)
    return (areas[:, None] < low) | (areas[:, None] > high)


def _precision(
    true: Bool[np.ndarray, "T D"], false: Bool[np.ndarray, "T D"], total: int
) -> Float[np.ndarray, "T R"]:
    """Computes the precision at each recall: the largest at that recall or beyond, 0 where none is."""
    hits, alarms = (np.cumsum(kind, axis=1).astype(np.float64) for kind in (true, false))
    precision = hits / (alarms + hits + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    precision = np.pad(precision, ((0, 0), (0, 1)))  # beyond the last recall
    places = [np.searchsorted(recall, RECALLS, side="left") for recall in hits / total]
    return np.take_along_axis(precision, np.array(places), axis=1)
