"""From a stored image to arrays of fixed shape: decode, resize, mirror, pad, crop masks. NumPy and OpenCV, on the host."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from pycocotools import mask as coco_mask

from mrcnn_jax.config import OURS, Conventions, DataConfig
from mrcnn_jax.data.dataset import Record
from mrcnn_jax.data.resize import resize, resized_size
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import Batch, DatasetInfo

MULTIPLE = 32
"""Sides of padded images are multiples of the coarsest stride that the pyramid halves exactly."""


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """RGB pixels of an encoded image; gray becomes RGB, EXIF orientation is ignored as in COCO."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION) if data else None
    if image is None:
        raise InputError(f"cannot decode {name}: it must be a complete JPEG or PNG")
    return image


def decode_record(record: Record) -> UInt8[np.ndarray, "H W 3"]:
    """RGB pixels of a stored image; InputError names it."""
    return decode_image(record.image, f"image {record.image_id} ({record.file_name})")


def is_portrait(sizes: Int[np.ndarray, "N 2"]) -> Bool[np.ndarray, "N"]:
    """Which images are higher than wide; square ones count as landscape."""
    return sizes[:, 0] > sizes[:, 1]


def padded_size(config: DataConfig, portrait: bool) -> tuple[int, int]:
    """Height and width of the padded images of training: one size for landscape and one for portrait, and no other ever reaches the device."""
    short, long = (-(-edge // MULTIPLE) * MULTIPLE for edge in (max(*config.short_edge, config.short_edge_test), config.long_edge))
    return (long, short) if portrait else (short, long)


def inference_sizes(
    height: int, width: int, config: DataConfig, conventions: Conventions = OURS
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of an image at inference: height and width resized, and padded as ``config.padding_divisor`` says."""
    size = resized_size(height, width, config.short_edge_test, config.long_edge, conventions.size_rounding)
    divisor = config.padding_divisor
    return size, tuple(-(-side // divisor) * divisor for side in size) if divisor else padded_size(config, height > width)


def image_type(conventions: Conventions) -> type[np.uint8] | type[np.float32]:
    """What padded images are made of: float32 where resizing does not round to whole levels."""
    return np.float32 if conventions.resize == "bilinear" else np.uint8


def resize_and_pad(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], padded: tuple[int, int], conventions: Conventions = OURS
) -> UInt8[np.ndarray, "H W 3"] | Float[np.ndarray, "H W 3"]:
    """The image at a size in the upper left corner of a padded one. Levels are 0 to 255 in either type."""
    canvas = np.zeros((*padded, 3), image_type(conventions))
    resize(image, *size, conventions.resize, out=canvas[: size[0], : size[1]])
    return canvas


def decode_mask(rle: str, height: int, width: int) -> UInt8[np.ndarray, "H W"]:
    """Pixels of a compressed RLE's counts; an empty text, an object without a mask, gives zeros."""
    return coco_mask.decode({"size": [height, width], "counts": rle}) if rle else np.zeros((height, width), np.uint8)


def crop_mask(mask: UInt8[np.ndarray, "H W"], box: Float[np.ndarray, "4"], size: int) -> UInt8[np.ndarray, "size size"]:
    """The mask inside the box, read at the centres of size x size cells (nearest pixel; 0 outside the image)."""
    height, width = mask.shape
    steps = (np.arange(size) + 0.5) / size
    x = np.floor(box[0] + steps * (box[2] - box[0])).astype(np.int64)
    y = np.floor(box[1] + steps * (box[3] - box[1])).astype(np.int64)
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
    return mask[np.ix_(y.clip(0, height - 1), x.clip(0, width - 1))] * inside


def training_example(
    record: Record, info: DatasetInfo, config: DataConfig, random: np.random.Generator, masks: bool = True, conventions: Conventions = OURS
) -> Batch:
    """One image of a training batch, augmented; the arrays have no batch axis yet.

    ``masks``: False leaves all of them zero, for a model that learns none.
    """
    short_edge = int(random.choice(config.short_edge))
    mirror = config.flip and random.random() < 0.5
    image = decode_record(record)
    height, width = resized_size(*image.shape[:2], short_edge, config.long_edge, conventions.size_rounding)
    padded = padded_size(config, image.shape[0] > image.shape[1])
    if mirror:
        image = cv2.flip(image, 1)  # a view with its columns backwards would be copied pixel by pixel
    images = resize_and_pad(image, (height, width), padded, conventions)

    objects = record.objects
    # of too many, the largest stay: they are the ones that can be told from background at all
    chosen = np.sort(np.argsort(-np.asarray(objects.areas), kind="stable")[: config.max_objects])
    count, slots, side, joints = len(chosen), config.max_objects, config.mask_size, len(info.keypoint_names)
    boxes, crops = np.zeros((slots, 4), np.float32), np.zeros((slots, side, side), np.uint8)
    classes, crowd, keypoints = np.zeros(slots, np.int32), np.zeros(slots, bool), np.zeros((slots, joints, 3), np.float32)
    scale = np.array([width / image.shape[1], height / image.shape[0]])
    for slot, index in enumerate(chosen):
        box = objects.boxes[index]
        if masks and not objects.crowd[index]:
            crop = crop_mask(decode_mask(objects.rles[index], record.height, record.width), box, side)
            crops[slot] = crop[:, ::-1] if mirror else crop
        boxes[slot] = box * np.tile(scale, 2)
    classes[:count], crowd[:count] = objects.classes[chosen], objects.crowd[chosen]
    if joints and count:
        points = np.array(objects.keypoints[chosen], np.float32)
        labelled = points[..., 2:] > 0
        keypoints[:count] = np.where(labelled, np.concatenate([points[..., :2] * scale, points[..., 2:]], axis=-1), 0)
    if mirror:
        boxes[:count, [0, 2]] = width - boxes[:count, [2, 0]]
        if joints:
            keypoints = keypoints[:, list(info.keypoint_flip)]
            keypoints[..., 0] = np.where(keypoints[..., 2] > 0, width - keypoints[..., 0], 0)
    return Batch(
        images=images,
        sizes=np.array([height, width], np.int32),
        boxes=boxes,
        classes=classes,
        valid=np.arange(slots) < count,
        crowd=crowd,
        masks=crops,
        keypoints=keypoints,
    )
