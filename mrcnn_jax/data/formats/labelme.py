"""Reader of LabelMe's annotations: a JSON file an image, beside it or in another folder.

Shapes of one label and one ``group_id`` are parts of one object. A rectangle is a box; a polygon, a circle
and a mask are masks; points and lines have no area and are left out.

References:
    https://github.com/wkentaro/labelme
"""

import base64
import binascii
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mrcnn_jax.data.formats.coco_json import load_json
from mrcnn_jax.data.formats.coco_layout import CocoSplit
from mrcnn_jax.data.formats.coco_numbers import to_numbers, to_whole
from mrcnn_jax.data.formats.foreign_files import json_kind
from mrcnn_jax.data.formats.label_images import decode_label_image, encode, place_mask
from mrcnn_jax.data.formats.listing import (
    CONTENT,
    Collector,
    common_folder,
    ellipse,
    list_by_name,
    unite_parts,
)
from mrcnn_jax.data.formats.sibling_files import SiblingFiles
from mrcnn_jax.data.formats.split_names import group_by_folder
from mrcnn_jax.data.image_content import upright_size
from mrcnn_jax.errors import InputError

NAME = "LabelMe"
LOOKS_FOR = "LabelMe: *.json with shapes"
_NO_CLASSES = ("", "__ignore__", "_background_")


class _Unusable(Exception):
    """A shape that cannot be used; the message is its kind for the report."""


def recognises(folder: Path, files: dict[str, list[Path]]) -> bool:
    """Returns whether files, by suffix, hold annotations of LabelMe."""
    return any(json_kind(path) == NAME for path in files.get(".json", [])[:1000])


def read(folder: Path, files: dict[str, list[Path]]) -> dict[str, CocoSplit]:
    """Reads the splits of a data set, determined by the names of folders.

    Args:
        folder: its root.
        files: in and below it, by suffix.

    Raises:
        InputError: no file can be used.
    """
    paths = [path for path in files[".json"] if json_kind(path) == NAME]
    siblings, collectors, folders = SiblingFiles(), {}, {}
    for split, found in group_by_folder(folder, paths).items():
        contents = {path: _load(path, siblings) for path in found}
        images = {path: image for path, (image, _) in contents.items()}
        folders[split] = common_folder(images.values())
        collectors[split] = Collector(NAME, folder, drawn_upright=True)
        for path, (image, content) in contents.items():
            _collect(collectors[split], folders[split], path, image, content)
    listings = list_by_name(collectors)
    return {split: CocoSplit(folders[split], folder, None, listing) for split, listing in listings.items()}


def _load(path: Path, siblings: SiblingFiles) -> tuple[Path, dict[str, Any]]:
    """Returns the image of a file, which may be missing, and its content without an embedded image.

    A missing image is looked for in the set by its name alone.
    """
    content = load_json(path, NAME)
    if not isinstance(content, dict):
        raise InputError(f"{path} is no file of LabelMe, which is an object with shapes")
    given = content.get("imagePath")
    name = given.replace("\\", "/") if isinstance(given, str) and given else path.stem
    wanted = Path(os.path.normpath(path.parent / name))
    image = siblings.find(wanted.parent, wanted.name) or siblings.find(path.parent, wanted.name)
    image = image or siblings.find_image(path.parent, path.stem) or path.parent / wanted.name
    content["imageData"] = bool(content.get("imageData"))
    return image, content


def _collect(collector: Collector, folder: Path, path: Path, image: Path, content: dict[str, Any]) -> None:
    name = Path(os.path.relpath(image.absolute(), folder)).as_posix()
    if name in collector:
        collector.warnings.append(f"{path} describes the image {name} once more: it is not used")
        return
    sides = [to_whole(content.get(key)) for key in ("imageHeight", "imageWidth")]
    size = (sides[0], sides[1]) if all(sides) else upright_size(image)
    collector.add_image(name, size, {CONTENT: _reader_of(path)} if content["imageData"] else {})
    shapes = content.get("shapes")
    parts: dict[Any, list[tuple[str, dict[str, Any]]]] = {}
    for number, shape in enumerate(shapes if isinstance(shapes, list) else (), start=1):
        place = f"{name}, shape {number}"
        try:
            label, fields = _read_shape(shape, size)
        except _Unusable as kind:
            collector.leave_out(name, str(kind), place)
            continue
        group = shape.get("group_id")
        key = (label, group) if isinstance(group, int | str) else (label, None, number)
        parts.setdefault(key, []).append((place, fields))
    for (label, *_), found in parts.items():
        collector.add_object(name, label, found[0][0], **unite_parts([fields for _, fields in found]))


def _read_shape(shape: Any, size: tuple[int, int] | None) -> tuple[str, dict[str, Any]]:
    """Returns the label of a shape, and its box or mask."""
    label = shape.get("label") if isinstance(shape, dict) else None
    label = "" if label is None else str(label).strip()
    if label in _NO_CLASSES:
        raise _Unusable(f"shape labelled {label!r}" if label else "shape without a label")
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    pairs = [to_numbers(point) for point in points] if isinstance(points, list) else []
    if not pairs or any(pair is None or len(pair[0]) != 2 for pair in pairs):
        raise _Unusable("shape without points that are pairs of numbers")
    xy = np.array([pair[0] for pair in pairs])
    if kind in ("polygon", "oriented_rectangle"):
        return label, {"segmentation": [xy.ravel().tolist()]}
    if kind not in ("rectangle", "circle", "mask"):
        raise _Unusable(f"shape of the type {kind}, which has no area")
    if len(xy) < 2:
        raise _Unusable(f"{kind} of fewer than 2 points")
    if kind == "circle":
        return label, {"segmentation": [ellipse(*xy[0], *[math.dist(xy[0], xy[1])] * 2)]}
    low, high = xy.min(axis=0), xy.max(axis=0)
    if kind == "rectangle":
        return label, {"bbox": [*low.tolist(), *(high - low).tolist()]}
    return label, {"segmentation": _read_mask(shape.get("mask"), low, size)}


def _read_mask(text: Any, corner: Float[np.ndarray, "2"], size: tuple[int, int] | None) -> dict[str, Any]:
    """Returns a mask that is stored as a PNG file in base64, of which the corner's place is given."""
    try:
        part = decode_label_image(base64.b64decode(text), "mask") > 0
    except (binascii.Error, TypeError, ValueError):  # InputError is a ValueError
        raise _Unusable("mask that is no PNG file in base64") from None
    if size is None:
        raise _Unusable("mask of an image of unknown size")
    x, y = map(int, corner)
    return encode(place_mask(part, x, y, *size))


def _reader_of(path: Path) -> Callable[[], bytes]:
    """Returns a function that reads the image embedded in a file."""

    def read_content() -> bytes:
        try:
            return base64.b64decode(load_json(path, NAME)["imageData"])
        except (binascii.Error, KeyError, TypeError, ValueError):
            raise InputError(f"cannot read image {path}: its imageData is no image in base64") from None

    return read_content
