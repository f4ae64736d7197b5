"""Checks of COCO ground truth and results, which pycocotools accepts malformed, or changes."""

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np

from mrcnn_jax.errors import InputError

RESULT_FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints", "proposals": "bbox"}
"""Field of a results entry that each kind of evaluation compares."""


def check_limits(name: str, limits: Sequence[int]) -> None:
    """Raises InputError unless there are limits and all are at least 1."""
    if not limits or min(limits) < 1:
        raise InputError(f"{name} must be one or more numbers from 1 up, not {tuple(limits)}")


def checked_results(ground_truth: dict, results: list[dict], kind: str, num_keypoints: int) -> list[dict]:
    """Returns new entries that hold nothing but what an evaluation compares.

    pycocotools would size a mask by the box beside it, and write into the entries it is given.

    Raises:
        InputError: an entry lacks a field, or has an unknown id or a malformed value.
    """
    images = {image["id"]: image for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    field = RESULT_FIELDS[kind]
    checked = []
    for number, entry in enumerate(results):
        name = f"results entry {number}"
        for key in ("image_id", "category_id", "score", field):
            if key not in entry:
                raise InputError(f'{name} has no "{key}", which the evaluation of {kind} needs')
        for key, known, what in (("image_id", images, "images"), ("category_id", categories, "categories")):
            if entry[key] not in known:
                flaw = f"which is none of the {len(known)} {what} of the ground truth"
                raise InputError(f"{name} has {key} {entry[key]!r}, {flaw}")
        if not _are_finite([entry["score"]]):
            raise InputError(f"{name} has score {entry['score']!r}, which is not a finite number")
        if flaw := _flaw(entry[field], kind, images[entry["image_id"]], num_keypoints):
            raise InputError(f'{name} has an unusable "{field}": {flaw}')
        checked.append({key: entry[key] for key in ("image_id", "category_id", "score", field)})
    return checked


def completed_objects(annotations: list[dict], kind: str, num_keypoints: int) -> list[dict]:
    """Returns copies of the ground truth's objects with every key that pycocotools takes for granted.

    Objects are renumbered from 1: pycocotools takes id 0 for "no match" and merges objects of equal ids.

    Raises:
        InputError: an object lacks a field, or has a different number of keypoints.
    """
    completed = []
    for number, given in enumerate(annotations, start=1):
        for key in ("bbox", "segmentation") if kind == "segm" else ("bbox",):
            if not given.get(key):
                name = given.get("id", f"number {number}")
                raise InputError(f'annotation {name} of the ground truth has no "{key}", which {kind} needs')
        keypoints = given.get("keypoints") or [0] * (3 * num_keypoints)
        if kind == "keypoints" and len(keypoints) != 3 * num_keypoints:
            raise InputError(
                f"annotation {given.get('id', number)} of the ground truth has {len(keypoints) // 3} "
                f"keypoints, but keypoint_sigmas has {num_keypoints}: there must be one for each "
                "(by default COCO's 17)"
            )
        defaults = {
            "iscrowd": 0,
            "area": given["bbox"][2] * given["bbox"][3],
            "num_keypoints": sum(visible > 0 for visible in keypoints[2::3]),
        }
        completed.append(defaults | given | {"keypoints": keypoints, "id": number})
    return completed


def _flaw(value: Any, kind: str, image: dict, num_keypoints: int) -> str | None:
    """Describes what is wrong with a detected value, if anything is."""
    if kind == "segm":
        if not isinstance(value, dict) or not isinstance(value.get("counts"), str | bytes):
            return "it must be a compressed run-length code with size and counts"
        size = [image.get("height"), image.get("width")]
        if None not in size and list(value.get("size", ())) != size:
            return f"its size is {value.get('size')}, but the image is {size[0]} high and {size[1]} wide"
        return None
    length = 3 * num_keypoints if kind == "keypoints" else 4
    if not isinstance(value, list | tuple | np.ndarray) or len(value) != length or not _are_finite(value):
        return f"it must hold {length} finite numbers"
    return None


def _are_finite(values: Iterable[Any]) -> bool:
    return all(isinstance(value, Real) and math.isfinite(value) for value in values)
