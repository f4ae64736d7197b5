"""Configuration of the data set and of the sizes of its images."""

from dataclasses import dataclass, field
from typing import Annotated

from mrcnn_jax.config.augmentation import AugmentationConfig
from mrcnn_jax.config.validation import (
    BELOW_ONE,
    LARGEST_EDGE,
    BoxCount,
    Fraction,
    ImageEdge,
    NonNegativeInt,
    PositiveFloat,
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
    extra_datasets: tuple[str, ...] = ()
    """More data sets to train on, each with train_split. Classes are merged by name, in the order of the data
    sets; keypoints are learned if they are equal in all. Evaluations are on dataset alone."""
    weights: tuple[PositiveFloat, ...] = ()
    """Relative numbers of images sampled of dataset and of each of extra_datasets; none samples every image
    equally often."""
    repeat_threshold: Fraction = 0.0
    """Repeat-factor sampling (LVIS), such as 0.001: an image is sampled up to sqrt(repeat_threshold / f)
    times as often, where f is the share of images with its rarest class; 0 samples all equally often."""
    empty_share: Annotated[Fraction, BELOW_ONE] | None = None
    """Share of images without objects among the images sampled; none leaves it as it is in the data."""
    train_split: str = "train"
    """Split to train on."""
    validation_split: str = "validation"
    """Split to evaluate on."""
    short_edge: tuple[ImageEdge, ...] = (800,)
    """Lengths of the shorter image edge in training, in pixels; one is chosen at random for each image."""
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
        sets = 1 + len(self.extra_datasets)
        require(len(self.weights) in (0, sets),
                f"data.weights must have a number for each of {sets} data sets, or none, not {self.weights}")
        longest = max(*self.short_edge, self.short_edge_test)
        require(self.long_edge >= longest,
                f"data.long_edge must be at least the shorter edge {longest}, not {self.long_edge}")
