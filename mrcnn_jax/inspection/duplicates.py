"""Images that two splits share: the same files, and pictures that look the same."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int

from mrcnn_jax.data.dataset import DatasetSplit, Record
from mrcnn_jax.data.image_content import is_jpeg
from mrcnn_jax.data.object_table import ObjectTable

ALIKE = 0.95
"""Correlation of two thumbnails from which their images are near duplicates."""
_SIDE, _LEAST, _ROWS, _THREADS = 16, 64, 256, 4
_FLATTEST = 2.0  # standard deviation in levels of a thumbnail below which everything looks alike
_REDUCTIONS = {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
               2: cv2.IMREAD_REDUCED_GRAYSCALE_2}  # fmt: skip


class Pair(NamedTuple):
    """An image of one split and an image of another, by index."""

    splits: tuple[str, str]
    images: tuple[int, int]
    correlation: float = 1.0


def same_files(tables: Mapping[str, ObjectTable]) -> list[Pair]:
    """Returns the images of each split that an earlier split holds too, each with the first such image."""
    found, names = [], list(tables)
    for later, name in enumerate(names):
        for earlier in names[:later]:
            digests, first = np.unique(tables[earlier].digests, return_index=True)
            own = tables[name].digests
            place = np.searchsorted(digests, own).clip(max=len(digests) - 1)
            found += [
                Pair((earlier, name), (int(first[place[index]]), int(index)))
                for index in np.flatnonzero(digests[place] == own)
            ]
    return found


def repeated_files(table: ObjectTable) -> int:
    """Returns the number of images of a split that are there already."""
    return len(table.digests) - len(np.unique(table.digests))


class Thumbnails(NamedTuple):
    """Descriptions of a part of a split's images by which they are compared."""

    images: Int[np.ndarray, "n"]  # their indices
    vectors: Float[np.ndarray, "n d"]  # gray levels of a small picture, of mean 0 and length 1


def make_thumbnails(records: Sequence[Record] | DatasetSplit, count: int) -> Thumbnails:
    """Describes ``count`` images spread evenly over a split; flat and unreadable ones are left out."""
    chosen = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).astype(int))
    with ThreadPoolExecutor(_THREADS) as pool:
        described = list(pool.map(lambda index: _describe(records[int(index)]), chosen))
    usable = [index for index, vector in enumerate(described) if vector is not None]
    vectors = [vector for vector in described if vector is not None]
    return Thumbnails(chosen[usable], np.array(vectors, np.float32).reshape(-1, _SIDE * _SIDE))


def _describe(record: Record) -> Float[np.ndarray, "d"] | None:
    # JPEG alone is decoded at a fraction of its size: other formats would lose pixels
    room = min(record.height, record.width) // _LEAST if is_jpeg(record.image) else 1
    flag = next((flag for factor, flag in _REDUCTIONS.items() if factor <= room), cv2.IMREAD_GRAYSCALE)
    try:
        gray = cv2.imdecode(np.frombuffer(record.image, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    if gray is None:
        return None
    small = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    small -= small.mean()
    return small / np.linalg.norm(small) if small.std() >= _FLATTEST else None


def look_alikes(thumbnails: Mapping[str, Thumbnails], tables: Mapping[str, ObjectTable]) -> list[Pair]:
    """Returns the images of each split that look like one of an earlier split, the most alike first.

    Each is paired with the one that it resembles most, unless that is the same file.
    """
    found, names = [], list(thumbnails)
    for later, name in enumerate(names):
        for earlier in names[:later]:
            one, other = thumbnails[earlier], thumbnails[name]
            for start in range(0, len(other.images), _ROWS):
                alike = other.vectors[start : start + _ROWS] @ one.vectors.T
                best = alike.argmax(axis=1) if alike.size else ()
                for row, column in enumerate(best):
                    images = int(one.images[column]), int(other.images[start + row])
                    same = tables[earlier].digests[images[0]] == tables[name].digests[images[1]]
                    if alike[row, column] >= ALIKE and not same:
                        found.append(Pair((earlier, name), images, round(float(alike[row, column]), 4)))
    return sorted(found, key=lambda pair: -pair.correlation)
