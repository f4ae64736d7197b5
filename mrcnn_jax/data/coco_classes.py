"""COCO's categories, which name the classes of published weights: weight files hold no names.

References:
    https://cocodataset.org/#format-data
"""

from mrcnn_jax.data.coco_keypoints import PERSON_FLIP, PERSON_KEYPOINTS, PERSON_SIGMAS, PERSON_SKELETON
from mrcnn_jax.structures import DatasetInfo

_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # dropped before COCO was published
_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag",
    "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat",
    "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork",
    "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog",
    "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv",
    "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

COCO_CATEGORIES = tuple(zip((id_ for id_ in range(1, 91) if id_ not in _UNUSED_IDS), _NAMES, strict=True))
"""The 80 categories as (id, name), by COCO's own ids."""

COCO = DatasetInfo("coco", *zip(*COCO_CATEGORIES, strict=True))
"""80 contiguous classes, as Detectron2 and the original Detectron have them."""

COCO_WITH_GAPS = DatasetInfo(
    "coco", tuple(range(1, 91)), tuple(dict(COCO_CATEGORIES).get(id_, f"N/A {id_}") for id_ in range(1, 91))
)
"""A class for every id up to 90, ten of them unused, as torchvision has them."""

COCO_PERSON = DatasetInfo(
    name="coco_person",
    category_ids=(1,),
    category_names=("person",),
    keypoint_names=PERSON_KEYPOINTS,
    keypoint_flip=PERSON_FLIP,
    skeleton=PERSON_SKELETON,
    keypoint_classes=(0,),
    keypoint_sigmas=PERSON_SIGMAS,
)
"""One class with COCO's 17 keypoints, as published keypoint models have it."""


def unknown(number: int) -> DatasetInfo:
    """Returns placeholders for ``number`` classes: "class 1", "class 2", ... with ids from 1."""
    ids = tuple(range(1, number + 1))
    return DatasetInfo("unknown", ids, tuple(f"class {id_}" for id_ in ids))
