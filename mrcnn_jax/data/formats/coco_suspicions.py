"""Suspicions about boxes, masks and classes of COCO files, whose numbers are in range but seem to be wrong.

Each kind becomes one warning, with the number of objects and an example.
"""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from mrcnn_jax.data.dataset import Objects
from mrcnn_jax.data.formats.coco_categories import some
from mrcnn_jax.structures import DatasetInfo

Boxes = Float[np.ndarray, "N 4"]
MIN_OVERLAP = 0.5
"""IoU of a box and the box of its mask below which they do not belong together."""
MIN_SIDE = 4  # in pixels, of masks that are compared with their boxes: smaller ones differ by rounding
TOLERANCE = 1  # in pixels, by which boxes extend beyond images without being reported


def _centred(boxes: Boxes) -> Boxes:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


_READINGS: dict[str, Callable[[Boxes], Boxes]] = {
    "x1, y1, x2, y2": lambda boxes: boxes,
    "y, x, height, width": lambda boxes: _xyxy(boxes[:, [1, 0, 3, 2]]),
    "y1, x1, y2, x2": lambda boxes: boxes[:, [1, 0, 3, 2]],
    "the centre, width and height": _centred,
}
"""Other meanings of the four numbers of a box than x, y, width, height."""


class Suspicions:
    """Collects the objects of a split, image by image, and says what looks wrong."""

    def __init__(self, num_classes: int):
        self.per_class = np.zeros(num_classes, np.int64)
        self.crowds, self.masks = 0, 0
        self._rows: list[Float[np.ndarray, "n 14"]] = []

    def add(
        self, objects: Objects, outlines: list[tuple[float, ...] | None], size: tuple[int, int]
    ) -> None:
        """Adds the objects of an image.

        Args:
            outlines: of each object, the box or the polygons as given, also outside the image; None if
                neither says.
            size: height and width.
        """
        masks = [bool(rle) for rle in objects.rles]
        self.per_class += np.bincount(objects.classes[~objects.crowd], minlength=len(self.per_class))
        self.crowds += int(objects.crowd.sum())
        self.masks += sum(masks)
        rows = np.full((len(masks), 14), np.nan)
        rows[:, 0], rows[:, 1], rows[:, 2:4] = objects.ids, len(self._rows), size[::-1]
        rows[:, 4:8] = objects.boxes
        if any(masks):
            codes = [{"size": size, "counts": rle} for rle in objects.rles if rle]
            rows[masks, 8:12] = coco_mask.toBbox(codes)
        own = [outline is not None for outline in outlines]
        rows[:, 12] = own
        rows[own, 4:8] = np.array([outline for outline in outlines if outline is not None]).reshape(-1, 4)
        self._rows.append(rows)

    def warnings(self) -> list[str]:
        """Returns a sentence for each kind of suspicion."""
        count = int(self.per_class.sum())
        if self.crowds and not count:
            advice = 'set "iscrowd" to 0 if they are single objects (some tools write 1 for run-length codes)'
            return [f"all {self.crowds:,} objects are crowd regions, from which nothing is learned: {advice}"]
        if not count:
            return []
        return _warn_of_boxes(np.concatenate(self._rows))


def _warn_of_boxes(rows: Float[np.ndarray, "N 14"]) -> list[str]:
    ids, images, size = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2:4]
    boxes, mask_boxes = rows[:, 4:8], _xyxy(rows[:, 8:12])
    given = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    warnings: list[str] = []

    def warn(chosen: Bool[np.ndarray, "N"], what: str, advice: str, mask: bool = False) -> None:
        first = int(np.argmax(chosen))
        example = f"annotation {ids[first]}: x, y, width, height {_numbers(given[first])}"
        example += f", but that of its mask {_numbers(rows[first, 8:12])}" if mask else ""
        warnings.append(f"{int(chosen.sum()):,} of {len(rows):,} boxes {what} ({example}){advice}")

    relative = (given >= 0).all(axis=1) & (given <= 1).all(axis=1) & (size > 2).all(axis=1)
    if relative.any():
        scaled = "if they are relative to the image's size, multiply them by it"
        warn(relative, "are within the first pixel", f": {scaled}")
    compared = ~relative & (rows[:, 10:12] >= MIN_SIDE).all(axis=1)
    overlap = _overlap(_clip(boxes, size), mask_boxes)
    other = np.max([_overlap(_clip(read(given), size), mask_boxes) for read in _READINGS.values()], axis=0)
    apart = compared & ((overlap < MIN_OVERLAP) | (overlap < 0.7) & (other > 0.9))
    if apart.any():
        reason = _explain_apart(given[apart], mask_boxes[apart], size[apart])
        warn(apart, "do not fit their masks", reason, mask=True)
    far = np.concatenate([-boxes[:, :2], boxes[:, 2:] - size], axis=1).max(axis=1) > TOLERANCE
    beyond = far & ~apart & ~relative
    maskless = ~relative & np.isnan(rows[:, 8])
    if (corners := maskless & beyond).any() and (given[maskless, 2:] > given[maskless, :2]).all():
        advice = ": if they are x1, y1, x2, y2, subtract the first two numbers from the last two"
        warn(corners, "extend beyond their image, and all may be corners", advice)
        beyond &= ~maskless
    if (turned := beyond & _fit_turned(boxes, images, size, beyond)).any():
        advice = ": if annotated on photos that were shown upright, try --rotation upright"
        warn(turned, "extend beyond their image but would fit it turned by 90 degrees", advice)
    if (beyond := beyond & ~turned).any():
        warn(beyond, "extend beyond their image", "; training clips them")
    return warnings


