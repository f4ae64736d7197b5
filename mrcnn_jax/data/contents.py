"""Digests of the images and objects of a split, by which a run recognises the data it was trained on."""

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mrcnn_jax.data.dataset import Record


class Contents(NamedTuple):
    """Images and objects of a split, in numbers and as digests; the names of files do not matter."""

    images: int
    objects: int
    image_digest: str
    object_digest: str


def image_digest(image: bytes) -> int:
    """Returns a digest of 64 bits of an image file."""
    return int.from_bytes(blake2b(image, digest_size=8).digest(), "little")


class ContentsDigest:
    """Computes ``Contents`` from the records of a split, in their order."""

    def __init__(self):
        self._images, self._objects = blake2b(digest_size=8), blake2b(digest_size=8)
        self._counts = 0, 0

    def add(self, record: "Record") -> None:
        """Adds a record."""
        objects = record.objects
        self._counts = self._counts[0] + 1, self._counts[1] + len(objects.classes)
        self._images.update(f"{record.image_id} {len(record.image)} ".encode())
        self._images.update(record.image)
        self._objects.update(f"{record.image_id} {' '.join(objects.rles)} ".encode())
        for array in (objects.boxes, objects.classes, objects.areas, objects.crowd, objects.keypoints):
            self._objects.update(array.tobytes())

    def contents(self) -> Contents:
        """Returns the contents of the records added so far."""
        return Contents(*self._counts, self._images.hexdigest(), self._objects.hexdigest())
