"""Sizes of resized images and resampled pixels, against other libraries and by hand."""

import numpy as np
import pytest

from mrcnn_jax.data.resize import resize, resized_size


@pytest.mark.parametrize(
    "size, short, long, nearest, down",
    [
        ((480, 640), 800, 1333, (800, 1067), (800, 1066)),  # 1066.67
        ((640, 480), 800, 1333, (1067, 800), (1066, 800)),
        ((1000, 600), 800, 1333, (1333, 800), (1333, 799)),
        ((500, 1000), 800, 1333, (667, 1333), (666, 1333)),  # the longer edge binds: 666.5 is rounded up
        ((300, 300), 800, 1333, (800, 800), (800, 800)),
        ((1600, 2000), 800, 1333, (800, 1000), (800, 1000)),  # shrinks too
        ((1, 5000), 800, 1333, (1, 1333), (1, 1333)),  # never nothing
        ((20, 30), 20, 32, (20, 30), (20, 30)),
    ],
)
def test_resized_size_by_hand(size, short, long, nearest, down):
    assert resized_size(*size, short, long) == resized_size(*size, short, long, "nearest") == nearest
    assert resized_size(*size, short, long, "down") == down


@pytest.mark.parametrize("library, rounding", [("d2", "nearest"), ("tv", "down")])
def test_resized_size_equals_the_libraries(golden, library, rounding):
    sizes = golden("transform")
    assert len(sizes["hw"]) == 8 and (sizes["d2_hw_800_1333"] != sizes["tv_hw_800_1333"]).any()
    for size, expected in zip(sizes["hw"], sizes[f"{library}_hw_800_1333"], strict=True):
        assert resized_size(*size, 800, 1333, rounding) == tuple(expected)


@pytest.mark.parametrize("name", ["d2_resize_up_100x150", "d2_resize_down_37x52"])
def test_antialiased_equals_detectron2(golden, name):
    arrays = golden("transform")
    expected = arrays[name]
    np.testing.assert_array_equal(resize(arrays["img0"], *expected.shape[:2], "antialiased"), expected)


def test_bilinear_equals_torchvision(golden):
    """torchvision normalises before it resizes; both are linear, so the order matters only to rounding."""
    arrays = golden("transform")
    for image, expected, step in (("img0", "batch0", 1), ("img1", "batch1_rows", 2)):
        image, expected, rows = arrays[image], arrays[expected].transpose(1, 2, 0), slice(None, None, step)
        height, width = resized_size(*image.shape[:2], 100, 140, "down")
        resized = resize(image, height, width, "bilinear")
        assert resized.dtype == np.float32
        normalised = ((resized / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])[rows]
        np.testing.assert_allclose(normalised, expected[: len(normalised), :width], rtol=0, atol=3e-5)


def test_shrinking_by_hand():
    """To a third: bilinear reads the middle pixel of three, area averages, antialiased weighs five pixels."""
    image = np.uint8([0, 0, 0, 240, 0, 0, 0, 90, 0])[None, :, None].repeat(3, axis=2)
    np.testing.assert_array_equal(resize(image, 1, 3, "bilinear")[0, :, 0], [0, 0, 90])
    np.testing.assert_array_equal(resize(image, 1, 3, "area")[0, :, 0], [0, 80, 30])
    # at distances 2 and 1 from the centres; the outer triangles have lost one weight of nine at the border
    expected = np.round([240 * 1 / 8, 240 * 2 / 9, 90 * 3 / 8])
    np.testing.assert_array_equal(resize(image, 1, 3, "antialiased")[0, :, 0], expected)


def test_enlarging_by_hand():
    """Centres at 1/4 and 3/4 of a pixel; beyond the last centre the border pixel is repeated."""
    image = np.uint8([[[0] * 3, [101] * 3]])
    row = np.array([0, 25.25, 75.75, 101])
    np.testing.assert_allclose(resize(image, 1, 4, "bilinear")[0, :, 0], row)
    for method in ("area", "antialiased"):
        resized = resize(image, 1, 4, method)
        assert resized.dtype == np.uint8
        np.testing.assert_array_equal(resized[0, :, 0], np.round(row))


@pytest.mark.parametrize("method", ["area", "antialiased", "bilinear"])
def test_flipped_image_is_resized_like_the_image(method):
    """Also where its rows run backwards in memory."""
    image = np.random.default_rng(0).integers(0, 256, (31, 17, 3), np.uint8)
    for height, width in ((31, 17), (60, 40), (12, 7)):
        resized = resize(image, height, width, method)
        assert resized.shape == (height, width, 3)
        flipped = resize(image[:, ::-1], height, width, method).astype(float)
        np.testing.assert_allclose(flipped, resized[:, ::-1], atol=1)
    np.testing.assert_array_equal(resize(image, 31, 17, method), image)
