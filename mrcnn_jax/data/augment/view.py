"""Views: the geometry of an augmented image, sampled once for its pixels, boxes, masks and keypoints."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from mrcnn_jax.config import OURS, AugmentationConfig, Conventions, DataConfig
from mrcnn_jax.data.resize import resized_size
from mrcnn_jax.data.transforms import resize_and_pad

FILL = (124, 116, 104)
"""Colour of what a view shows beyond the image: the mean of ImageNet."""

_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}


@dataclass(frozen=True)
class View:
    """Part of an image that is cut out, mirrored, turned by quarters and resized, in this order.

    A rotation comes first of all where the part is enlarged, else last, as it takes time by the pixel.
    """

    window: tuple[int, int, int, int]
    """Top, left, bottom and right of the part, in pixels of the image."""
    resized: tuple[int, int]
    """Height and width of the resized part, before it is turned."""
    mirrored: bool = False
    turns: int = 0
    """Quarter turns counterclockwise."""
    angle: float = 0.0
    """Rotation counterclockwise about the centre, in degrees."""

    @property
    def rotates_first(self) -> bool:
        """Returns whether the part is rotated at its size in the image."""
        return bool(np.prod(self.scale) > 1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return self.resized[::-1] if self.turns % 2 else self.resized

    @property
    def scale(self) -> Float[np.ndarray, "2"]:
        """Factors of widths and heights of the image, before it is turned."""
        top, left, bottom, right = self.window
        return np.array([self.resized[1] / (right - left), self.resized[0] / (bottom - top)])

    @property
    def matrix(self) -> Float[np.ndarray, "3 3"]:
        """Map of (x, y, 1) in the image to the result, in continuous coordinates."""
        top, left, bottom, right = self.window
        height, width = self.resized
        matrix = np.array([[1.0, 0, -left], [0, 1.0, -top], [0, 0, 1]])
        if self.rotates_first:
            matrix = _rotation(self.angle, bottom - top, right - left) @ matrix
        matrix = np.diag([*self.scale, 1.0]) @ matrix
        if self.mirrored:
            matrix = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]) @ matrix
        for _ in range(self.turns % 4):
            matrix = np.array([[0, 1.0, 0], [-1, 0, width], [0, 0, 1]]) @ matrix
            height, width = width, height
        return matrix if self.rotates_first else _rotation(self.angle, height, width) @ matrix


def _rotation(angle: float, height: int, width: int) -> Float[np.ndarray, "3 3"]:
    """Returns the rotation counterclockwise about the centre of an image."""
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn, centre = np.eye(3), np.eye(3)
    turn[:2, :2] = [[cosine, sine], [-sine, cosine]]
    centre[:2, 2] = width / 2, height / 2
    return centre @ turn @ np.linalg.inv(centre)


def sample_view(
    random: np.random.Generator, height: int, width: int, boxes: Float[np.ndarray, "n 4"],
    padded: tuple[int, int], config: DataConfig, conventions: Conventions = OURS,
) -> View:  # fmt: skip
    """Samples a view of an image that fits a padded size: flips, turns, a crop, scale jitter and a rotation.

    Scale jitter multiplies the size of the image, or of its crop, by a random factor; what then exceeds the
    padded size is cropped at a random position.

    Args:
        random: source of random numbers.
        height, width: of the image, in pixels.
        boxes: of its objects, one of which a crop is sampled around.
        padded: height and width that are not exceeded.
        config: sizes and augmentation.
        conventions: how sizes are rounded.
    """
    augment = config.augment
    short_edge = int(random.choice(config.short_edge))
    mirrored = augment.flip > 0 and random.random() < augment.flip
    turns = 0
    if augment.vertical_flip and random.random() < augment.vertical_flip:
        mirrored, turns = not mirrored, 2
    if augment.quarter_turns:
        turns = (turns + int(random.integers(4))) % 4
    top, left, bottom, right = 0, 0, height, width
    if augment.crop and random.random() < augment.crop:
        top, left, bottom, right = _sample_crop(random, height, width, boxes, augment)
    resized = resized_size(bottom - top, right - left, short_edge, config.long_edge,
                           conventions.size_rounding)  # fmt: skip
    room = padded[::-1] if turns % 2 else padded  # before the turn
    factor = min(1.0, room[0] / resized[0], room[1] / resized[1])
    low, high = augment.scale_jitter
    factor *= low if low == high else random.uniform(low, high)
    if factor != 1:
        scaled = [max(1, round(side * factor)) for side in resized]
        top, bottom = _sample_part(random, top, bottom, room[0] / scaled[0])
        left, right = _sample_part(random, left, right, room[1] / scaled[1])
        resized = min(scaled[0], room[0]), min(scaled[1], room[1])
    angle = random.uniform(-augment.rotation, augment.rotation) if augment.rotation else 0.0
    return View((top, left, bottom, right), resized, mirrored, turns, angle)


def _sample_part(random: np.random.Generator, start: int, end: int, share: float) -> tuple[int, int]:
    """Samples the place of a share of a range; all of it if the share is 1 or more."""
    length = max(1, round(share * (end - start))) if share < 1 else end - start
    first = start + int(random.integers(end - start - length + 1)) if share < 1 else start
    return first, first + length


def _sample_crop(
    random: np.random.Generator, height: int, width: int, boxes: Float[np.ndarray, "n 4"],
    augment: AugmentationConfig,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Samples a window that holds the centre of one of the objects, if there are any."""
    centre = None
    if len(boxes):
        x1, y1, x2, y2 = boxes[random.integers(len(boxes))]
        centre = int(np.clip((y1 + y2) / 2, 0, height - 1)), int(np.clip((x1 + x2) / 2, 0, width - 1))
    ranges = []
    for axis, side in enumerate((height, width)):
        length = max(1, round(side * random.uniform(*augment.crop_size)))
        low, high = 0, side - length
        if centre is not None:
            low, high = max(low, centre[axis] - length + 1), min(high, centre[axis])
        first = int(random.integers(low, high + 1))
        ranges.append((first, first + length))
    (top, bottom), (left, right) = ranges
    return top, left, bottom, right


