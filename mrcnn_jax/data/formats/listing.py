"""Annotations of a split as lists in COCO's form, which the readers of all formats yield.

The one conversion (``coco``) judges, mends, counts and stores what they hold. Beside COCO's own fields,
readers of other formats give annotations a ``PLACE``, and a box and an area that are ``DERIVED`` where their
format has none.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mrcnn_jax.data.formats.conversion_report import ConversionReport, Label
from mrcnn_jax.errors import InputError

DERIVED = object()
"""In place of a box or an area: derived from the mask, which is no flaw."""
PLACE = object()  # not a text, which a file may have as a field
"""Field of an annotation: what the report calls it in place of its id."""
CONTENT = object()
"""Field of an image that is embedded in its annotation file: a function that returns the content."""

Heading = Literal["left_out", "mended", "images_left_out", "images_mended"]


class Flaw(NamedTuple):
    """An entry that was left out or mended, for the report."""

    heading: Heading
    kind: str
    label: Label
    image_id: int | None = None  # of an annotation whose image is used

    def add_to(self, report: ConversionReport) -> None:
        """Adds the flaw to a report."""
        if self.heading.startswith("image"):
            getattr(report, self.heading)[self.kind].append(str(self.label))
        else:
            getattr(report, self.heading)[self.kind].add(self.label)


class Listing(NamedTuple):
    """Images, annotations and categories of a split, unjudged."""

    path: Path  # file or folder of the annotations, for messages; file names may be relative to it
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]
    warnings: list[str]
    flaws: list[Flaw]
    format: str = "COCO"
    drawn_upright: bool = False  # annotations of photos with an EXIF orientation are of the upright picture


def place_of(annotation: dict) -> Label:
    """Returns what the report calls an annotation."""
    return annotation.get(PLACE) or annotation["id"]


class Collector:
    """Collects the images and objects of a split for a ``Listing``.

    Ids count from 1: those of images in the order of their names, those of annotations in the order of
    images. A class is named by its id, or by its name, which gets an id.

    Args:
        format: name of the format.
        path: file or folder of the annotations, for messages.
        drawn_upright: as in ``Listing``.
    """

    def __init__(self, format: str, path: Path, drawn_upright: bool = False):
        self.path, self.warnings, self._format = path, list[str](), format
        self._drawn_upright = drawn_upright
        self._images: dict[str, dict[str, Any]] = {}
        self._objects: dict[str, list[dict[str, Any]]] = {}
        self._flaws: list[tuple[str, str, str]] = []

    def add_image(
        self, name: str, size: tuple[int, int] | None = None, fields: Mapping[Any, Any] | None = None
    ) -> None:
        """Adds an image.

        Args:
            name: of the file, relative to the folder of the images.
            size: height and width that the annotations are made for, if known.
            fields: others of the entry in the list.
        """
        height, width = size or (None, None)
        self._images[name] = {"file_name": name, "height": height, "width": width} | dict(fields or {})
        self._objects.setdefault(name, [])

    def add_object(self, image: str, class_: int | str, place: str, **fields: Any) -> None:
        """Adds an object of an image that was added; box and area are derived unless given."""
        given = {"bbox": DERIVED, "area": DERIVED, "iscrowd": 0, PLACE: place} | fields
        self._objects[image].append({"category_id": class_} | given)

    def leave_out(self, image: str, kind: str, place: str) -> None:
        """Notes an object that cannot be used."""
        self._flaws.append((image, kind, place))

    def classes(self) -> set[int | str]:
        """Returns the classes of all objects."""
        return {one["category_id"] for objects in self._objects.values() for one in objects}

    def __contains__(self, image: str) -> bool:
        return image in self._images

    def listing(self, categories: Sequence[dict[str, Any]]) -> Listing:
        """Returns what was collected.

        Args:
            categories: of the listing.
        """
        ids = {category["name"]: category["id"] for category in categories}
        images, annotations, image_ids = [], [], {}
        for image_id, name in enumerate(sorted(self._images), start=1):
            image_ids[name] = image_id
            images.append({"id": image_id} | self._images[name])
            for one in self._objects[name]:
                class_ = one["category_id"]
                category_id = ids.get(class_, class_) if isinstance(class_, str) else class_
                place = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id}
                annotations.append(one | place)
        flaws = [Flaw("left_out", kind, place, image_ids[name]) for name, kind, place in self._flaws]
        return Listing(
            self.path, images, annotations, list(categories), self.warnings, flaws, self._format,
            self._drawn_upright,
        )  # fmt: skip


def list_by_name(splits: dict[str, Collector]) -> dict[str, Listing]:
    """Returns the listings of the splits of a data set, its classes numbered from 1 in alphabetical order.

    Raises:
        InputError: there is no class.
    """
    names = sorted({str(class_) for split in splits.values() for class_ in split.classes()})
    categories = [{"id": id_, "name": name} for id_, name in enumerate(names, start=1)]
    path = next(iter(splits.values())).path
    if not categories:
        raise InputError(f"{path}: none of the annotations has an object with a class")
    return {split: collector.listing(categories) for split, collector in splits.items()}


def common_folder(paths: Iterable[Path]) -> Path:
    """Returns the deepest folder that holds all of some files."""
    return Path(os.path.commonpath({path.parent.absolute() for path in paths}))


def unite_parts(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the fields of an object in parts, each with a mask or a box: all masks, or else one box."""
    masks: list[Any] = []
    for part in parts:
        found = part.get("segmentation", [])
        masks += [found] if isinstance(found, dict) else found
    if masks:
        return {"segmentation": masks[0] if len(masks) == 1 and isinstance(masks[0], dict) else masks}
    boxes = np.array([part["bbox"] for part in parts])
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    return {"bbox": [*low.tolist(), *(high - low).tolist()]}


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> list[float]:
    """Returns an ellipse as a polygon."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    points = [x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)]
    return np.stack(points, axis=1).ravel().tolist()
