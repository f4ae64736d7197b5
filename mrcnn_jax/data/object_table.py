"""All objects of a split as columns, stored beside its records: what looks at all of them reads no pixels."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from mrcnn_jax.data.contents import image_digest
from mrcnn_jax.paths import read_bytes

if TYPE_CHECKING:
    from mrcnn_jax.data.dataset import Record

_COLUMNS = {"boxes": np.float32, "areas": np.float64, "classes": np.int32, "crowd": bool}


class ObjectTable(NamedTuple):
    """N images and their M objects, in the order of the records."""

    sizes: Int[np.ndarray, "N 2"]  # height and width of the stored image
    counts: Int[np.ndarray, "N"]  # of objects
    digests: UInt64[np.ndarray, "N"]  # of the image files
    boxes: Float[np.ndarray, "M 4"]  # float32, xyxy in pixels of the stored image, as annotated
    areas: Float[np.ndarray, "M"]  # float64, the annotations' own
    classes: Int[np.ndarray, "M"]
    crowd: Bool[np.ndarray, "M"]
    with_mask: Bool[np.ndarray, "M"]
    with_keypoints: Bool[np.ndarray, "M"]

    @property
    def images(self) -> Int[np.ndarray, "M"]:
        """Index of each object's image."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def take(self, images: Int[np.ndarray, "n"]) -> "ObjectTable":
        """Returns the table of some images, whose indices ascend."""
        chosen = np.isin(self.images, images)
        return ObjectTable(
            *(column[images] for column in self[:3]), *(column[chosen] for column in self[3:])
        )

    def save(self, directory: Path, split: str) -> None:
        """Writes the table of a split to a data set's directory."""
        np.savez(_file(directory, split), **self._asdict())


class TableBuilder:
    """Builds a table from records one by one."""

    def __init__(self):
        self._images: list[tuple[int, int, int, int]] = []
        self._objects: list[tuple[np.ndarray, ...]] = []

    def add(self, record: "Record") -> None:
        """Adds an image and its objects."""
        objects = record.objects
        count = len(objects.classes)
        self._images.append((record.height, record.width, count, image_digest(record.image)))
        if count:
            columns = [getattr(objects, name).astype(kind) for name, kind in _COLUMNS.items()]
            with_mask = np.array([bool(rle) for rle in objects.rles])
            self._objects.append((*columns, with_mask, (objects.keypoints[..., 2] > 0).any(axis=1)))

    def table(self) -> ObjectTable:
        """Returns the table of what was added so far."""
        *sizes, counts, digests = zip(*self._images, strict=True) if self._images else ((),) * 4
        empty = [np.zeros((0, 4) if name == "boxes" else 0, kind) for name, kind in _COLUMNS.items()]
        parts = [*self._objects, (*empty, np.zeros(0, bool), np.zeros(0, bool))]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        by_image = np.array(sizes, np.int32).T, np.array(counts, np.int64), np.array(digests, np.uint64)
        return ObjectTable(*by_image, *columns)


def build_table(records: Iterable["Record"]) -> ObjectTable:
    """Returns the table of records, read one by one."""
    builder = TableBuilder()
    for record in records:
        builder.add(record)
    return builder.table()


def read_table(directory: Path, split: str, images: int) -> ObjectTable | None:
    """Reads the table of a prepared split of so many images; None if it is damaged, or the set older."""
    try:
        # from memory, as a damaged file would stay open
        with np.load(io.BytesIO(read_bytes(_file(directory, split)))) as arrays:
            table = ObjectTable(*(arrays[name] for name in ObjectTable._fields))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    lengths = {len(column) for column in table[3:]}
    whole = len(table.sizes) == len(table.counts) == len(table.digests) == images
    return table if whole and lengths == {int(table.counts.sum())} else None


def _file(directory: Path, split: str) -> Path:
    return directory / f"{split}_objects.npz"
