"""Colour, blur, noise and painted rectangles."""

import dataclasses

import numpy as np
import pytest
from example_records import STILL

from mrcnn_jax.config import AUGMENTATIONS
from mrcnn_jax.data.augment.pixels import add_noise, blur, change_color, change_pixels

TYPES = pytest.mark.parametrize("dtype", [np.uint8, np.float32])


def picture(dtype: type) -> np.ndarray:
    return np.random.default_rng(0).integers(40, 200, (30, 50, 3)).astype(dtype)


@TYPES
def test_unit_factors_change_nothing(dtype):
    image = picture(dtype)
    change_color(image, 1.0, 1.0, 1.0, 0.0)
    np.testing.assert_allclose(image, picture(dtype), atol=1e-3)


@TYPES
def test_brightness_multiplies_and_saturates(dtype):
    image = picture(dtype)
    change_color(image, 1.5, 1.0, 1.0, 0.0)
    np.testing.assert_allclose(image, (picture(float) * 1.5).clip(0, 255), atol=0.51)


def test_contrast_keeps_the_mean_and_scales_deviations():
    image = picture(np.float32) / 2 + 60
    before = image.copy()
    change_color(image, 1.0, 0.5, 1.0, 0.0)
    gray = before.mean(axis=(0, 1)) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(image, gray + (before - gray) / 2, atol=0.3)


def test_no_saturation_is_gray_of_the_same_luminance():
    image = picture(np.float32)
    change_color(image, 1.0, 1.0, 0.0, 0.0)
    luminance = picture(float) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(image, np.repeat(luminance[..., None], 3, axis=2), atol=0.3)


def test_hue_turns_a_third_of_the_circle_from_red_towards_another_primary():
    image = np.full((4, 4, 3), (150, 90, 90), np.float32)
    change_color(image, 1.0, 1.0, 1.0, 1 / 3)
    assert image[0, 0].argmax() != 0
    for _ in range(2):
        change_color(image, 1.0, 1.0, 1.0, 1 / 3)
    np.testing.assert_allclose(image, np.full((4, 4, 3), (150, 90, 90)), atol=0.5)


@TYPES
def test_noise_has_its_deviation_and_depends_on_its_place(dtype):
    images = [np.full((100, 100, 3), 128, dtype) for _ in range(3)]
    for image, place in zip(images, (5, 5, 77777), strict=True):
        add_noise(image, 6.0, place)
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[0] != images[2]).any()
    assert abs(images[0].astype(float).std() - 6.0) < 0.2 and abs(images[0].astype(float).mean() - 128) < 0.2


def test_blur_averages():
    image = np.zeros((31, 31, 3), np.uint8)
    image[15, 15] = 255
    blur(image, 1.0)
    assert 30 < image[15, 15, 0] < 50 and image[14, 15, 0] > 15


@TYPES
def test_part_of_an_image_is_changed_in_place_and_the_rest_left(dtype):
    canvas = np.zeros((40, 64, 3), dtype)
    canvas[:30, :50] = picture(dtype)
    strong = dataclasses.replace(AUGMENTATIONS["strong"], blur=1.0)
    change_pixels(canvas[:30, :50], np.random.default_rng(1), strong)
    assert (canvas[:30, :50] != picture(dtype)).mean() > 0.5
    assert not canvas[30:].any() and not canvas[:, 50:].any()
    assert canvas.min() >= 0 and canvas.max() <= 255


def test_nothing_is_drawn_without_augmentation():
    image, random = picture(np.uint8), np.random.default_rng(3)
    change_pixels(image, random, STILL)
    np.testing.assert_array_equal(image, picture(np.uint8))
    assert random.random() == np.random.default_rng(3).random()
