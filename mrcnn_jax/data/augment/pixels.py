"""Changes of the pixels of an image alone: colour, blur, noise, rectangles painted over.

Images are [H, W, 3] with levels 0 to 255, uint8 or float32, and are changed in place.
"""

from functools import cache

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from mrcnn_jax.config import AugmentationConfig
from mrcnn_jax.data.augment.view import FILL

Pixels = UInt8[np.ndarray, "H W 3"] | Float[np.ndarray, "H W 3"]
LARGEST_SIGMA = 2.0
"""Of the blur, in pixels."""
LARGEST_CUT = 0.2
"""Height and width of painted rectangles, as fractions of the image's."""
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_NOISE = 1 << 18
"""Random numbers of the table, which is repeated over an image."""


def change_pixels(image: Pixels, random: np.random.Generator, config: AugmentationConfig) -> None:
    """Draws the changes that a configuration allows, and applies them."""
    changes = config.brightness, config.contrast, config.saturation, config.hue
    if any(changes):
        brightness, contrast, saturation, hue = (random.uniform(-1, 1) * change for change in changes)
        change_color(image, 1 + brightness, 1 + contrast, 1 + saturation, hue)
    if config.blur and random.random() < config.blur:
        blur(image, random.uniform(0.3, LARGEST_SIGMA))
    if config.noise:
        add_noise(image, random.uniform(0, config.noise), int(random.integers(_NOISE)))
    for _ in range(int(random.integers(config.cutout + 1)) if config.cutout else 0):
        paint_rectangle(image, random)


def change_color(image: Pixels, brightness: float, contrast: float, saturation: float, hue: float) -> None:
    """Applies brightness and contrast as factors, saturation as a factor and hue in turns, as one linear map.

    Contrast is about the image's mean level, saturation and hue in the colour space YIQ.
    """
    angle = 2 * np.pi * hue
    turn = saturation * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    chroma = np.eye(3)
    chroma[1:, 1:] = turn
    matrix = brightness * contrast * np.linalg.inv(_TO_YIQ) @ chroma @ _TO_YIQ
    mean = brightness * float(np.dot(cv2.mean(image)[:3], _TO_YIQ[0]))
    offset = np.full((3, 1), (1 - contrast) * mean)
    cv2.transform(image, np.hstack([matrix, offset]), dst=image)
    _clip(image)


def blur(image: Pixels, sigma: float) -> None:
    """Blurs with a Gaussian, ``sigma`` in pixels."""
    cv2.GaussianBlur(image, (0, 0), sigma, dst=image)


def add_noise(image: Pixels, deviation: float, place: int) -> None:
    """Adds Gaussian noise of a standard deviation in levels, from a place of a table of random numbers."""
    noise = np.concatenate([_noise()[place:], _noise()[:place]]) * np.float32(deviation)
    whole = image.dtype == np.uint8
    noise = np.resize(np.rint(noise).astype(np.int16) if whole else noise, image.shape)
    cv2.add(image, noise, dst=image, dtype=cv2.CV_8U if whole else cv2.CV_32F)
    _clip(image)


@cache
def _noise() -> Float[np.ndarray, "n"]:
    return np.random.default_rng(0).standard_normal(_NOISE, np.float32)


def _clip(image: Pixels) -> None:
    if image.dtype != np.uint8:  # OpenCV saturates whole levels itself
        np.clip(image, 0, 255, out=image)


def paint_rectangle(image: Pixels, random: np.random.Generator) -> None:
    """Paints a rectangle of random size and place."""
    height, width = image.shape[:2]
    high, wide = (max(1, int(side * random.uniform(0.02, LARGEST_CUT))) for side in (height, width))
    top, left = int(random.integers(height - high + 1)), int(random.integers(width - wide + 1))
    image[top : top + high, left : left + wide] = FILL