def render_view(
    image: UInt8[np.ndarray, "h w 3"], view: View, padded: tuple[int, int], conventions: Conventions = OURS
) -> UInt8[np.ndarray, "H W 3"] | Float[np.ndarray, "H W 3"]:
    """Renders the view of an image in the upper left corner of a padded one."""
    top, left, bottom, right = view.window
    part = image[top:bottom, left:right]
    if view.angle and view.rotates_first:
        part = _rotate(part, view.angle)
    if view.mirrored:
        part = cv2.flip(part, 1)  # a view with its columns backwards would be copied pixel by pixel
    if view.turns % 4:
        part = cv2.rotate(part, _TURNS[view.turns % 4])
    canvas = resize_and_pad(part, view.size, padded, conventions)
    if view.angle and not view.rotates_first:
        height, width = view.size
        canvas[:height, :width] = _rotate(canvas[:height, :width], view.angle)
    return canvas


def _rotate(image: np.ndarray, angle: float) -> np.ndarray:
    height, width = image.shape[:2]
    matrix = opencv_matrix(_rotation(angle, height, width))
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=FILL)


def opencv_matrix(matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "2 3"]:
    """Returns a map for OpenCV, whose coordinates count from the centre of the first pixel."""
    half = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    return (np.linalg.inv(half) @ matrix @ half)[:2]


def transform_points(
    matrix: Float[np.ndarray, "2 3"], x: Float[np.ndarray, "*x"], y: Float[np.ndarray, "*y"]
) -> Float[np.ndarray, "*s 2"]:
    """Maps points; x and y broadcast."""
    return np.stack([row[0] * x + row[1] * y + row[2] for row in matrix], axis=-1)
