"""Detections as entries of a COCO results file (cocodataset.org, "Results Format")."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.run_length_masks import RunLengthMasks
from mrcnn_jax.structures import DatasetInfo, Detections, Masks


def coco_results(image_id: int, detections: Detections, info: DatasetInfo) -> list[dict[str, Any]]:
    """Converts the detections of one image.

    Args:
        image_id: the data set's own id.
        detections: in pixels of the image as given. Keypoints of classes that have none by ``info`` are left
            out.
        info: its category_ids[i] is written for class i.

    Returns:
        JSON-ready entries with image_id, category_id, bbox (x, y, width, height) and score; with segmentation
        if there are masks, and with keypoints (x, y, score in turn) if there are any. Boxes are rounded to
        0.01 pixels, scores to 6 digits after the point, keypoints and their scores to 4.
    """
    boxes = np.asarray(detections.boxes, np.float64)
    boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).round(2).tolist()
    scores = np.asarray(detections.scores, np.float64).round(6).tolist()
    categories = [int(info.category_ids[class_id]) for class_id in detections.class_ids]
    entries = [
        {"image_id": int(image_id), "category_id": category, "bbox": box, "score": score}
        for category, box, score in zip(categories, boxes, scores, strict=True)
    ]
    if detections.masks is not None:
        for entry, rle in zip(entries, encode_masks(detections.masks), strict=True):
            entry["segmentation"] = rle
    if detections.keypoints is not None:
        have_keypoints = info.keypoint_classes or range(info.num_classes)
        keypoints = np.asarray(detections.keypoints, np.float64).round(4)
        for entry, points, class_id in zip(entries, keypoints, detections.class_ids, strict=True):
            if class_id in have_keypoints:
                entry["keypoints"] = points.ravel().tolist()
    return entries


def read_detections(
    entries: Sequence[dict[str, Any]], info: DatasetInfo, height: int, width: int
) -> Detections:
    """Converts entries of one image back, up to their rounding: the inverse of ``coco_results``.

    Args:
        entries: as ``coco_results`` makes them; those of other categories than the set's are left out.
        info: of the data set.
        height: of the image.
        width: of the image.
    """
    classes = {id_: class_id for class_id, id_ in enumerate(info.category_ids)}
    entries = [entry for entry in entries if entry["category_id"] in classes]
    boxes = np.array([entry["bbox"] for entry in entries], np.float32).reshape(-1, 4)
    masks = [entry.get("segmentation", {}).get("counts", "") for entry in entries]
    keypoints = np.zeros((len(entries), 3 * len(info.keypoint_names)), np.float32)
    for row, entry in zip(keypoints, entries, strict=True):
        row[:] = entry.get("keypoints", 0)
    return Detections(
        boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        scores=np.array([entry["score"] for entry in entries], np.float32),
        class_ids=np.array([classes[entry["category_id"]] for entry in entries], np.int32),
        masks=RunLengthMasks(masks, height, width) if any(masks) else None,
        keypoints=keypoints.reshape(len(entries), -1, 3) if info.keypoint_names else None,
        class_names=info.category_names,
    )


def encode_masks(masks: Masks) -> list[dict]:
    """Returns full-size masks as COCO's compressed run-length codes, {"size": [H, W], "counts": text}."""
    if isinstance(masks, RunLengthMasks):
        return [{"size": list(masks.shape[1:]), "counts": counts} for counts in masks.counts]
    return [_as_text(coco_mask.encode(np.asfortranarray(mask, np.uint8))) for mask in masks]


def _as_text(rle: dict) -> dict:
    """Converts the bytes of pycocotools to text, which JSON can hold."""
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
