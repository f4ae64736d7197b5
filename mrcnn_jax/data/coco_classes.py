"""What the classes of published weights are called: files of weights hold no names, and nearly all were trained on COCO.

The categories and the skeleton are those of COCO's annotation files (https://cocodataset.org/#format-data).
"""

from mrcnn_jax.data.dataset import PERSON_SIGMAS
from mrcnn_jax.data.formats.coco import PERSON_KEYPOINTS
from mrcnn_jax.structures import DatasetInfo

_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # categories that COCO gave up before it was published
_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant", "stop sign",
    "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
    "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv",
    "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

COCO_CATEGORIES = tuple(zip((id_ for id_ in range(1, 91) if id_ not in _UNUSED_IDS), _NAMES, strict=True))
"""The 80 categories as (id, name), by COCO's own ids."""

COCO = DatasetInfo("coco", *zip(*COCO_CATEGORIES, strict=True))
"""80 contiguous classes, as Detectron2 and the original Detectron have them."""

COCO_WITH_GAPS = DatasetInfo("coco", tuple(range(1, 91)), tuple(dict(COCO_CATEGORIES).get(id_, f"N/A {id_}") for id_ in range(1, 91)))
"""A class for every id up to 90, as torchvision has them; no object has one of the ten unused."""

COCO_PERSON = DatasetInfo(
    name="coco_person",
    category_ids=(1,),
    category_names=("person",),
    keypoint_names=PERSON_KEYPOINTS,
    keypoint_flip=(0, *(i + 1 if i % 2 else i - 1 for i in range(1, len(PERSON_KEYPOINTS)))),  # after the nose left and right take turns
    skeleton=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
        (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    keypoint_classes=(0,),
    keypoint_sigmas=PERSON_SIGMAS,
)  # fmt: skip
"""One class with COCO's 17 keypoints, as the published keypoint models have it."""


def unknown(number: int) -> DatasetInfo:
    """``number`` classes of which nothing is known: "class 1", "class 2", ... with ids from 1."""
    ids = tuple(range(1, number + 1))
    return DatasetInfo("unknown", ids, tuple(f"class {id_}" for id_ in ids))
