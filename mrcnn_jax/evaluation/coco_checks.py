"""Checks of COCO ground truth, which pycocotools accepts malformed, or changes."""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.data.formats.coco_numbers import to_number, to_whole
from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.coco_values import (
    Id,
    Image,
    mask_of_box,
    measure_masks,
    number_ids,
    read_crowd,
    read_entries,
    read_id,
    read_mask,
    read_numbers,
    shown,
)


class Category(NamedTuple):
    """A category of the ground truth."""

    number: int
    name: str
    has_keypoints: bool


class GroundTruth(NamedTuple):
    """A COCO data set whose images and categories are numbered from 1 in the order of their ids."""

    images: dict[Id, Image]
    categories: dict[Id, Category]
    objects: list[dict]  # as given, but with the numbers of their images and categories; None is unlisted
    names: list[str]  # of the objects, for messages


def check_limits(name: str, limits: Sequence[int]) -> None:
    """Raises InputError unless there are limits and all are whole numbers from 1 up."""
    usable = isinstance(limits, Sequence) and all(to_whole(limit) == limit and limit >= 1 for limit in limits)
    if not limits or not usable:
        raise InputError(f"{name} must be one or more numbers from 1 up, not {shown(limits)}")


def check_sigmas(keypoint_sigmas: Any) -> np.ndarray:
    """Returns tolerances of keypoints as an array; InputError unless they are numbers above 0."""
    try:
        sigmas = np.asarray(keypoint_sigmas, np.float64)
    except (TypeError, ValueError, OverflowError):
        sigmas = np.zeros(0)
    if sigmas.ndim != 1 or not len(sigmas) or not np.all((sigmas > 0) & np.isfinite(sigmas)):
        given = shown(keypoint_sigmas)
        raise InputError(f"keypoint_sigmas must be numbers above 0, one for each keypoint, not {given}")
    return sigmas


def check_ground_truth(ground_truth: Any) -> GroundTruth:
    """Reads the parts of a data set that every kind of evaluation needs.

    Raises:
        InputError: a list or an id is missing or malformed, or an id is that of two images or categories.
    """
    keys = "images", "annotations", "categories"
    for key in keys:
        if not isinstance(ground_truth, dict) or key not in ground_truth:
            raise InputError(f'the ground truth has no "{key}": a COCO data set holds {", ".join(keys)}')
    entries = {key: read_entries(ground_truth[key], f'"{key}" of the ground truth') for key in keys}
    images = {
        id_: Image(number, *(_side(entry.get(key)) for key in ("height", "width")))
        for id_, (number, entry) in _by_id(entries["images"], "image").items()
    }
    categories = {
        id_: Category(number, str(entry.get("name", id_)), bool(entry.get("keypoints")))
        for id_, (number, entry) in _by_id(entries["categories"], "category").items()
    }
    objects, names = [], []
    for number, entry in enumerate(entries["annotations"], start=1):
        name = f"annotation {shown(entry.get('id', f'number {number}'))} of the ground truth".replace("'", "")
        listed = {}
        for key, known in (("image_id", images), ("category_id", categories)):
            found = known.get(read_id(entry, key, name))
            listed[key] = found and found.number
        objects.append(entry | listed)
        names.append(name)
    return GroundTruth(images, categories, objects, names)


