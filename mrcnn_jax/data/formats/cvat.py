"""Reader of CVAT's XML, "CVAT for images 1.1": boxes, polygons, ellipses, masks and skeletons.

    annotations.xml
    images/...                  subsets named like splits become splits

    task 1/annotations.xml      several tasks below one folder, each with images beside its file
    task 1/images/...

Shapes of one label and one ``group_id`` are parts of one object. Polylines, points outside a skeleton and
cuboids have no area and are left out.

References:
    https://docs.cvat.ai/docs/manual/advanced/xml_format
"""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
from jaxtyping import Float

from mrcnn_jax.data.formats.coco_layout import CocoSplit
from mrcnn_jax.data.formats.coco_numbers import to_number, to_whole
from mrcnn_jax.data.formats.label_images import encode, place_mask
from mrcnn_jax.data.formats.listing import Collector, ellipse, unite_parts
from mrcnn_jax.data.formats.split_names import SPLITS, splits_in
from mrcnn_jax.data.formats.xml_elements import read_elements, root_tag
from mrcnn_jax.errors import InputError

NAME = "CVAT"
LOOKS_FOR = "CVAT: annotations.xml"
_SHAPES = ("box", "polygon", "ellipse", "mask", "skeleton")


class _Unusable(Exception):
    """A shape that cannot be used; the message is its kind for the report."""


def recognises(folder: Path, files: dict[str, list[Path]]) -> bool:
    """Returns whether files, by suffix, hold XML of CVAT."""
    return any(root_tag(path) == "annotations" for path in files.get(".xml", [])[:50])


def read(folder: Path, files: dict[str, list[Path]]) -> dict[str, CocoSplit]:
    """Reads the splits of a data set, determined by the subsets of images, or else by the names of files.

    Args:
        folder: its root.
        files: in and below it, by suffix.

    Raises:
        InputError: a file is not well-formed, is of CVAT for video, or has no images.
    """
    collectors: dict[str, Collector] = {}
    labels: dict[str, _Label] = {}
    paths = [path for path in files[".xml"] if root_tag(path) == "annotations"]
    for path in paths:
        for element in read_elements(path, "meta", "image", "track"):
            if element.tag == "track":
                raise InputError(f"{path} is of CVAT for video: export the task as CVAT for images 1.1")
            if element.tag == "meta":
                labels |= _read_labels(element)
                continue
            subset = splits_in(element.get("subset") or "") or splits_in(path.stem)
            split = subset[0] if len(subset) == 1 else "train"
            collector = collectors.setdefault(split, Collector(NAME, paths[0]))
            name = (element.get("name") or "").replace("\\", "/")
            name = _beside(folder, path, name) if len(paths) > 1 and name else name
            _collect(collector, element, name, labels)
    if not collectors:
        raise InputError(f"{paths[0]} holds no images")
    categories = [
        {"id": id_, "name": label.name, "keypoints": label.keypoints, "skeleton": label.skeleton}
        for id_, label in enumerate(_all_labels(labels, collectors), start=1)
    ]
    if not categories:
        raise InputError(f"{paths[0]} has neither labels nor objects")
    return {
        split: CocoSplit(folder, collector.path, None, collector.listing(categories))
        for split, collector in sorted(collectors.items(), key=lambda item: list(SPLITS).index(item[0]))
    }


class _Label(NamedTuple):
    """A label of a task, with the points of its skeleton, if it has one."""

    name: str
    keypoints: list[str]
    skeleton: list[list[str]]


def _read_labels(meta: Element) -> dict[str, _Label]:
    """Returns the labels of a task by name; the points of a skeleton are labels with a parent."""
    keys = ("name", "parent", "svg")
    entries = [[(label.findtext(key) or "").strip() for key in keys] for label in meta.iter("label")]
    return {
        name: _Label(name, [point for point, owner, _ in entries if owner == name], _read_edges(svg))
        for name, parent, svg in entries if name and not parent
    }  # fmt: skip


def _read_edges(svg: str) -> list[list[str]]:
    """Returns the edges of a skeleton's drawing as pairs of the names of points."""
    tags = re.findall(r"<(?:circle|line)[^>]*>", svg)
    nodes = [dict(re.findall(r'data-([a-z-]+)="([^"]*)"', tag)) for tag in tags]
    names = {node.get("node-id"): node["label-name"] for node in nodes if "label-name" in node}
    edges = [[names.get(node.get(end)) for end in ("node-from", "node-to")] for node in nodes]
    return [edge for edge in edges if None not in edge]


def _all_labels(labels: dict[str, _Label], collectors: dict[str, Collector]) -> Iterator[_Label]:
    """Yields the labels of the task, then those that only objects have."""
    yield from labels.values()
    found = {str(class_) for collector in collectors.values() for class_ in collector.classes()}
    yield from (_Label(name, [], []) for name in sorted(found - labels.keys()))


