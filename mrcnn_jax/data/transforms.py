"""Preprocessing of images and their objects on the host: decode, flip, resize, pad, crop masks to boxes."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mrcnn_jax.config import OURS, Conventions, DataConfig
from mrcnn_jax.data.dataset import Objects, Record
from mrcnn_jax.data.image_io import decode_image
from mrcnn_jax.data.resize import resize, resized_size
from mrcnn_jax.run_length_masks import decode_counts
from mrcnn_jax.structures import DatasetInfo, Example

STRIDE = 32
"""Sides of padded images are multiples of this, the coarsest stride that the pyramid halves exactly."""


def decode_record(record: Record) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes a stored image to RGB; InputError names it."""
    name = f"image {record.image_id} ({record.file_name})"
    return decode_image(record.image, name, upright=record.upright)


def is_portrait(sizes: Int[np.ndarray, "N 2"]) -> Bool[np.ndarray, "N"]:
    """Returns which images are higher than wide; square ones count as landscape."""
    return sizes[:, 0] > sizes[:, 1]


def padded_size(config: DataConfig, portrait: bool) -> tuple[int, int]:
    """Returns height and width of padded training images: one size for landscape and one for portrait."""
    edges = max(*config.short_edge, config.short_edge_test), config.long_edge
    short, long = (_round_up(edge, STRIDE) for edge in edges)
    return (long, short) if portrait else (short, long)


def inference_sizes(
    height: int, width: int, config: DataConfig, conventions: Conventions = OURS
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the resized and the padded height and width of an image at inference."""
    size = resized_size(height, width, config.short_edge_test, config.long_edge, conventions.size_rounding)
    if not config.padding_divisor:
        return size, padded_size(config, height > width)
    return size, tuple(_round_up(side, config.padding_divisor) for side in size)


def image_type(conventions: Conventions) -> type[np.uint8] | type[np.float32]:
    """Returns the type of padded images: float32 if resizing does not round to whole levels."""
    return np.float32 if conventions.resize == "bilinear" else np.uint8


def resize_and_pad(
    image: UInt8[np.ndarray, "h w 3"],
    size: tuple[int, int],
    padded: tuple[int, int],
    conventions: Conventions = OURS,
) -> UInt8[np.ndarray, "H W 3"] | Float[np.ndarray, "H W 3"]:
    """Resizes an image into the upper left corner of a padded one; levels are 0 to 255 in either type."""
    canvas = np.zeros((*padded, 3), image_type(conventions))
    resize(image, *size, conventions.resize, out=canvas[: size[0], : size[1]])
    return canvas


def crop_mask(
    rle: str, height: int, width: int, box: Float[np.ndarray, "4"], size: int
) -> UInt8[np.ndarray, "M M"]:
    """Samples a mask at the centres of size x size cells of a box (nearest pixel; 0 outside the image).

    Each pixel is looked up in the run-length code, so that the cost does not grow with the image.
    """
    ends = np.cumsum(decode_counts(rle))
    steps = (np.arange(size) + 0.5) / size
    x = np.floor(box[0] + steps * (box[2] - box[0])).astype(np.int64)
    y = np.floor(box[1] + steps * (box[3] - box[1])).astype(np.int64)
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
    run = np.searchsorted(ends, x.clip(0, width - 1) * height + y.clip(0, height - 1)[:, None], side="right")
    return (run % 2 * inside).astype(np.uint8)


def training_example(
    record: Record,
    info: DatasetInfo,
    config: DataConfig,
    random: np.random.Generator,
    masks: bool = True,
    conventions: Conventions = OURS,
) -> Example:
    """Makes an augmented training example of a record: random short edge, random horizontal flip.

    Args:
        masks: False leaves all masks zero, for a model without a mask branch.
    """
    short_edge = int(random.choice(config.short_edge))
    flip = config.flip and random.random() < 0.5
    image = decode_record(record)
    size = resized_size(*image.shape[:2], short_edge, config.long_edge, conventions.size_rounding)
    padded = padded_size(config, image.shape[0] > image.shape[1])
    if flip:
        image = cv2.flip(image, 1)  # a view with its columns backwards would be copied pixel by pixel
    objects = _object_slots(record, len(info.keypoint_names), config, np.divide(size, image.shape[:2]), masks)
    if flip:
        _flip_in_place(objects, size[1], info.keypoint_flip)
    return Example(resize_and_pad(image, size, padded, conventions), np.array(size, np.int32), **objects)


def _object_slots(
    record: Record, num_keypoints: int, config: DataConfig, scale: Float[np.ndarray, "2"], masks: bool
) -> dict[str, np.ndarray]:
    """Returns the fields of the objects in fixed shapes; ``scale``: of heights and widths."""
    objects, slots, side = record.objects, config.max_objects, config.mask_size
    # of too many objects the largest are kept: small ones are the hardest to tell from background
    largest = np.sort(np.argsort(-np.asarray(objects.areas), kind="stable")[:slots])
    objects = Objects(*(field[largest] for field in objects._replace(rles=np.array(objects.rles, object))))
    objects = objects._replace(boxes=clip_far_boxes(objects.boxes, record.height, record.width))
    count, scale = len(largest), scale[::-1]
    crops = np.zeros((slots, side, side), np.uint8)
    for slot in np.flatnonzero(~objects.crowd) if masks else ():
        crops[slot] = crop_mask(
            objects.rles[slot], record.height, record.width, objects.boxes[slot], side
        )
    positions, visibility = objects.keypoints[..., :2], objects.keypoints[..., 2:]
    points = np.where(visibility > 0, np.concatenate([positions * scale, visibility], axis=-1), 0)

    def fill(values: np.ndarray, dtype: type) -> np.ndarray:
        array = np.zeros((slots, *values.shape[1:]), dtype)
        array[:count] = values
        return array

    return {
        "boxes": fill(objects.boxes * np.tile(scale, 2), np.float32),
        "classes": fill(objects.classes, np.int32),
        "valid": np.arange(slots) < count,
        "crowd": fill(objects.crowd, bool),
        "masks": crops,
        "has_mask": fill(objects.rles != "", bool),
        "keypoints": fill(points, np.float32) if num_keypoints else np.zeros((slots, 0, 3), np.float32),
    }


def clip_far_boxes(boxes: Float[np.ndarray, "n 4"], height: int, width: int) -> Float[np.ndarray, "n 4"]:
    """Clips boxes that extend more than a pixel beyond an image of this size; others stay as annotated."""
    clipped = boxes.clip(0, [width, height, width, height])
    return np.where(np.abs(boxes - clipped).max(axis=1, keepdims=True, initial=0) > 1, clipped, boxes)


def _flip_in_place(objects: dict[str, np.ndarray], width: int, keypoint_flip: tuple[int, ...]) -> None:
    """Mirrors the objects of a resized image of this width."""
    boxes, masks, keypoints = (objects[name][objects["valid"]] for name in ("boxes", "masks", "keypoints"))
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    keypoints = keypoints[:, list(keypoint_flip)]
    keypoints[..., 0] = np.where(keypoints[..., 2] > 0, width - keypoints[..., 0], 0)
    count = len(boxes)
    objects["boxes"][:count], objects["masks"][:count] = boxes, masks[..., ::-1]
    objects["keypoints"][:count] = keypoints


def _round_up(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor
