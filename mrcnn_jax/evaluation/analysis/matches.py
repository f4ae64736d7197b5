"""Matches of detections and objects as arrays, read from pycocotools' evaluator."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from mrcnn_jax.evaluation.coco import Evaluated
from mrcnn_jax.evaluation.coco_values import Id
from mrcnn_jax.typing import Bool, Float, Int

MIN_OVERLAP = 0.1
"""IoU below which a detection and an object have nothing to do with each other (TIDE)."""
IOU = 0.5
"""IoU from which a detection is on an object; keypoints take the object keypoint similarity instead."""


class Found(NamedTuple):
    """D detections, grouped by class; the best of a class first, equal scores in the order of images."""

    ids: Int[np.ndarray, "D"]  # of the evaluator
    images: Int[np.ndarray, "D"]  # index in Matches.image_ids
    classes: Int[np.ndarray, "D"]  # index in Matches.class_names
    scores: Float[np.ndarray, "D"]
    areas: Float[np.ndarray, "D"]  # in pixels
    matches: Int[np.ndarray, "T D"]  # index of the object that is found, at each IoU threshold; -1: none
    ignored: Bool[np.ndarray, "T D"]  # on a crowd, or on an object that does not count
    correct: Bool[np.ndarray, "T D"]  # on an object that counts


class Objects(NamedTuple):
    """G annotated objects, grouped by class; those of a class in the order of images."""

    ids: Int[np.ndarray, "G"]
    images: Int[np.ndarray, "G"]
    classes: Int[np.ndarray, "G"]
    areas: Float[np.ndarray, "G"]
    ignored: Bool[np.ndarray, "G"]  # crowds, objects without mask or keypoints
    found: Bool[np.ndarray, "T G"]  # at each IoU threshold


class Pairs(NamedTuple):
    """P pairs of a detection and an object that counts, of any classes, with an IoU from MIN_OVERLAP up."""

    detections: Int[np.ndarray, "P"]
    objects: Int[np.ndarray, "P"]
    ious: Float[np.ndarray, "P"]


class Matches(NamedTuple):
    """Detections, objects and their matches in an evaluation of one kind."""

    evaluated: Evaluated
    detections: Found
    objects: Objects
    pairs: Pairs

    @property
    def evaluator(self) -> COCOeval:
        return self.evaluated.evaluator

    @property
    def kind(self) -> str:
        return self.evaluator.params.iouType

    @property
    def class_names(self) -> list[str]:
        return self.evaluated.class_names

    @property
    def image_ids(self) -> list[Id]:
        return self.evaluated.image_ids

    def objects_per_class(self) -> Int[np.ndarray, "K"]:
        """Counts the objects of each class, without those that do not count."""
        counted = self.objects.classes[~self.objects.ignored]
        return np.bincount(counted, minlength=len(self.class_names))


def read_matches(evaluated: Evaluated) -> Matches:
    """Reads the matches over all sizes of objects; IoU with objects of other classes is computed here.

    Keypoints are compared within a class alone.
    """
    evaluator = evaluated.evaluator
    entries = [
        entry for entry in evaluator.evalImgs if entry and list(entry["aRng"]) == evaluator.params.areaRng[0]
    ]
    detections, objects = _read_detections(evaluator, entries), _read_objects(evaluator, entries)
    positions = _positions(objects.ids)
    detections = detections._replace(matches=positions[detections.matches])
    blocks = _keypoint_blocks if evaluator.params.iouType == "keypoints" else _image_blocks
    parts = [_overlapping(*block) for block in blocks(evaluator, entries, detections, objects)]
    parts.append(Pairs(np.zeros(0, int), np.zeros(0, int), np.zeros(0)))
    pairs = Pairs(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    counted = ~objects.ignored[pairs.objects]
    return Matches(evaluated, detections, objects, Pairs(*(part[counted] for part in pairs)))


def _read_detections(evaluator: COCOeval, entries: list[dict]) -> Found:
    """Returns the detections with ids of objects in the place of their indices; id 0 is no object."""
    counts = [len(entry["dtIds"]) for entry in entries]
    ids = _joined([entry["dtIds"] for entry in entries], int)
    rows = len(evaluator.params.iouThrs)
    matches, ignored = (
        _side_by_side([entry[key] for entry in entries], rows, dtype)
        for key, dtype in (("dtMatches", int), ("dtIgnore", bool))
    )
    found = Found(
        ids,
        *_places(evaluator, entries, counts),
        scores=_joined([entry["dtScores"] for entry in entries], float),
        areas=np.array([evaluator.cocoDt.anns[id_]["area"] for id_ in ids.tolist()], float),
        matches=matches,
        ignored=ignored,
        correct=(matches > 0) & ~ignored,
    )
    order = np.lexsort((-found.scores, found.classes))
    return Found(*(part[..., order] for part in found))


def _read_objects(evaluator: COCOeval, entries: list[dict]) -> Objects:
    counts = [len(entry["gtIds"]) for entry in entries]
    ids = _joined([entry["gtIds"] for entry in entries], int)
    rows = len(evaluator.params.iouThrs)
    return Objects(
        ids,
        *_places(evaluator, entries, counts),
        areas=np.array([evaluator.cocoGt.anns[id_]["area"] for id_ in ids.tolist()], float),
        ignored=_joined([entry["gtIgnore"] for entry in entries], bool),
        found=_side_by_side([entry["gtMatches"] for entry in entries], rows, bool),
    )


def _places(evaluator: COCOeval, entries: list[dict], counts: list[int]) -> list[Int[np.ndarray, "n"]]:
    """Returns the indices of the image and the class of each of an entry's ``counts`` items."""
    classes = {number: index for index, number in enumerate(evaluator.params.catIds)}
    images = [entry["image_id"] - 1 for entry in entries]
    kinds = [classes[entry["category_id"]] for entry in entries]
    return [np.repeat(np.array(values, int), counts) for values in (images, kinds)]


