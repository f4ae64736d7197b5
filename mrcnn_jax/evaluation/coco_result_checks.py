"""Checks of COCO results, which pycocotools accepts malformed, or changes.

Results as this package and most others write them are checked as whole columns; with anything else among
them, they are read entry by entry, so that what is unusable is refused by its name.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.coco_checks import GroundTruth
from mrcnn_jax.evaluation.coco_values import (
    MAX_NUMBER,
    is_finite,
    measure_masks,
    read_entries,
    read_id,
    read_mask,
    read_numbers,
    shown,
)
from mrcnn_jax.typing import Float, Int

RESULT_FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints", "proposals": "bbox"}
"""Field of a results entry that each kind of evaluation compares."""


class Results(NamedTuple):
    """Checked results, whose images and categories are numbered as in ``GroundTruth``."""

    images: Int[np.ndarray, "D"]
    categories: Int[np.ndarray, "D"]
    scores: Float[np.ndarray, "D"]
    values: Float[np.ndarray, "D n"] | list[dict]  # boxes, keypoints, or masks as compressed run-length codes
    areas: Float[np.ndarray, "D"]


def check_results(
    truth: GroundTruth, results: Any, kind: str, num_keypoints: int, categories: Sequence[int]
) -> Results:
    """Returns what an evaluation compares of the entries of these categories.

    Raises:
        InputError: an entry lacks a field, or has an unknown id or a malformed value.
    """
    entries, length = read_entries(results, "the results"), 3 * num_keypoints if kind == "keypoints" else 4
    try:
        columns = _read_columns(truth, entries, kind, length, categories)
    except (KeyError, TypeError, ValueError, OverflowError):
        columns = None
    return columns or _read_one_by_one(truth, entries, kind, length, categories)


def _read_columns(
    truth: GroundTruth, entries: list[dict], kind: str, length: int, categories: Sequence[int]
) -> Results | None:
    """Reads entries that are written in the usual way; returns None, or raises, if any is not."""
    images, found = _read_ids(entries, "image_id", truth.images), np.ones(len(entries), int)
    if kind != "proposals":
        found = _read_ids(entries, "category_id", truth.categories)
        chosen = np.flatnonzero(np.isin(found, categories))
        entries, images, found = [entries[i] for i in chosen.tolist()], images[chosen], found[chosen]
    scores = [entry["score"] for entry in entries]
    if not {int, float}.issuperset(map(type, scores)):
        return None
    values = [entry[RESULT_FIELDS[kind]] for entry in entries]
    if kind == "segm":
        by_number = {image.number: image for image in truth.images.values()}
        areas = measure_masks(values, [by_number[number] for number in images.tolist()])
    else:
        values = np.array(values)
        if values.dtype.kind not in "iuf" or values.shape != (len(entries), length):
            return None
        values = values.astype(np.float64)
        if not (np.abs(values) <= MAX_NUMBER).all():  # nor NaN
            return None
        areas = _areas(values, kind)
    scores = np.array(scores, np.float64)
    if areas is None or not np.isfinite(scores).all():
        return None
    return Results(images, found, scores, values, areas)


def _read_ids(entries: list[dict], key: str, known: dict) -> Int[np.ndarray, "D"]:
    """Returns the numbers of known whole ids; raises for others."""
    numbers, ids = {id_: each.number for id_, each in known.items()}, [entry[key] for entry in entries]
    if set(map(type, ids)) != {int}:
        raise TypeError(key)
    return np.array([numbers[id_] for id_ in ids])


def _read_one_by_one(
    truth: GroundTruth, entries: list[dict], kind: str, length: int, categories: Sequence[int]
) -> Results:
    field = RESULT_FIELDS[kind]
    ids = {"image_id": (truth.images, "images"), "category_id": (truth.categories, "categories")}
    if kind == "proposals":
        del ids["category_id"]
    checked: list[tuple] = []
    for number, entry in enumerate(entries):
        name = f"results entry {number}"
        _require(entry, ids, kind, name)
        numbers = {"category_id": 1}
        for key, (known, what) in ids.items():
            if (found := known.get(read_id(entry, key, name))) is None:
                flaw = f"which is none of the {len(known)} {what} of the ground truth"
                raise InputError(f"{name} has {key} {shown(entry[key])}, {flaw}")
            numbers[key] = found.number
        if numbers["category_id"] not in categories:
            continue
        _require(entry, ("score", field), kind, name)
        if not is_finite(entry["score"]):
            raise InputError(f"{name} has score {shown(entry['score'])}, which is not a finite number")
        if kind == "segm":
            value = read_mask(entry[field], truth.images[read_id(entry, "image_id", name)], name)
            if value is None:
                raise InputError(f'{name} has an empty "{field}", which the evaluation of {kind} needs')
        else:
            value = read_numbers(entry[field], length)
            if value is None:
                flaw = f"it must hold {length} finite numbers, at most {MAX_NUMBER:g}"
                raise InputError(f'{name} has an unusable "{field}": {flaw}')
        checked.append((numbers["image_id"], numbers["category_id"], float(entry["score"]), value))
    images, found, scores, values = map(list, zip(*checked, strict=True)) if checked else ([], [], [], [])
    if kind != "segm":
        values = np.array(values, np.float64).reshape(-1, length)
    areas = _areas(values, kind)
    return Results(np.array(images, int), np.array(found, int), np.array(scores, float), values, areas)


def _areas(values: Any, kind: str) -> Float[np.ndarray, "D"]:
    """Computes areas as pycocotools does: of masks, of boxes, and of the box around keypoints."""
    if kind == "segm":
        return np.asarray(coco_mask.area(values) if values else [], np.float64)
    if kind == "keypoints":
        return np.ptp(values[:, 0::3], axis=1) * np.ptp(values[:, 1::3], axis=1)
    return values[:, 2] * values[:, 3]


def _require(entry: dict, keys: Iterable[str], kind: str, name: str) -> None:
    for key in keys:
        if key not in entry:
            raise InputError(f'{name} has no "{key}", which the evaluation of {kind} needs')
