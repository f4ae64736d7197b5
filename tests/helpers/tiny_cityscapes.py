"""A tiny Cityscapes in its official layout: cities, objects, groups and images without either."""

from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH = 64, 128
ROAD = 7
# Split and frame -> rectangles (value, y1, y2, x1, x2), later ones in front.
SCENES = {
    "train/aachen/aachen_000000_000019": [
        (24001, 10, 40, 5, 20), (26, 0, 12, 60, 120), (26003, 20, 50, 60, 100), (33000, 25, 45, 70, 80),
    ],
    # a caravan and void, which are no objects
    "train/aachen/aachen_000001_000019": [(29001, 10, 40, 5, 20), (3, 50, 64, 0, 128)],
    "train/bochum/bochum_000000_000885": [(33, 30, 40, 0, 128), (24000, 0, 64, 0, 16)],
    "val/frankfurt/frankfurt_000000_000294": [
        (26001, 5, 45, 10, 50), (26002, 10, 40, 40, 90), (24, 0, 30, 100, 128), (31000, 50, 59, 0, 11),
    ],
    "val/munster/munster_000000_000019": [
        (24005, 8, 56, 30, 50), (25005, 2, 20, 30, 50), (0, 60, 64, 0, 128),
    ],
    "val/munster/munster_000001_000019": [],
}  # fmt: skip


def instance_ids(scene: str) -> np.ndarray:
    """The pixels of a scene's file of instance ids."""
    ids = np.full((HEIGHT, WIDTH), ROAD, np.uint16)
    for value, y1, y2, x1, x2 in SCENES[scene]:
        ids[y1:y2, x1:x2] = value
    return ids


def image_path(root: Path, scene: str) -> Path:
    return root / f"leftImg8bit/{scene}_leftImg8bit.png"


def truth_path(root: Path, scene: str) -> Path:
    return root / f"gtFine/{scene}_gtFine_instanceIds.png"


def scenes(part: str) -> list[str]:
    """The scenes of train or val, in the order of their names."""
    return sorted(scene for scene in SCENES if scene.startswith(part))


def write(root: Path) -> Path:
    """Writes the data set below ``root`` and returns it."""
    for number, scene in enumerate(SCENES):
        for path in (image_path(root, scene), truth_path(root, scene)):
            path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        cv2.imwrite(str(image_path(root, scene)), pixels)
        cv2.imwrite(str(truth_path(root, scene)), instance_ids(scene))
        for other in ("labelIds", "color"):  # its neighbours in the official folders
            cv2.imwrite(str(truth_path(root, scene)).replace("instanceIds", other), pixels)
    return root
