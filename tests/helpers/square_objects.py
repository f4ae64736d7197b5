"""Ground truth and detections of square objects in two small images."""

import numpy as np

from mrcnn_jax.detections import Detections
from mrcnn_jax.evaluation.analysis.matches import Matches, read_matches
from mrcnn_jax.evaluation.coco import evaluate_coco
from mrcnn_jax.run_length_masks import encode_masks
from mrcnn_jax.structures import DatasetInfo

INFO = DatasetInfo("pets", category_ids=(3, 17), category_names=("cat", "dog"))


def square(x, y, side, height=60, width=80):
    mask = np.zeros((height, width), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def ground_truth(*objects):
    """Two images of 60 x 80 and square objects (image_id, category_id, x, y, side)."""
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [x, y, side, side],
            "area": side * side,
            "iscrowd": 0,
            "segmentation": encode_masks(square(x, y, side)[None])[0],
        }
        for number, (image_id, category_id, x, y, side) in enumerate(objects)
    ]
    images = [{"id": i, "height": 60, "width": 80} for i in (7, 9)]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 17, "name": "dog"}],
    }


def detections(*objects):
    """Square detections (class_id, score, x, y, side)."""
    masks = [square(x, y, side) for *_, x, y, side in objects]
    return Detections(
        boxes=np.float32([[x, y, x + side, y + side] for _, _, x, y, side in objects]).reshape(-1, 4),
        scores=np.float32([score for _, score, *_ in objects]),
        class_ids=np.int32([class_id for class_id, *_ in objects]),
        masks=np.array(masks, bool).reshape(-1, 60, 80),
    )


def matches_of(truth, results, kind="bbox", **options) -> Matches:
    """Evaluates results, and returns their matches."""
    evaluated = {}
    evaluate_coco(truth, results, [kind], inspect=evaluated.__setitem__, **options)
    return read_matches(evaluated[kind])
