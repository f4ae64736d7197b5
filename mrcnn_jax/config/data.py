"""Configuration of the data set and of the sizes of its images."""

from dataclasses import dataclass, field
from typing import Annotated

from mrcnn_jax.config.augmentation import AugmentationConfig
from mrcnn_jax.config.validation import (
    LARGEST_EDGE,
    BoxCount,
    ImageEdge,
    NonNegativeInt,
    PositiveInt,
    at_most,
    check_fields,
    require,
)


@dataclass(frozen=True)
class DataConfig:
    """Data set, image sizes and data loading."""

    dataset: str = "shapes"
    """Data set: "shapes" or "puppets", which are generated on first use, or a directory written by `mrcnn
    dataset`."""
    train_split: str = "train"
    """Split to train on."""
    validation_split: str = "validation"
    """Split to evaluate on."""
    short_edge: tuple[ImageEdge, ...] = (800,)
    """Lengths of the shorter image edge in training, in pixels; one is drawn at random for each image."""
    short_edge_test: ImageEdge = 800
    """Length of the shorter image edge at inference, in pixels."""
    long_edge: Annotated[int, at_most(LARGEST_EDGE)] = 1333
    """Maximum length of the longer image edge, in pixels; the shorter one is reduced where necessary."""
    max_objects: BoxCount = 100
    """Object slots of a training image; of an image with more objects the largest are kept."""
    mask_size: Annotated[PositiveInt, at_most(4_096)] = 112
    """Side of the training masks, in pixels, each cropped to its object's box."""
    padding_divisor: Annotated[NonNegativeInt, at_most(LARGEST_EDGE)] = 0
    """Padding at inference: 0 pads images to two fixed sizes, one for landscape and one for portrait; n pads
    each to multiples of n, which reproduces other libraries exactly (32; 1 without a pyramid) but compiles a
    program for each size. Training always uses the two sizes."""
    augment: AugmentationConfig = field(default_factory=AugmentationConfig)
    threads: Annotated[PositiveInt, at_most(1_024)] = 8
    """Threads that decode and resize images."""
    max_unreadable_images: NonNegativeInt = 10
    """Unreadable training images that are replaced by others, with a warning, before the run stops."""

    def __post_init__(self):
        require(bool(self.short_edge), "data.short_edge must have at least one length")
        check_fields("data", self)
        longest = max(*self.short_edge, self.short_edge_test)
        require(self.long_edge >= longest,
                f"data.long_edge must be at least the shorter edge {longest}, not {self.long_edge}")