def _joined(parts: list, dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0), *parts]).astype(dtype)


def _side_by_side(parts: list, rows: int, dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros((rows, 0)), *parts], axis=1).astype(dtype)


def _positions(ids: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """Returns the index of each id; -1 for numbers that are none."""
    positions = np.full(ids.max(initial=0) + 1, -1)
    positions[ids] = np.arange(len(ids))
    return positions


def _image_blocks(
    evaluator: COCOeval, _: list[dict], detections: Found, objects: Objects
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the detections and objects of each image, and the IoU of all with all."""
    field = "segmentation" if evaluator.params.iouType == "segm" else "bbox"
    members = zip(_by_image(detections.images), _by_image(objects.images), strict=False)
    for of_detections, of_objects in members:
        if len(of_detections) and len(of_objects):
            shapes = (
                [coco.anns[id_][field] for id_ in ids.tolist()]
                for coco, ids in ((evaluator.cocoDt, detections.ids[of_detections]),
                                  (evaluator.cocoGt, objects.ids[of_objects]))
            )  # fmt: skip
            yield of_detections, of_objects, coco_mask.iou(*shapes, [0] * len(of_objects))


def _by_image(images: Int[np.ndarray, "n"]) -> list[Int[np.ndarray, "m"]]:
    """Returns the positions of each image index, from 0 up to the last that occurs."""
    order = np.argsort(images, kind="stable")
    return np.split(order, np.cumsum(np.bincount(images))[:-1])


def _keypoint_blocks(
    evaluator: COCOeval, entries: list[dict], detections: Found, objects: Objects
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the detections and objects of each image and class, and the similarity of all with all."""
    of_detections, of_objects = _positions(detections.ids), _positions(objects.ids)
    for entry in entries:
        similarity = evaluator.ious[entry["image_id"], entry["category_id"]]
        if len(similarity):  # its columns are in the order of the annotations, which is that of their ids
            yield of_detections[entry["dtIds"]], of_objects[sorted(entry["gtIds"])], similarity


def _overlapping(
    detections: Int[np.ndarray, "d"], objects: Int[np.ndarray, "g"], ious: Float[np.ndarray, "d g"]
) -> Pairs:
    rows, columns = np.nonzero(ious >= MIN_OVERLAP)
    return Pairs(detections[rows], objects[columns], ious[rows, columns])