def _explain_apart(given: Boxes, masks: Boxes, size: Float[np.ndarray, "N 2"]) -> str:
    """Returns under which other reading of the numbers most of the boxes fit their masks, if any."""
    overlaps = {name: _overlap(_clip(read(given), size), masks) for name, read in _READINGS.items()}
    best = max(overlaps, key=lambda name: overlaps[name].sum())
    fitting = int((overlaps[best] >= MIN_OVERLAP).sum())
    return f"; {fitting:,} of them would fit if given as {best}" if 2 * fitting > len(given) else ""


def _fit_turned(
    boxes: Boxes, images: Int[np.ndarray, "N"], size: Float[np.ndarray, "N 2"], beyond: Bool[np.ndarray, "N"]
) -> Bool[np.ndarray, "N"]:
    """Returns the boxes of images that all boxes fit once turned, and not all as it is."""
    fits = ((boxes[:, :2] >= -TOLERANCE) & (boxes[:, 2:] <= size[:, ::-1] + TOLERANCE)).all(axis=1)
    unfit = np.bincount(images, ~fits, images.max() + 1)
    outside = np.bincount(images, beyond, images.max() + 1)
    return ((unfit == 0) & (outside > 0))[images] & (size[:, 0] != size[:, 1])


def _xyxy(boxes: Boxes) -> Boxes:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _clip(boxes: Boxes, size: Float[np.ndarray, "N 2"]) -> Boxes:
    return boxes.clip(0, np.tile(size, 2))


def _overlap(one: Boxes, other: Boxes) -> Float[np.ndarray, "N"]:
    """Returns the IoU of boxes pair by pair; 0 for empty ones and NaN."""
    sides = (np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])).clip(0)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1) for boxes in (one, other)]
    union = np.sum(areas, axis=0) - sides.prod(axis=1)
    return np.divide(sides.prod(axis=1), union, out=np.zeros(len(one)), where=union > 0)


def _numbers(values: Float[np.ndarray, "4"]) -> str:
    return " ".join(f"{value:g}" for value in values)


def warn_of_classes(
    info: DatasetInfo, splits: Mapping[str, Suspicions], parents: Mapping[str, str]
) -> dict[str, list[str]]:
    """Returns warnings, by split, about classes without objects, in one split alone, and nothing to learn.

    Args:
        info: the classes.
        splits: the objects of each split.
        parents: the supercategory of each class, by name.
    """
    warnings: dict[str, list[str]] = {split: [] for split in splits}
    for split, found in splits.items():
        if not found.per_class.any() and not found.crowds:
            learn = "nothing can be learned" if split == "train" else "nothing can be scored"
            warnings[split].append(f"no object is left in {split}: {learn} from it")
        elif found.masks < (total := int(found.per_class.sum()) + found.crowds):
            use = "masks are learned and scored from the others" if found.masks else "only boxes are of use"
            warnings[split].append(f"{total - found.masks:,} of {total:,} objects have no mask: {use}")
    first = next(iter(splits))
    present = {split: found.per_class > 0 for split, found in splits.items() if found.per_class.any()}
    absent = ~np.any(list(present.values()), axis=0) if present else np.zeros(info.num_classes, bool)
    if absent.any():
        names = [name for name, none in zip(info.category_names, absent, strict=True) if none]
        groups = [name for name in names if parents.get(name) == "none" and name in parents.values()]
        group = f"; {groups[0]!r} is the group of the others, as Roboflow writes it" if groups else ""
        warnings[first].append(f"{_count(names)} without objects, which cannot be learned{group}")
    for split, shown in present.items():
        others = [other for name, other in present.items() if name != split]
        only = shown & ~np.any(others, axis=0) if others else np.zeros(info.num_classes, bool)
        if only.any():
            names = [name for name, one in zip(info.category_names, only, strict=True) if one]
            effect = "scored" if split == "train" else "learned"
            warnings[split].append(f"{_count(names)} with objects in {split} alone, which cannot be {effect}")
    return warnings


def warn_of_shared_images(splits: Mapping[str, Mapping[int, str]]) -> dict[str, list[str]]:
    """Returns warnings, by split, about images that an earlier split holds too.

    Args:
        splits: the file names of each split by the hash of the files' content.
    """
    warnings: dict[str, list[str]] = {split: [] for split in splits}
    for one, other in itertools.combinations(splits, 2):
        if shared := [key for key in splits[other] if key in splits[one]]:
            count = f"{len(shared):,} of {len(splits[other]):,} different images are also in {one}"
            example = f"{splits[other][shared[0]]} is {splits[one][shared[0]]} there"
            effect = "scores on them do not tell how well other images are understood"
            warnings[other].append(f"{count} ({example}): {effect}")
    return warnings


def _count(names: list[str]) -> str:
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({some(names)})"
