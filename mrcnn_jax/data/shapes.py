"""The embedded data set: textured shapes and jointed puppets that hide one another, drawn from a seed.

Masks are exact for the visible part of an object, so a RoI operation that is a pixel off, or a blurred mask
head, costs mask AP at high overlaps.
"""

import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as coco_mask

from mrcnn_jax.data.dataset import Objects, Record
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.data.shapes_drawing import KEYPOINTS, KINDS, VERSION, Kind, Scene, Sprite, arrange, paint
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo

SPLITS = ("train", "validation")
BLOCK = 16
"""Images drawn at once, by threads."""

INFO = DatasetInfo(
    name="shapes",
    category_ids=tuple(kind.category_id for kind in KINDS),  # with gaps, as in COCO
    category_names=tuple(kind.name for kind in KINDS),
    keypoint_names=KEYPOINTS,
    keypoint_flip=(0, 2, 1, 4, 3, 6, 5),
    skeleton=((0, 1), (0, 2), (1, 3), (2, 4), (0, 5), (0, 6)),
    keypoint_classes=(6,),
    keypoint_sigmas=(0.035, 0.072, 0.072, 0.062, 0.062, 0.089, 0.089),  # COCO: ear, elbows, wrists, ankles
)


@dataclasses.dataclass(frozen=True)
class ShapesConfig:
    """Parameters of an embedded set; the size of an object is about its longest extent in pixels.

    Raises:
        InputError: a value is out of range.
    """

    train_images: int = 2000
    validation_images: int = 200
    seed: int = 0
    image_sizes: tuple[tuple[int, int], ...] = ((128, 128), (128, 160), (160, 128))
    """Height and width, equally likely."""
    min_size: float = 18.0
    max_size: float = 90.0
    max_objects: int = 5
    kinds: tuple[str, ...] = ()
    """Names of the classes; all by default."""

    def __post_init__(self):
        for field, least in (("train_images", 1), ("validation_images", 1), ("seed", 0)):
            if getattr(self, field) < least:
                raise InputError(f"shapes: {field} is {getattr(self, field)}, but must be {least} or more")
        if not self.image_sizes or min(map(min, self.image_sizes)) < 32:
            raise InputError(f"shapes: image_sizes is {self.image_sizes}, but sides must be 32 or more")
        if not 10 <= self.min_size <= self.max_size:
            given = f"min_size {self.min_size} and max_size {self.max_size}"
            raise InputError(f"shapes: {given} are given, but 10 <= min_size <= max_size must hold")
        if not 1 <= self.max_objects <= 100:
            raise InputError(f"shapes: max_objects is {self.max_objects}, but must be between 1 and 100")
        names = [kind.name for kind in KINDS]
        if unknown := [name for name in self.kinds if name not in names]:
            raise InputError(f"shapes: kinds has {unknown[0]}, but must be of {', '.join(names)}")

    @property
    def drawn(self) -> tuple[Kind, ...]:
        """The chosen classes."""
        return tuple(kind for kind in KINDS if not self.kinds or kind.name in self.kinds)

    @property
    def info(self) -> DatasetInfo:
        """Names and ids of classes and keypoints."""
        drawn = self.drawn
        return INFO._replace(
            category_ids=tuple(kind.category_id for kind in drawn),
            category_names=tuple(kind.name for kind in drawn),
            keypoint_classes=tuple(index for index, kind in enumerate(drawn) if kind.name == "puppet"),
        )

    def images(self, split: str) -> int:
        """Returns the number of images of a split."""
        if split not in SPLITS:
            raise InputError(f"shapes: split {split!r} does not exist, the splits are {' and '.join(SPLITS)}")
        return self.train_images if split == "train" else self.validation_images


def _keypoints(sprite: Sprite, shown: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "J 3"]:
    """Returns x, y and visibility: 2 where the object is visible, 1 if hidden, 0 outside the image."""
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
    scene = Scene(config.drawn, config.min_size, config.max_size, config.max_objects)
    arranged = arrange(rng, scene, height, width)
    picture = paint(rng, arranged, height, width)
    png = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
    image_id = index + 1
    name = f"{split}_{image_id:06d}.png"
    return Record(png.tobytes(), image_id, name, height, width, _objects(arranged, image_id))


def generate(config: ShapesConfig, split: str) -> Iterator[Record]:
    """Draws the records of a split, images as PNG; a larger set begins with the images of a smaller one.

    Raises:
        InputError: the split is neither train nor validation.
    """
    return _draw_all(config, split, config.images(split))


def _draw_all(config: ShapesConfig, split: str, images: int) -> Iterator[Record]:
    with ThreadPoolExecutor(max_workers=2) as pool:  # OpenCV lets go of the interpreter
        for first in range(0, images, BLOCK):
            yield from pool.map(partial(_draw, config, split), range(first, min(first + BLOCK, images)))


def prepare(directory: str | Path, config: ShapesConfig, *, progress: bool = False) -> bool:
    """Writes both splits to ``directory`` unless it holds this very set already; returns whether it wrote.

    A set of another configuration, drawing version or description is replaced, because it can be drawn again.
    Several processes may call this at once: each draws the set, and the first to finish writes it.

    Raises:
        InputError: the directory holds anything else.
    """
    directory = Path(directory)
    marker = directory / "shapes.json"
    content = {"drawing": VERSION, **dataclasses.asdict(config), "info": config.info._asdict()}
    wanted = json.dumps(content, indent=1)
    if _has_text(marker, wanted):
        return False
    splits, files = {split: generate(config, split) for split in SPLITS}, {marker.name: wanted}
    overwrite = marker.exists()
    try:
        write_dataset(directory, config.info, splits, progress=progress, overwrite=overwrite, files=files)
    except InputError:
        if not _has_text(marker, wanted):
            raise
        return False
    return True


def _has_text(file: Path, text: str) -> bool:
    return file.exists() and file.read_text() == text