def _beside(folder: Path, path: Path, name: str) -> str:
    """Returns an image's name relative to the set's folder if it lies beside the file of its task: tasks may
    share names."""
    for place in (path.parent / "images" / name, path.parent / name):
        if place.is_file():
            return os.path.relpath(place, folder).replace(os.sep, "/")
    return name


def _collect(collector: Collector, element: Element, name: str, labels: dict[str, _Label]) -> None:
    if not name or name in collector:
        flaw = "is listed once more" if name else "has no name"
        collector.warnings.append(f"an image {name or element.get('id')} {flaw}: it is not used")
        return
    sides = [to_whole(element.get(side)) for side in ("height", "width")]
    size = (sides[0], sides[1]) if all(sides) else None
    collector.add_image(name, size)
    parts: dict[Any, list[tuple[str, dict[str, Any]]]] = {}
    for number, shape in enumerate(element, start=1):
        label, group, place = shape.get("label"), shape.get("group_id"), f"{name}, shape {number}"
        if label is None or shape.tag == "tag":  # of the whole image
            continue
        try:
            fields = _read_shape(shape, labels.get(label), size)
        except _Unusable as kind:
            collector.leave_out(name, str(kind), place)
            continue
        whole = group in (None, "", "0") or shape.tag == "skeleton"
        parts.setdefault((label, None, number) if whole else (label, group), []).append((place, fields))
    for (label, *_), found in parts.items():
        fields = found[0][1] if len(found) == 1 else unite_parts([fields for _, fields in found])
        collector.add_object(name, label, found[0][0], **fields)


def _read_shape(shape: Element, label: _Label | None, size: tuple[int, int] | None) -> dict[str, Any]:
    """Returns the box, mask or keypoints of a shape."""
    if shape.tag not in _SHAPES:
        raise _Unusable(f"{shape.tag}, which has no area")
    if shape.tag == "polygon":
        return {"segmentation": [_points(shape)]}
    if shape.tag == "mask":
        return {"segmentation": _read_mask(shape, size)}
    if shape.tag == "skeleton":
        return _read_skeleton(shape, label)
    angle = math.radians(_numbers(shape, "rotation", default="0")[0])
    if shape.tag == "ellipse":
        outline = np.reshape(ellipse(*_numbers(shape, "cx", "cy", "rx", "ry")), (-1, 2))
        return {"segmentation": [_rotate(outline, angle).ravel().tolist()]}
    x1, y1, x2, y2 = _numbers(shape, "xtl", "ytl", "xbr", "ybr")
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    corners = _rotate(corners, angle) if angle else corners
    low, high = corners.min(axis=0), corners.max(axis=0)
    return {"bbox": [*low.tolist(), *(high - low).tolist()]}


def _numbers(shape: Element, *names: str, default: str | None = None) -> list[float]:
    numbers = [to_number(shape.get(name, default)) for name in names]
    if None in numbers:
        raise _Unusable(f"{shape.tag} without the numbers {', '.join(names)}")
    return numbers


def _points(shape: Element) -> list[float]:
    numbers = [to_number(number) for number in (shape.get("points") or "").replace(";", ",").split(",")]
    if None in numbers:
        raise _Unusable(f"{shape.tag} whose points are not numbers")
    return numbers


def _rotate(points: Float[np.ndarray, "n 2"], angle: float) -> Float[np.ndarray, "n 2"]:
    """Rotates a shape about its centre, clockwise as seen in the image."""
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    cosine, sine = math.cos(angle), math.sin(angle)
    return (points - centre) @ np.array([[cosine, sine], [-sine, cosine]]) + centre


def _read_mask(shape: Element, size: tuple[int, int] | None) -> dict[str, Any]:
    """Returns a mask whose runs of zeros and ones go along the rows of its box."""
    left, top, width, height = (int(number) for number in _numbers(shape, "left", "top", "width", "height"))
    runs = [to_whole(run) for run in (shape.get("rle") or "").split(",")]
    if size is None:
        raise _Unusable("mask of an image of unknown size")
    whole = None not in runs and min(runs) >= 0 and sum(runs) == width * height
    if not whole or width > size[1] or height > size[0]:
        raise _Unusable("mask whose runs do not fill its box, or whose box is larger than the image")
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return encode(place_mask(pixels, left, top, *size))


def _read_skeleton(shape: Element, label: _Label | None) -> dict[str, Any]:
    """Returns the keypoints of a skeleton, and the box around those that are labelled."""
    found = {point.get("label"): point for point in shape.findall("points") if point.get("outside") != "1"}
    names = label.keypoints if label else []
    keypoints, labelled = [], []
    for name in names:
        if name not in found:
            keypoints += [0, 0, 0]
            continue
        x, y = (*_points(found[name]), 0)[:2]
        keypoints += [x, y, 1 if found[name].get("occluded") == "1" else 2]
        labelled.append((x, y))
    if not labelled:
        raise _Unusable("skeleton without points inside the image")
    low, high = np.min(labelled, axis=0), np.max(labelled, axis=0)
    return {"bbox": [*low.tolist(), *(high - low).tolist()], "keypoints": keypoints}
