"""A base for stand-ins of a trained detector, which define what they find in an image."""

from collections.abc import Iterable, Iterator

from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.image_inputs import ImageLike, to_rgb
from mrcnn_jax.inference.stream import StreamResult


class StandInDetector:
    """Reads images as a detector does, and calls itself with their pixels."""

    def stream(self, images: Iterable[ImageLike], **options: object) -> Iterator[StreamResult]:
        for source in images:
            try:
                image = to_rgb(source)
            except InputError as error:
                yield StreamResult(source, None, None, error)
            else:
                yield StreamResult(source, image, self(image), None)
