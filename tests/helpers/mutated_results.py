"""Mutated COCO ground truth and results for fuzz tests of the evaluation."""

import copy
import itertools
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mrcnn_jax.evaluation.coco import Metrics, evaluate_coco

SIGMAS = (0.05, 0.1)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 100),
    st.sampled_from([10**400, -(2**63), 2**53, 1e300, 1e-300, float("nan"), float("inf"), np.float32(7)]),
    st.text(max_size=4),
    st.sampled_from(["7", "1e400", "false", "0", "PPPPPP", "o0o0", "\ud800", b"bytes", "9" * 5000]),
    st.lists(st.integers(-5, 90), max_size=9),
    st.lists(st.lists(st.floats(-1e7, 1e7), max_size=8), max_size=3),
    st.dictionaries(st.sampled_from(["size", "counts", "id"]), st.integers(-1, 5000), max_size=2),
)  # fmt: skip


def truth_and_results() -> dict[str, list[dict]]:
    """Two images with three objects of two classes, all found."""
    mask = np.zeros((60, 80), np.uint8, order="F")
    mask[5:25, 5:25] = 1
    rle = coco_mask.encode(mask)
    rle = {"size": [60, 80], "counts": rle["counts"].decode()}
    masks = rle, [[30, 10, 70, 10, 70, 50, 30, 50]], {"size": [60, 80], "counts": [300, 20, 4480]}
    common = [
        {"image_id": image, "category_id": category, "bbox": [5, 5, 20, 20], "segmentation": mask,
         "keypoints": [8, 8, 2, 9, 9, 1]}
        for (image, category), mask in zip(((7, 3), (7, 17), (9, 3)), masks, strict=True)
    ]  # fmt: skip
    return {
        "images": [{"id": id_, "height": 60, "width": 80} for id_ in (7, 9)],
        "categories": [{"id": 3, "name": "cat", "keypoints": ["a", "b"]}, {"id": 17, "name": "dog"}],
        "annotations": [
            copy.deepcopy(one) | {"id": number, "iscrowd": 0, "area": 400}
            for number, one in enumerate(common)
        ],
        "results": [copy.deepcopy(one) | {"score": 0.5 + number / 10} for number, one in enumerate(common)],
    }


@st.composite
def mutations(draw: Callable) -> dict:
    """Draws the data with one to four values replaced, removed, repeated or cut."""
    data = truth_and_results()
    for _ in range(draw(st.integers(1, 4))):
        parent, key = draw(st.sampled_from(list(_places(data))))
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat", "cut"]))
        if isinstance(parent, list) and key >= len(parent) or isinstance(parent, dict) and key not in parent:
            continue
        value = parent[key]
        if action == "remove":
            del parent[key]
        elif action == "repeat" and isinstance(parent, list):
            parent.append(copy.deepcopy(value))
        elif action == "cut" and isinstance(value, str | list):
            parent[key] = value[: draw(st.integers(0, len(value)))]
        else:
            parent[key] = draw(VALUES)
    return data


def evaluate_mutated(data: dict, kind: str) -> Metrics:
    """Evaluates mutated data."""
    truth = {key: value for key, value in data.items() if key != "results"}
    return evaluate_coco(truth, data.get("results", []), [kind], per_class=True, keypoint_sigmas=SIGMAS)


def _places(value):
    """All parents with a key or an index in nested data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return itertools.chain.from_iterable([(value, key), *_places(child)] for key, child in items)
