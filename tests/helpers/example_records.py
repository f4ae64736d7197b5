"""Records of one small image with chosen objects, and training examples made of them."""

import dataclasses

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.config import AUGMENTATIONS, OURS, AugmentationConfig, Conventions, DataConfig
from mrcnn_jax.data.augment.example import training_example
from mrcnn_jax.data.augment.mask_runs import MaskRuns
from mrcnn_jax.data.dataset import Objects, Record
from mrcnn_jax.structures import DatasetInfo

RED, GREEN, BLUE = np.eye(3, dtype=np.uint8) * 255
THINGS = DatasetInfo("things", (1, 2, 3), ("a", "b", "c"))
FACES = DatasetInfo("faces", (1,), ("face",), ("nose", "left_eye", "right_eye"), keypoint_flip=(0, 2, 1))
STILL = AUGMENTATIONS["none"]
# an image of 20 x 30 pixels keeps its size
AS_IT_IS = DataConfig(
    short_edge=(20,), short_edge_test=20, long_edge=32, max_objects=4, mask_size=16, augment=STILL
)
FLIPPING = dataclasses.replace(AS_IT_IS, augment=AugmentationConfig())


def record(
    image: np.ndarray,
    boxes=(),
    masks=None,
    classes=None,
    areas=None,
    crowd=None,
    keypoints=None,
    joints: int = 0,
) -> Record:
    """Objects without a mask unless masks are given; areas are those of the boxes unless given."""
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    count = len(boxes)

    def given(values, default, dtype):
        return np.array(default if values is None else values, dtype)

    objects = Objects(
        ids=np.arange(count) + 1,
        boxes=boxes,
        classes=given(classes, [0] * count, np.int32),
        areas=given(areas, np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), np.float64),
        crowd=given(crowd, [False] * count, bool),
        rles=[""] * count if masks is None else [encode(mask) for mask in masks],
        keypoints=given(keypoints, np.zeros((count, joints, 3)), np.float32),
    )
    png = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    return Record(png, 7, "seven.png", *image.shape[:2], objects)


def example(
    given: Record,
    config: DataConfig = AS_IT_IS,
    info: DatasetInfo = THINGS,
    seed: int = 0,
    conventions: Conventions = OURS,
):
    return training_example(given, info, config, np.random.default_rng(seed), conventions=conventions)


def flipped_example(given: Record, info: DatasetInfo = THINGS):
    """The first of a few draws whose image is not as it was."""
    plain = example(given, info=info).images
    draws = (example(given, FLIPPING, info, seed) for seed in range(50))
    return next(draw for draw in draws if not np.array_equal(draw.images, plain))


def picture_of(mask: np.ndarray, color: np.ndarray = RED) -> np.ndarray:
    return mask[..., None] * color


def letter(height: int = 20, width: int = 30) -> tuple[np.ndarray, list[float]]:
    """An asymmetric object, an "L" with a dot, and its box."""
    mask = np.zeros((height, width), np.uint8)
    mask[4:15, 6:9] = mask[12:15, 6:19] = mask[5, 17] = 1
    return mask, [6, 4, 19, 15]


def encode(mask):
    """The counts of a mask as compressed RLE."""
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


def crop(mask, box, size):
    """``MaskRuns.crop`` of a mask given as pixels."""
    return MaskRuns(encode(mask), *mask.shape).crop(box, size)


def crop_by_pixel(mask, box, size):
    """The definition of ``MaskRuns.crop``, one cell at a time."""
    x1, y1, x2, y2 = box
    crop = np.zeros((size, size), np.uint8)
    for i in range(size):
        for j in range(size):
            y = int(np.floor(y1 + (i + 0.5) / size * (y2 - y1)))
            x = int(np.floor(x1 + (j + 0.5) / size * (x2 - x1)))
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]:
                crop[i, j] = mask[y, x]
    return crop
