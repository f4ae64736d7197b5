"""Detections as entries of a COCO results file (cocodataset.org, "Results Format")."""

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


def encode_masks(masks: Masks) -> list[dict]:
    """Returns full-size masks as COCO's compressed run-length codes, {"size": [H, W], "counts": text}."""
    if isinstance(masks, RunLengthMasks):
        return [{"size": list(masks.shape[1:]), "counts": counts} for counts in masks.counts]
    return [_as_text(coco_mask.encode(np.asfortranarray(mask, np.uint8))) for mask in masks]


def _as_text(rle: dict) -> dict:
    """Converts the bytes of pycocotools to text, which JSON can hold."""
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
