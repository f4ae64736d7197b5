"""Drawing of the embedded data set: outlines of its classes, objects that hide one another, textures.

A class shows in the outline alone: colours and textures are drawn without regard to it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float
from numpy.random import Generator

VERSION = 3
"""Number of the drawing's version, stored with a set so that one drawn by older code is replaced."""

MIN_VISIBLE_SHARE = 0.5
_MIN_VISIBLE_PIXELS = 100
_SUPERSAMPLING = 4  # subpixels a side when an outline is filled
_EMPTY_IMAGES = 0.04  # share of images without objects

KEYPOINTS = ("head", "left_elbow", "right_elbow", "left_hand", "right_hand", "left_foot", "right_foot")
_NO_KEYPOINTS = np.zeros((0, 2))


class Outline(NamedTuple):
    """The union of ``parts`` less the ``holes``, contours in a frame of side 1 around (0, 0), y down.

    Classes without keypoints have none.
    """

    parts: Sequence[Float[np.ndarray, "_ 2"]]
    holes: Sequence[Float[np.ndarray, "_ 2"]] = ()
    keypoints: Float[np.ndarray, "_ 2"] = _NO_KEYPOINTS


def unit_vectors(angle) -> Float[np.ndarray, "_ 2"]:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


CIRCLE = 0.5 * unit_vectors(np.linspace(0, 2 * np.pi, 64, endpoint=False))


def _capsule(start, end, radius: float) -> Float[np.ndarray, "_ 2"]:
    """Returns the contour of all points within ``radius`` of a segment; a disk if both ends are one point."""
    along = np.arctan2(end[1] - start[1], end[0] - start[0])
    cap = radius * unit_vectors(along + np.linspace(-np.pi / 2, np.pi / 2, 12))
    return np.concatenate([end + cap, start - cap])


def _disk(rng: Generator) -> Outline:
    return Outline([CIRCLE * (1, rng.uniform(0.75, 1))])


def _rectangle(rng: Generator) -> Outline:
    square = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    return Outline([square * (1, rng.uniform(0.55, 1))])


def _triangle(rng: Generator) -> Outline:
    return Outline([np.array([(rng.uniform(-0.3, 0.3), -0.5), (0.5, 0.45), (-0.5, 0.45)])])


def _star(rng: Generator) -> Outline:
    radii = np.tile([0.55, rng.uniform(0.22, 0.27)], 5)
    return Outline([radii[:, None] * unit_vectors(np.arange(10) * np.pi / 5)])


def _ring(rng: Generator) -> Outline:
    squeeze = (1, rng.uniform(0.8, 1))
    return Outline([CIRCLE * squeeze], holes=[CIRCLE * squeeze * rng.uniform(0.45, 0.62)])


def _cross(rng: Generator) -> Outline:
    half = rng.uniform(0.11, 0.17)
    bar = np.array([(-0.5, -half), (0.5, -half), (0.5, half), (-0.5, half)])
    return Outline([bar, bar[:, ::-1] * (rng.uniform(0.8, 1), 1)])


def puppet(rng: Generator) -> Outline:
    """Returns a figure that faces the viewer: head up, its left limbs on the viewer's right.

    Left and right differ in arrangement, not in looks, and trade places in a mirror as those of people do.
    """
    head = np.array([0.0, -0.37])
    neck, trunk = _capsule((0, -0.26), (0, -0.15), 0.06), _capsule((0, -0.12), (0, 0.07), 0.125)
    parts = [_capsule(head, head, 0.125), neck, trunk]
    elbows, hands, feet = [], [], []
    for side in (1, -1):  # left, then right; angles count outward from straight down
        shoulder, hip = np.array([side * 0.1, -0.16]), np.array([side * 0.065, 0.1])
        lift = rng.uniform(0.3, 2.3)
        elbow = shoulder + 0.19 * unit_vectors(np.pi / 2 - side * lift)
        bend = np.clip(lift + rng.uniform(-1.2, 1.2), 0.0, 2.8)
        hand = elbow + 0.18 * unit_vectors(np.pi / 2 - side * bend)
        spread = rng.uniform(0.05, 0.7)
        knee = hip + 0.2 * unit_vectors(np.pi / 2 - side * spread)
        foot = knee + 0.2 * unit_vectors(np.pi / 2 - side * (spread + rng.uniform(-0.5, 0.3)))
        parts += [_capsule(shoulder, elbow, 0.055), _capsule(elbow, hand, 0.05)]
        parts += [_capsule(hip, knee, 0.065), _capsule(knee, foot, 0.055)]
        elbows.append(elbow), hands.append(hand), feet.append(foot)
    return Outline(parts, keypoints=np.stack([head, *elbows, *hands, *feet]))


class Kind(NamedTuple):
    """A class of objects."""

    name: str
    category_id: int
    outline: Callable[[Generator], Outline]
    smallest: float = 1.0  # smallest size at which it is recognised, times the configuration's
    turn: float = 0.5  # largest rotation in radians


KINDS = (
    Kind("disk", 1, _disk),
    Kind("rectangle", 2, _rectangle),
    Kind("triangle", 4, _triangle, smallest=1.2),
    Kind("star", 5, _star, smallest=1.5),
    Kind("ring", 8, _ring, smallest=1.3),
    Kind("cross", 13, _cross, smallest=1.2),
    Kind("puppet", 21, puppet, smallest=2.2),
)


class Scene(NamedTuple):
    """Parameters of the random objects in an image; sizes in pixels."""

    kinds: tuple[Kind, ...]
    min_size: float
    max_size: float
    max_objects: int


