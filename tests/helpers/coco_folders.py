"""Small folders in COCO format, right and wrong."""

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.data.dataset import Objects
from mrcnn_jax.data.formats.coco import CocoFile
from mrcnn_jax.data.formats.conversion_report import ConversionReport

HEIGHT, WIDTH = 40, 60
TRIANGLE = [5.0, 5.0, 25.5, 6.0, 10.0, 30.2]


def mask_of(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return mask


def uncompressed(mask: np.ndarray) -> dict:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": list(mask.shape), "counts": np.diff(edges, prepend=0, append=flat.size).tolist()}


def compressed(mask: np.ndarray) -> dict:
    return {"size": list(mask.shape), "counts": coco_mask.encode(mask)["counts"].decode()}


def annotation(id_: int = 1, image_id: int = 7, **changes) -> dict:
    given = {
        "id": id_,
        "image_id": image_id,
        "category_id": 3,
        "bbox": [5, 5, 20.5, 25.2],
        "area": 250.25,
        "iscrowd": 0,
        "segmentation": [TRIANGLE],
    }
    return {key: value for key, value in (given | changes).items() if value is not ...}  # ... removes a key


def content(*annotations: dict, image_ids: tuple[int, ...] = (7, 4), keypoints: bool = False) -> dict:
    categories = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]
    if keypoints:
        names = ["nose", "left_eye", "right_eye"]
        categories[0] |= {"keypoints": names, "skeleton": [[1, 2], [1, 3]]}
    images = [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in image_ids]
    return {"images": images, "annotations": list(annotations), "categories": categories}


def write_folder(
    folder: Path, given: dict, images: str = "images", annotations: str = "annotations/all.json"
) -> CocoFile:
    """Writes an annotation file and the images that it lists, and opens them."""
    (folder / images).mkdir(parents=True, exist_ok=True)
    (folder / annotations).parent.mkdir(parents=True, exist_ok=True)
    for image in given["images"]:
        picture = np.random.default_rng(image["id"]).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        cv2.imwrite(str(folder / images / image["file_name"]), picture)
    (folder / annotations).write_text(json.dumps(given))
    return CocoFile(folder / images, folder / annotations)


def read_one(tmp_path: Path, *annotations: dict, **kwargs) -> tuple[Objects, ConversionReport]:
    """Returns the objects of image 7, which has all the annotations, and the report."""
    file = write_folder(tmp_path, content(*annotations, image_ids=(7,), **kwargs))
    (record,) = file
    return record.objects, file.report
