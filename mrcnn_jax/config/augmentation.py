"""Configuration of the augmentation of training images, and its presets."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from mrcnn_jax.config.validation import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    at_most,
    check_fields,
    require,
)

_Change = Annotated[NonNegativeFloat, at_most(1)]
_Scale = Annotated[PositiveFloat, at_most(10)]


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of training images and their objects; all zero, images stay as they are."""

    flip: Fraction = 0.5
    """Share of images that are mirrored, left and right exchanged."""
    vertical_flip: Fraction = 0.0
    """Share of images that are turned upside down by a mirror."""
    quarter_turns: bool = False
    """Turn images by 0, 90, 180 or 270 degrees."""
    rotation: Annotated[NonNegativeFloat, at_most(180)] = 0.0
    """Largest angle by which images are rotated either way, in degrees."""
    scale_jitter: tuple[_Scale, _Scale] = (1.0, 1.0)
    """Range of a random scale factor; larger images are cropped at a random position."""
    crop: Fraction = 0.0
    """Share of images of which only a part is shown, around the centre of one of their objects."""
    crop_size: tuple[Annotated[PositiveFloat, at_most(1)], Annotated[PositiveFloat, at_most(1)]] = (0.5, 1.0)
    """Range of that part's height and width, as fractions of the image's."""
    min_visible: Fraction = 0.1
    """Smallest part of an object that must be left of it after cutting or covering, else it is left out."""
    copy_paste: Fraction = 0.0
    """Share of images onto which objects of another training image are pasted."""
    brightness: _Change = 0.0
    """Largest change of brightness either way, as a fraction."""
    contrast: _Change = 0.0
    """Largest change of contrast either way, as a fraction."""
    saturation: _Change = 0.0
    """Largest change of saturation either way, as a fraction."""
    hue: Annotated[NonNegativeFloat, at_most(0.5)] = 0.0
    """Largest rotation of the hue either way, in turns of the colour wheel."""
    blur: Fraction = 0.0
    """Share of images that are blurred, by a Gaussian of up to 2 pixels."""
    noise: Annotated[NonNegativeFloat, at_most(64)] = 0.0
    """Largest standard deviation of noise that is added to the levels 0 to 255."""
    cutout: Annotated[NonNegativeInt, at_most(64)] = 0
    """Largest number of rectangles that are painted over, each up to a fifth of the image's height and
    width."""

    def __post_init__(self):
        check_fields("data.augment", self)
        for name in ("scale_jitter", "crop_size"):
            low, high = getattr(self, name)
            require(low <= high, f"data.augment.{name} must be a range from low to high, not {low} {high}")


Augmentation = Literal["none", "paper", "light", "strong", "aerial", "microscopy"]
AUGMENTATIONS: Mapping[Augmentation, AugmentationConfig] = MappingProxyType({
    "none": AugmentationConfig(flip=0.0),
    "paper": AugmentationConfig(),
    "light": AugmentationConfig(scale_jitter=(0.8, 1.25), brightness=0.2, contrast=0.2, saturation=0.2),
    "strong": AugmentationConfig(
        scale_jitter=(0.5, 2.0), crop=0.3, rotation=5.0, brightness=0.4, contrast=0.4, saturation=0.4,
        hue=0.05, blur=0.1, noise=8.0, cutout=2, copy_paste=0.3,
    ),
    "aerial": AugmentationConfig(
        vertical_flip=0.5, quarter_turns=True, scale_jitter=(0.7, 1.5), crop=0.2, brightness=0.3,
        contrast=0.3, saturation=0.3, blur=0.1,
    ),
    "microscopy": AugmentationConfig(
        vertical_flip=0.5, quarter_turns=True, rotation=15.0, scale_jitter=(0.7, 1.5), brightness=0.3,
        contrast=0.3, hue=0.1, blur=0.2, noise=6.0,
    ),
})  # fmt: skip
"""Presets: "paper" mirrors half of the images, as the paper does."""