class Sprite(NamedTuple):
    """An object before painting, cut off at the border of the image."""

    class_index: int
    window: tuple[slice, slice]  # rows and columns of the image
    coverage: Float[np.ndarray, "h w"]  # of each pixel of the window, 0..1
    full_area: int  # pixels, with those outside the image
    keypoints: Float[np.ndarray, "_ 2"]  # x, y in the image

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        return self.coverage >= 0.5


def fill(outline: Outline, corner: np.ndarray, height: int, width: int) -> Float[np.ndarray, "h w"]:
    """Returns the covered share of each pixel of a patch whose top left corner is ``corner`` (x, y)."""
    patch = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
    shift = 4  # bits of fraction; OpenCV puts the centre of subpixel i at i, hence the half below
    for contours, value in ((outline.parts, 255), (outline.holes, 0)):
        for contour in contours:
            points = (contour - corner) * _SUPERSAMPLING - 0.5
            cv2.fillPoly(patch, [np.rint(points * 2**shift).astype(np.int32)], value, shift=shift)
    return cv2.resize(patch, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _place(rng: Generator, scene: Scene, height: int, width: int) -> Sprite:
    """Returns an object of random class, size, rotation and position, its centre inside the image."""
    class_index = int(rng.integers(len(scene.kinds)))
    kind = scene.kinds[class_index]
    smallest = min(scene.min_size * kind.smallest, scene.max_size)
    size = np.exp(rng.uniform(np.log(smallest), np.log(scene.max_size)))
    angle = rng.uniform(-kind.turn, kind.turn)
    turn = size * unit_vectors(np.array([angle, angle + np.pi / 2]))
    centre = rng.uniform(0.06, 0.94, 2) * (width, height)

    parts, holes, keypoints = kind.outline(rng)
    parts, holes = ([contour @ turn + centre for contour in contours] for contours in (parts, holes))
    outline = Outline(parts, holes, keypoints @ turn + centre)
    points = np.concatenate(outline.parts)
    low, high = np.floor(points.min(0)).astype(int) - 1, np.ceil(points.max(0)).astype(int) + 1
    coverage = fill(outline, low, high[1] - low[1], high[0] - low[0])

    (x1, y1), (x2, y2) = np.maximum(low, 0), np.minimum(high, (width, height))
    inside = coverage[y1 - low[1] : y2 - low[1], x1 - low[0] : x2 - low[0]]
    area = np.count_nonzero(coverage >= 0.5)
    return Sprite(class_index, np.s_[y1:y2, x1:x2], inside, area, outline.keypoints)


def arrange(rng: Generator, scene: Scene, height: int, width: int) -> list[tuple[Sprite, np.ndarray]]:
    """Returns objects, nearest first, each with the mask [height, width] of its visible part.

    An object that nearer ones would hide too much is left out of the picture, so nothing in it is unlabelled.
    """
    attempts = 0 if rng.random() < _EMPTY_IMAGES else rng.integers(1, scene.max_objects + 1)
    taken = np.zeros((height, width), bool)
    arranged = []
    for _ in range(attempts):
        sprite = _place(rng, scene, height, width)
        shown = np.zeros_like(taken)
        shown[sprite.window] = sprite.mask & ~taken[sprite.window]
        if np.count_nonzero(shown) >= max(_MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * sprite.full_area):
            arranged.append((sprite, shown))
            taken |= shown
    return arranged


def _texture(
    rng: Generator, height: int, width: int, colour: Float[np.ndarray, "3"], strength: float
) -> Float[np.ndarray, "h w 3"]:
    """Returns a colour (0..255) with noise and sometimes stripes of amplitude ``strength``."""
    texture = np.empty((height, width, 3), np.float32)
    texture[:] = colour
    for cell, share in ((2 * max(height, width), 0.8), (24, 0.5), (7, 0.3)):
        grid = rng.standard_normal((height // cell + 2, width // cell + 2, 3), np.float32)
        grid += rng.standard_normal((*grid.shape[:2], 1), np.float32)  # light and dark vary more than hue
        texture += strength * share * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.35:
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, 24)
        across = np.cos(angle) * np.arange(width)[None, :] + np.sin(angle) * np.arange(height)[:, None]
        wave = np.sin(across * (2 * np.pi / period)).astype(np.float32)
        texture += wave[..., None] * (strength * rng.uniform(-1, 1, 3)).astype(np.float32)
    return texture


def _contrasting_colour(rng: Generator, behind: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "3"]:
    """Returns, of a few random colours, the one farthest from those behind, so that outlines are visible."""
    colours = rng.uniform(20, 235, (6, 3))
    row, column = (-(-side // 8) for side in behind.shape[:2])  # of 64 pixels, which suffice
    sample = behind[::row, ::column].reshape(-1, 3)
    distances = np.linalg.norm(colours[:, None] - sample, axis=-1)
    return colours[np.argmax(np.quantile(distances, 0.1, axis=1))]


def paint(rng: Generator, arranged: list[tuple[Sprite, np.ndarray]], height: int, width: int) -> np.ndarray:
    """Paints an RGB picture, from the background to the nearest object."""
    picture = _texture(rng, height, width, rng.uniform(40, 215, 3), strength=rng.uniform(8, 32))
    for sprite, _ in reversed(arranged):
        behind = picture[sprite.window]
        colour = _contrasting_colour(rng, behind)
        texture = _texture(rng, *sprite.coverage.shape, colour, strength=rng.uniform(10, 26))
        behind += sprite.coverage[..., None] * (texture - behind)
        np.clip(behind, 0, 255, out=behind)
    return np.clip(picture, 0, 255).astype(np.uint8)
