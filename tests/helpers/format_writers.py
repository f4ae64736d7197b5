"""Writers of one small set in every format of annotations.

Coordinates are multiples of a half and sizes powers of two, so that relative coordinates are exact.
"""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

SIZE = 64, 32
"""Width and height of the images."""
CLASSES = ("cat", "dog")
NAMES = ("1.png", "groß & klein.png", "z.png")
KEYPOINTS = ("nose", "left_eye", "right_eye")


class Thing(NamedTuple):
    """An object: a polygon, or the rectangle around it, or its mask, or that and keypoints."""

    class_: str
    polygon: tuple[float, ...]
    keypoints: tuple[float, ...] = ()

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2."""
        x, y = self.polygon[::2], self.polygon[1::2]
        return min(x), min(y), max(x), max(y)

    @property
    def mask(self) -> np.ndarray:
        codes = coco_mask.frPyObjects([list(self.polygon)], SIZE[1], SIZE[0])
        return coco_mask.decode(codes)[..., 0].astype(bool)


THINGS: dict[str, list[Thing]] = {
    NAMES[0]: [
        Thing("cat", (2, 3, 20.5, 3, 20.5, 17, 2, 17), (5, 6, 2, 10.5, 8, 1, 0, 0, 0)),
        Thing("dog", (30, 4, 50, 4.5, 40, 25.5), (35, 6, 2, 40, 8, 2, 45, 8.5, 2)),
    ],
    NAMES[1]: [],
    NAMES[2]: [Thing("dog", (8, 8, 56, 8, 56, 28, 32, 20, 8, 28), (9, 9, 1, 12, 10, 2, 20, 10, 2))],
}


def write_images(folder: Path) -> None:
    """Writes the images of the set into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(THINGS):
        pixels = np.random.default_rng(seed).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)


