"""A base for stand-ins of a trained detector, which define what they find in an image."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.stream import StreamResult


class StandInDetector:
    """Reads files as a detector does, and calls itself with their pixels."""

    def stream(self, images: Iterable[Path], **options: object) -> Iterator[StreamResult]:
        for source in images:
            try:
                image = read_image(source, upright=True)
            except InputError as error:
                yield StreamResult(source, None, None, error)
            else:
                yield StreamResult(source, image, self(image), None)
