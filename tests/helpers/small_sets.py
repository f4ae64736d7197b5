"""Small data sets in COCO format: noisy images with a bright rectangle each, and one annotation file."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def rectangle(
    id_: int, image_id: int, category_id: int, x: float = 20, y: float = 10, w: float = 40, h: float = 30
) -> dict[str, Any]:
    """Returns the annotation of a filled rectangle, as polygon and as box."""
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "id": id_, "image_id": image_id, "category_id": category_id, "bbox": [x, y, w, h], "area": w * h,
        "iscrowd": 0, "segmentation": [polygon],
    }  # fmt: skip


def write_set(
    folder: Path, change: Callable[[dict], Any] | None = None, *, count: int = 4,
    size: tuple[int, int] = (96, 64), suffix: str = "jpg", images: str = "images",
    listing: str = "annotations/all.json", names: Sequence[str] | None = None,
    save: Callable[[Image.Image, Path], Any] = Image.Image.save,
) -> Path:  # fmt: skip
    """Writes a set with two classes, "a" (id 1) and "b" (id 2), and returns its folder.

    Args:
        folder: to write.
        change: alters the content of the annotation file in place.
        count: number of images, with ids from 1, one object in each.
        size: width and height.
        suffix: of the image files.
        images: folder of the images.
        listing: path of the annotation file.
        names: names of the image files; by default "1.jpg", "2.jpg", ...
        save: writes an image to a path.
    """
    random, (width, height) = np.random.default_rng(7), size
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": [], "annotations": [], "categories": categories}
    for id_ in range(1, count + 1):
        pixels = random.integers(0, 60, (height, width, 3)).astype(np.uint8)
        pixels[10:40, 20:60] = 220
        name = names[id_ - 1] if names else f"{id_}.{suffix}"
        file = Path(folder) / images / name
        file.parent.mkdir(parents=True, exist_ok=True)
        save(Image.fromarray(pixels), file)
        content["images"].append({"id": id_, "file_name": name, "width": width, "height": height})
        content["annotations"].append(rectangle(id_, id_, 1 + id_ % 2))
    if change:
        change(content)
    file = Path(folder) / listing
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return Path(folder)