def png(array: np.ndarray, palette: bool = False) -> bytes:
    """Returns an array as a PNG file."""
    image, file = Image.fromarray(array), io.BytesIO()
    if palette:
        image.putpalette([value for i in range(256) for value in (255 - i, i, i // 2)])
    image.save(file, "png")
    return file.getvalue()


def coco(folder: Path, kind: str) -> Path:
    write_images(folder / "images")
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    if kind == "poses":
        categories = [category | {"keypoints": KEYPOINTS} for category in categories]
    content = {"images": [], "annotations": [], "categories": categories}
    for image_id, (name, things) in enumerate(THINGS.items(), start=1):
        content["images"].append({"id": image_id, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        for thing in things:
            x1, y1, x2, y2 = thing.box
            annotation = {
                "id": len(content["annotations"]) + 1, "image_id": image_id, "iscrowd": 0,
                "category_id": CLASSES.index(thing.class_) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
            }  # fmt: skip
            if kind in ("polygons", "masks"):
                annotation |= {"segmentation": [thing.polygon], "area": int(thing.mask.sum())}
            if kind == "masks":
                code = coco_mask.encode(np.asfortranarray(thing.mask, np.uint8))
                segmentation = {"size": [SIZE[1], SIZE[0]], "counts": code["counts"].decode()}
                annotation |= {"segmentation": segmentation, "bbox": coco_mask.toBbox(code).tolist()}
            if kind == "poses":
                annotation |= {"keypoints": thing.keypoints}
            content["annotations"].append(annotation)
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def yolo(folder: Path, kind: str) -> Path:
    write_images(folder / "images")
    (folder / "labels").mkdir()
    description = {"train": "images", "names": list(CLASSES)}
    if kind == "poses":
        description |= {"kpt_shape": [3, 3], "flip_idx": [0, 2, 1], "kpt_names": {0: list(KEYPOINTS)}}
    (folder / "data.yaml").write_text(yaml.safe_dump(description))
    for name, things in THINGS.items():
        lines = []
        for thing in things:
            x1, y1, x2, y2 = thing.box
            numbers = thing.polygon
            if kind != "polygons":
                numbers = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
            relative = [number / SIZE[i % 2] for i, number in enumerate(numbers)]
            if kind == "poses":
                scales = (*SIZE, 1) * 3
                relative += [value / scale for value, scale in zip(thing.keypoints, scales, strict=True)]
            lines.append(" ".join(map(str, (CLASSES.index(thing.class_), *relative))))
        if things:
            (folder / f"labels/{Path(name).stem}.txt").write_text("\n".join(lines))
    return folder


def labelme(folder: Path, kind: str) -> Path:
    write_images(folder)
    for name, things in THINGS.items():
        shapes = []
        for thing in things:
            shape = {"label": thing.class_, "shape_type": "polygon", "group_id": None, "flags": {}}
            points = np.reshape(thing.polygon, (-1, 2)).tolist()
            if kind == "boxes":
                shape |= {"shape_type": "rectangle"}
                points = [list(thing.box[2:]), list(thing.box[:2])]
            if kind == "masks":
                x, y, w, h = (int(side) for side in coco_mask.toBbox(coco_mask.encode(
                    np.asfortranarray(thing.mask, np.uint8))))  # fmt: skip
                part = png(thing.mask[y : y + h, x : x + w].astype(np.uint8) * 255)
                shape |= {"shape_type": "mask", "mask": base64.b64encode(part).decode()}
                points = [[x, y], [x + w - 1, y + h - 1]]
            shapes.append(shape | {"points": points})
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None}
        content |= {"imageHeight": SIZE[1], "imageWidth": SIZE[0]}
        (folder / f"{Path(name).stem}.json").write_text(json.dumps(content))
    return folder


def voc(folder: Path, kind: str) -> Path:
    write_images(folder / "JPEGImages")
    for name in ("Annotations", "SegmentationObject", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets/Main/train.txt").write_text("\n".join(Path(name).stem for name in THINGS))
    for name, things in THINGS.items():
        objects, numbers = "", np.zeros(SIZE[::-1], np.uint8)
        for number, thing in enumerate(things, start=1):
            x1, y1, x2, y2 = thing.box
            if kind == "masks":
                rows, columns = np.nonzero(thing.mask)
                x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                numbers[thing.mask] = number
                x1, y1 = x1 + 1, y1 + 1  # pixels from 1; boxes with fractions count from 0
            corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            objects += f"<object><name>{thing.class_}</name><bndbox>{corners}</bndbox></object>"
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
        filename = f"<filename>{name.replace('&', '&amp;')}</filename>"
        path = folder / f"Annotations/{Path(name).stem}.xml"
        path.write_text(f"<annotation>{filename}{size}{objects}</annotation>", "utf-8")
        if kind == "masks":
            numbers[0, :] = 255
            (folder / f"SegmentationObject/{path.stem}.png").write_bytes(png(numbers, palette=True))
    return folder


def cvat(folder: Path, kind: str) -> Path:
    write_images(folder / "images")
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    images = ""
    for number, (name, things) in enumerate(THINGS.items()):
        shapes = "".join(_cvat_shape(thing, kind) for thing in things)
        size = f'width="{SIZE[0]}" height="{SIZE[1]}"'
        images += f'<image id="{number}" name={quoteattr(name)} {size}>{shapes}</image>'
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    content = f"<annotations><version>1.1</version>{meta}{images}</annotations>"
    (folder / "annotations.xml").write_text(f"<?xml version='1.0' encoding='utf-8'?>{content}", "utf-8")
    return folder


def _cvat_shape(thing: Thing, kind: str) -> str:
    common, (x1, y1, x2, y2) = f'label="{thing.class_}" occluded="0" z_order="0"', thing.box
    if kind == "boxes":
        return f'<box {common} xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/>'
    if kind == "polygons":
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in np.reshape(thing.polygon, (-1, 2)))
        return f'<polygon {common} points="{points}"><attribute name="age">3</attribute></polygon>'
    rows, columns = np.nonzero(thing.mask)
    top, left, height, width = rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1
    flat = thing.mask[top : top + height, left : left + width].ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    runs = ", ".join(map(str, np.diff(edges, prepend=0, append=flat.size)))
    place = f'left="{left}" top="{top}" width="{width}" height="{height}"'
    return f'<mask {common} rle="{runs}" {place}/>'


def mask_numbers(folder: Path, kind: str) -> Path:
    """Writes the numbers of the objects of each image and class into a file of 16 bits."""
    write_images(folder / "images")
    for name, things in THINGS.items():
        for class_ in CLASSES:
            numbers = np.zeros(SIZE[::-1], np.uint16)
            for number, thing in enumerate(things, start=1):
                if thing.class_ == class_:
                    numbers[thing.mask] = 300 * number
            (folder / "masks" / class_).mkdir(parents=True, exist_ok=True)
            (folder / "masks" / class_ / name).write_bytes(png(numbers))
    return folder


def mask_objects(folder: Path, kind: str) -> Path:
    """Writes a file an object, in a folder for each image and class."""
    write_images(folder / "train/images")
    for name, things in THINGS.items():
        for number, thing in enumerate(things):
            place = folder / "train/masks" / Path(name).stem / thing.class_
            place.mkdir(parents=True)
            (place / f"{number}.png").write_bytes(png(thing.mask.astype(np.uint8) * 255))
    return folder


WRITERS: dict[str, tuple[Callable[[Path, str], Path], tuple[str, ...]]] = {
    "COCO": (coco, ("boxes", "polygons", "masks", "poses")),
    "YOLO": (yolo, ("boxes", "polygons", "poses")),
    "LabelMe": (labelme, ("boxes", "polygons", "masks")),
    "Pascal VOC": (voc, ("boxes", "masks")),
    "CVAT": (cvat, ("boxes", "polygons", "masks")),
    "numbers of objects": (mask_numbers, ("masks",)),
    "mask an object": (mask_objects, ("masks",)),
}
"""A writer of each format, and the kinds of objects that it can say."""