def complete_objects(
    truth: GroundTruth, kind: str, num_keypoints: int, categories: Sequence[int]
) -> tuple[list[dict], int]:
    """Returns the objects of these categories with every key that the kind of evaluation needs.

    An object without a mask becomes, for "segm", a region of the shape of its box, in which detections do not
    count.

    Returns:
        The objects; and the number of those without a mask.

    Raises:
        InputError: a field that the kind needs is missing or malformed, no object has a mask, or one has a
            different number of keypoints.
    """
    sizes = {image.number: image for image in truth.images.values()}
    complete, without_mask, with_mask = [], 0, 0
    whole = _whole_codes(truth.objects, sizes) if kind == "segm" else frozenset()
    for position, (given, name) in enumerate(zip(truth.objects, truth.names, strict=True)):
        if given["image_id"] is None or given["category_id"] not in categories:
            continue
        one = {key: given[key] for key in ("image_id", "category_id")}
        one["iscrowd"] = read_crowd(given.get("iscrowd"), name)
        box = _box(given, name, kind)
        if box:
            one["bbox"], area = box, box[2] * box[3]
        if kind == "segm":
            image = sizes[one["image_id"]]
            mask = given.get("segmentation")
            mask = mask if position in whole else read_mask(mask, image, name)
            without_mask, with_mask = without_mask + (mask is None), with_mask + (mask is not None)
            if mask is None:
                one["iscrowd"], mask = 1, mask_of_box(box, image) if box else None
                if mask is None:
                    continue
            one["segmentation"] = mask
            area = area if box else float(coco_mask.area(mask))
        elif kind == "keypoints":
            one |= _keypoints(given, name, num_keypoints)
        given_area = to_number(given.get("area"), sys.float_info.max)
        one["area"] = area if given_area is None else float(given_area)
        complete.append(one)
    if without_mask and not with_mask:
        these = f"none of the {without_mask} objects of the ground truth has a mask"
        raise InputError(f'{these}, which segm needs: evaluate "bbox" instead')
    return complete, without_mask


def _whole_codes(objects: list[dict], images: dict[int, Image]) -> frozenset[int]:
    """Returns the positions of masks that are compressed codes and need no closer look."""
    codes = {
        position: each["segmentation"] for position, each in enumerate(objects)
        if type(each.get("segmentation")) is dict and type(each["segmentation"].get("counts")) is str
        and each["image_id"] is not None
    }  # fmt: skip
    areas = measure_masks(list(codes.values()), [images[objects[position]["image_id"]] for position in codes])
    return frozenset(codes if areas is not None else ())


def _by_id(entries: list[dict], what: str) -> dict[Id, tuple[int, dict]]:
    """Returns entries by id with their number; InputError for two that differ and have one id."""
    found = {}
    for position, entry in enumerate(entries):
        id_ = read_id(entry, "id", f"{what} number {position} of the ground truth")
        if found.setdefault(id_, entry) != entry:
            raise InputError(f"two entries of the ground truth have the {what} id {shown(id_)}")
    return {id_: (number, found[id_]) for id_, number in number_ids(list(found)).items()}


def _side(value: Any) -> int | None:
    side = to_whole(value)
    return side if side is not None and side > 0 else None


def _box(given: dict, name: str, kind: str) -> list[float] | None:
    """Returns x, y, width, height; None for a mask without a box."""
    box = given.get("bbox")
    if box is None or (isinstance(box, list | tuple) and not box):
        if kind == "segm":
            return None
        raise InputError(f'{name} has no "bbox", which {kind} needs')
    numbers = read_numbers(box, 4)
    if numbers is None:
        raise InputError(f'{name} has an unusable "bbox": it must hold 4 finite numbers, at most 1e+100')
    return numbers


def _keypoints(given: dict, name: str, num_keypoints: int) -> dict[str, Any]:
    values = given.get("keypoints")
    if values is None or (isinstance(values, list | tuple) and not values):
        values = [0] * (3 * num_keypoints)
    keypoints = read_numbers(values, len(values)) if isinstance(values, list | tuple) else None
    if keypoints is None:
        raise InputError(f'{name} has unusable "keypoints": they must be finite numbers, at most 1e+100')
    if len(keypoints) != 3 * num_keypoints:
        raise InputError(
            f"{name} has {len(keypoints) // 3} keypoints, but keypoint_sigmas has {num_keypoints}: "
            "there must be one for each (by default COCO's 17)"
        )
    labelled = to_whole(given.get("num_keypoints"))
    visible = sum(visibility > 0 for visibility in keypoints[2::3])
    return {"keypoints": keypoints, "num_keypoints": visible if labelled is None else labelled}
