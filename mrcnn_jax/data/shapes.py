"""The embedded data set: textured shapes and jointed puppets that hide one another, drawn from a seed.

A class shows in the outline alone: colours and textures are drawn without regard to it. Masks are exact for the visible
part of an object, so a RoI operation that is a pixel off, or a blurred mask head, costs mask AP at the high overlaps.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float
from numpy.random import Generator
from pycocotools import mask as coco_mask

from mrcnn_jax.data import dataset as records
from mrcnn_jax.data.dataset import Objects, Record
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo

SPLITS = ("train", "validation")

_DRAWING = 3  # counts changes of the drawing below, so that a set drawn by older code is not taken for the same
_SUPERSAMPLING = 4  # subpixels a side when an outline is filled
_MIN_VISIBLE_PIXELS = 100
_MIN_VISIBLE_SHARE = 0.5
_EMPTY_IMAGES = 0.04  # share of images that show a background and nothing else


@dataclasses.dataclass(frozen=True)
class ShapesConfig:
    """What to draw. Sizes are pixels: about the longest extent of an object before it is turned.

    Raises InputError for a value out of range.
    """

    train_images: int = 2000
    validation_images: int = 200
    seed: int = 0
    image_sizes: tuple[tuple[int, int], ...] = ((128, 128), (128, 160), (160, 128))  # (height, width), equally likely
    min_size: float = 18.0
    max_size: float = 90.0
    max_objects: int = 5
    kinds: tuple[str, ...] = ()
    """Which there are; all by default."""

    def __post_init__(self):
        for field, least in (("train_images", 1), ("validation_images", 1), ("seed", 0)):
            if getattr(self, field) < least:
                raise InputError(f"shapes: {field} is {getattr(self, field)}, but must be {least} or more.")
        if not self.image_sizes or min(map(min, self.image_sizes)) < 32:
            raise InputError(f"shapes: image_sizes is {self.image_sizes}, but must be (height, width) pairs over 31.")
        if not 10 <= self.min_size <= self.max_size:
            given = f"min_size {self.min_size} and max_size {self.max_size}"
            raise InputError(f"shapes: {given} are given, but 10 <= min_size <= max_size must hold.")
        if not 1 <= self.max_objects <= 100:
            raise InputError(f"shapes: max_objects is {self.max_objects}, but must be between 1 and 100.")
        names = [kind.name for kind in KINDS]
        if unknown := [name for name in self.kinds if name not in names]:
            raise InputError(f"shapes: kinds has {unknown[0]}, but must be of {', '.join(names)}.")

    @property
    def drawn(self) -> "tuple[Kind, ...]":
        """The classes that there are."""
        return tuple(kind for kind in KINDS if not self.kinds or kind.name in self.kinds)

    @property
    def info(self) -> DatasetInfo:
        """What the set says of itself."""
        drawn = self.drawn
        return INFO._replace(
            category_ids=tuple(kind.category_id for kind in drawn),
            category_names=tuple(kind.name for kind in drawn),
            keypoint_classes=tuple(index for index, kind in enumerate(drawn) if kind.name == "puppet"),
        )

    def images(self, split: str) -> int:
        """Number of images of a split; raises InputError for a split other than train and validation."""
        if split not in SPLITS:
            raise InputError(f"shapes: split {split!r} does not exist, the splits are {' and '.join(SPLITS)}.")
        return self.train_images if split == "train" else self.validation_images


# --- Outlines: contours in a frame of side 1 around (0, 0), x to the right, y down ---------------------------------

KEYPOINTS = ("head", "left_elbow", "right_elbow", "left_hand", "right_hand", "left_foot", "right_foot")
_NO_KEYPOINTS = np.zeros((0, 2))


class Outline(NamedTuple):
    """The union of ``parts`` less the ``holes``; keypoints [J, 2], or [0, 2] for classes without."""

    parts: Sequence[Float[np.ndarray, "_ 2"]]
    holes: Sequence[Float[np.ndarray, "_ 2"]] = ()
    keypoints: Float[np.ndarray, "_ 2"] = _NO_KEYPOINTS


def _unit(angle) -> Float[np.ndarray, "_ 2"]:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


_CIRCLE = 0.5 * _unit(np.linspace(0, 2 * np.pi, 64, endpoint=False))


def _capsule(start, end, radius: float) -> Float[np.ndarray, "_ 2"]:
    """All points within ``radius`` of a segment; a disk where both ends are one point."""
    along = np.arctan2(end[1] - start[1], end[0] - start[0])
    cap = radius * _unit(along + np.linspace(-np.pi / 2, np.pi / 2, 12))
    return np.concatenate([end + cap, start - cap])


def _disk(rng: Generator) -> Outline:
    return Outline([_CIRCLE * (1, rng.uniform(0.75, 1))])


def _rectangle(rng: Generator) -> Outline:
    return Outline([np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]) * (1, rng.uniform(0.55, 1))])


def _triangle(rng: Generator) -> Outline:
    return Outline([np.array([(rng.uniform(-0.3, 0.3), -0.5), (0.5, 0.45), (-0.5, 0.45)])])


def _star(rng: Generator) -> Outline:
    radii = np.tile([0.55, rng.uniform(0.22, 0.27)], 5)
    return Outline([radii[:, None] * _unit(np.arange(10) * np.pi / 5)])


def _ring(rng: Generator) -> Outline:
    squeeze = (1, rng.uniform(0.8, 1))
    return Outline([_CIRCLE * squeeze], holes=[_CIRCLE * squeeze * rng.uniform(0.45, 0.62)])


def _cross(rng: Generator) -> Outline:
    half = rng.uniform(0.11, 0.17)
    bar = np.array([(-0.5, -half), (0.5, -half), (0.5, half), (-0.5, half)])
    return Outline([bar, bar[:, ::-1] * (rng.uniform(0.8, 1), 1)])


def _puppet(rng: Generator) -> Outline:
    """A figure that faces the viewer: head up, its left limbs are on the viewer's right.

    Left and right thus differ in arrangement, not in looks, and trade places in a mirror as those of people do.
    """
    head = np.array([0.0, -0.37])
    neck, trunk = _capsule((0, -0.26), (0, -0.15), 0.06), _capsule((0, -0.12), (0, 0.07), 0.125)
    parts = [_capsule(head, head, 0.125), neck, trunk]
    elbows, hands, feet = [], [], []
    for side in (1, -1):  # left, then right; angles count outward from straight down
        shoulder, hip = np.array([side * 0.1, -0.16]), np.array([side * 0.065, 0.1])
        lift = rng.uniform(0.3, 2.3)
        elbow = shoulder + 0.19 * _unit(np.pi / 2 - side * lift)
        hand = elbow + 0.18 * _unit(np.pi / 2 - side * np.clip(lift + rng.uniform(-1.2, 1.2), 0.0, 2.8))
        spread = rng.uniform(0.05, 0.7)
        knee = hip + 0.2 * _unit(np.pi / 2 - side * spread)
        foot = knee + 0.2 * _unit(np.pi / 2 - side * (spread + rng.uniform(-0.5, 0.3)))
        parts += [_capsule(shoulder, elbow, 0.055), _capsule(elbow, hand, 0.05)]
        parts += [_capsule(hip, knee, 0.065), _capsule(knee, foot, 0.055)]
        elbows.append(elbow), hands.append(hand), feet.append(foot)
    return Outline(parts, keypoints=np.stack([head, *elbows, *hands, *feet]))


class Kind(NamedTuple):
    """A class: its outline, the smallest size at which it is told apart (times the config's), how far it may turn."""

    name: str
    category_id: int
    outline: Callable[[Generator], Outline]
    smallest: float = 1.0
    turn: float = 0.5


KINDS = (
    Kind("disk", 1, _disk),
    Kind("rectangle", 2, _rectangle),
    Kind("triangle", 4, _triangle, smallest=1.2),
    Kind("star", 5, _star, smallest=1.5),
    Kind("ring", 8, _ring, smallest=1.3),
    Kind("cross", 13, _cross, smallest=1.2),
    Kind("puppet", 21, _puppet, smallest=2.2),
)

INFO = DatasetInfo(
    name="shapes",
    category_ids=tuple(kind.category_id for kind in KINDS),  # gaps, as in COCO's, so that the mapping is always in use
    category_names=tuple(kind.name for kind in KINDS),
    keypoint_names=KEYPOINTS,
    keypoint_flip=(0, 2, 1, 4, 3, 6, 5),
    skeleton=((0, 1), (0, 2), (1, 3), (2, 4), (0, 5), (0, 6)),
    keypoint_classes=(6,),
    keypoint_sigmas=(0.035, 0.072, 0.072, 0.062, 0.062, 0.089, 0.089),  # COCO's of ear, elbows, wrists and ankles
)


# --- Objects: outlines placed in an image ----------------------------------------------------------------------------


class Sprite(NamedTuple):
    """An object before it is painted, cut off at the border of the image."""

    class_index: int
    window: tuple[slice, slice]  # rows and columns of the image
    coverage: Float[np.ndarray, "h w"]  # of each pixel of the window, 0..1
    full_area: int  # pixels, with those outside the image
    keypoints: Float[np.ndarray, "_ 2"]  # x, y in the image

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        return self.coverage >= 0.5


def _fill(outline: Outline, corner: np.ndarray, height: int, width: int) -> Float[np.ndarray, "h w"]:
    """Coverage of each pixel of the [height, width] patch whose top left corner is ``corner`` (x, y)."""
    patch = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
    shift = 4  # bits of fraction; OpenCV puts the centre of subpixel i at i, hence the half below
    for contours, value in ((outline.parts, 255), (outline.holes, 0)):
        for contour in contours:
            points = (contour - corner) * _SUPERSAMPLING - 0.5
            cv2.fillPoly(patch, [np.rint(points * 2**shift).astype(np.int32)], value, shift=shift)
    return cv2.resize(patch, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _place(rng: Generator, config: ShapesConfig, height: int, width: int) -> Sprite:
    """An object of random class, size, turn and place, its centre inside the image."""
    class_index = int(rng.integers(len(config.drawn)))
    kind = config.drawn[class_index]
    size = np.exp(rng.uniform(np.log(min(config.min_size * kind.smallest, config.max_size)), np.log(config.max_size)))
    angle = rng.uniform(-kind.turn, kind.turn)
    turn = size * _unit(np.array([angle, angle + np.pi / 2]))
    centre = rng.uniform(0.06, 0.94, 2) * (width, height)

    parts, holes, keypoints = kind.outline(rng)
    outline = Outline([p @ turn + centre for p in parts], [p @ turn + centre for p in holes], keypoints @ turn + centre)
    points = np.concatenate(outline.parts)
    low, high = np.floor(points.min(0)).astype(int) - 1, np.ceil(points.max(0)).astype(int) + 1
    coverage = _fill(outline, low, high[1] - low[1], high[0] - low[0])

    (x1, y1), (x2, y2) = np.maximum(low, 0), np.minimum(high, (width, height))
    inside = coverage[y1 - low[1] : y2 - low[1], x1 - low[0] : x2 - low[0]]
    area = np.count_nonzero(coverage >= 0.5)
    return Sprite(class_index, np.s_[y1:y2, x1:x2], inside, area, outline.keypoints)


def _arrange(rng: Generator, config: ShapesConfig, height: int, width: int) -> list[tuple[Sprite, np.ndarray]]:
    """Objects, nearest first, each with the mask [height, width] of what shows of it.

    One of which too little would show beside those nearer is left out of the picture: nothing in it is unlabelled.
    """
    attempts = 0 if rng.random() < _EMPTY_IMAGES else rng.integers(1, config.max_objects + 1)
    taken = np.zeros((height, width), bool)
    arranged = []
    for _ in range(attempts):
        sprite = _place(rng, config, height, width)
        shown = np.zeros_like(taken)
        shown[sprite.window] = sprite.mask & ~taken[sprite.window]
        if np.count_nonzero(shown) >= max(_MIN_VISIBLE_PIXELS, _MIN_VISIBLE_SHARE * sprite.full_area):
            arranged.append((sprite, shown))
            taken |= shown
    return arranged


# --- Paint: backgrounds and objects alike, whatever the class --------------------------------------------------------


def _texture(
    rng: Generator, height: int, width: int, colour: Float[np.ndarray, "3"], strength: float
) -> Float[np.ndarray, "h w 3"]:
    """A colour (0..255) with shading, smooth noise at three scales and sometimes stripes, ``strength`` deep in all."""
    paint = np.empty((height, width, 3), np.float32)
    paint[:] = colour
    for cell, share in ((2 * max(height, width), 0.8), (24, 0.5), (7, 0.3)):
        grid = rng.standard_normal((height // cell + 2, width // cell + 2, 3), np.float32)
        grid += rng.standard_normal((*grid.shape[:2], 1), np.float32)  # light and dark vary more than hue
        paint += strength * share * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.35:
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, 24)
        across = np.cos(angle) * np.arange(width)[None, :] + np.sin(angle) * np.arange(height)[:, None]
        wave = np.sin(across * (2 * np.pi / period)).astype(np.float32)
        paint += wave[..., None] * (strength * rng.uniform(-1, 1, 3)).astype(np.float32)
    return paint


def _contrasting_colour(rng: Generator, behind: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "3"]:
    """Of a few random colours, the one farthest from what it will lie on and beside: outlines can be seen."""
    colours = rng.uniform(20, 235, (6, 3))
    sample = behind[:: -(-behind.shape[0] // 8), :: -(-behind.shape[1] // 8)].reshape(-1, 3)  # 64 pixels tell enough
    distances = np.linalg.norm(colours[:, None] - sample, axis=-1)
    return colours[np.argmax(np.quantile(distances, 0.1, axis=1))]


def _paint(rng: Generator, arranged: list[tuple[Sprite, np.ndarray]], height: int, width: int) -> np.ndarray:
    """The picture, uint8 [height, width, 3], RGB: from the background to the nearest object."""
    picture = _texture(rng, height, width, rng.uniform(40, 215, 3), strength=rng.uniform(8, 32))
    for sprite, _ in reversed(arranged):
        behind = picture[sprite.window]
        colour = _contrasting_colour(rng, behind)
        paint = _texture(rng, *sprite.coverage.shape, colour, strength=rng.uniform(10, 26))
        behind += sprite.coverage[..., None] * (paint - behind)
        np.clip(behind, 0, 255, out=behind)
    return np.clip(picture, 0, 255).astype(np.uint8)


# --- Records ---------------------------------------------------------------------------------------------------------


def _keypoints(sprite: Sprite, shown: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "J 3"]:
    """x, y, visibility: 2 where the object itself shows, 1 where another hides it, 0 (x = y = 0) outside the image."""
    keypoints = np.zeros((len(KEYPOINTS), 3), np.float32)
    height, width = shown.shape
    for j, (x, y) in enumerate(sprite.keypoints):
        if 0 <= x < width and 0 <= y < height:
            keypoints[j] = x, y, 2 if shown[int(y), int(x)] else 1
    return keypoints


def _objects(arranged: list[tuple[Sprite, np.ndarray]], image_id: int) -> Objects:
    boxes, rles = [], []
    for _, shown in arranged:
        columns, rows = np.flatnonzero(shown.any(0)), np.flatnonzero(shown.any(1))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        rles.append(coco_mask.encode(np.asfortranarray(shown, np.uint8))["counts"].decode("ascii"))
    n = len(arranged)
    return Objects(
        ids=image_id * 100 + np.arange(n, dtype=np.int64),  # at most 100 objects an image, and no id is 0
        boxes=np.array(boxes, np.float64).reshape(n, 4),
        classes=np.array([sprite.class_index for sprite, _ in arranged], np.int32),
        areas=np.array([np.count_nonzero(shown) for _, shown in arranged], np.float64),
        crowd=np.zeros(n, bool),
        rles=rles,
        keypoints=np.array([_keypoints(*a) for a in arranged], np.float32).reshape(n, len(KEYPOINTS), 3),
    )


def _draw(config: ShapesConfig, split: str, index: int) -> Record:
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    height, width = config.image_sizes[rng.integers(len(config.image_sizes))]
    arranged = _arrange(rng, config, height, width)
    picture = _paint(rng, arranged, height, width)
    png = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
    image_id = index + 1
    name = f"{split}_{image_id:06d}.png"
    return Record(png.tobytes(), image_id, name, height, width, _objects(arranged, image_id))


def generate(config: ShapesConfig, split: str) -> Iterator[Record]:
    """The records of a split, in order, images as PNG. More images never change those before them.

    Raises InputError for a split other than train and validation.
    """
    return (_draw(config, split, index) for index in range(config.images(split)))


def prepare(directory: str | Path, config: ShapesConfig, *, progress: bool = False) -> bool:
    """Write both splits to ``directory``, unless it holds this very set already. Says whether it wrote.

    A set of another config, drawing or description is replaced: its config can bring it back. Raises InputError where
    the directory holds anything else.
    """
    directory = Path(directory)
    marker = directory / "shapes.json"
    wanted = json.dumps({"drawing": _DRAWING, **dataclasses.asdict(config), "info": config.info._asdict()}, indent=1)
    ours = marker.exists()
    if ours and marker.read_text() == wanted:
        return False
    splits = {split: generate(config, split) for split in SPLITS}
    records.write(directory, config.info, splits, progress=progress, overwrite=ours)
    marker.write_text(wanted)
    return True
