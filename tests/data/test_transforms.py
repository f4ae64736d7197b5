"""Sizes, padding and resizing of images, as torchvision's; masks cropped to boxes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_records import AS_IT_IS, STILL, crop, crop_by_pixel, example, letter, picture_of, record

from mrcnn_jax import ops
from mrcnn_jax.config import DETECTRON2, OURS, TORCHVISION, DataConfig
from mrcnn_jax.data.augment.mask_runs import MaskRuns
from mrcnn_jax.data.resize import resized_size
from mrcnn_jax.data.transforms import (
    decode_record,
    inference_sizes,
    is_portrait,
    padded_size,
    resize_and_pad,
)
from mrcnn_jax.structures import DatasetInfo

BILINEAR = dataclasses.replace(OURS, resize="bilinear")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
crop_masks = jax.jit(ops.crop_masks, static_argnames=("size", "sampling_ratio"))

# ---- sizes


def test_every_resized_image_fits_its_padded_size():
    config = DataConfig(short_edge=(640, 800), short_edge_test=700)
    sizes = np.exp(np.random.default_rng(0).uniform(0, 9, (2000, 2))).astype(int) + 1
    for (height, width), portrait in zip(sizes.tolist(), is_portrait(sizes).tolist(), strict=True):
        padded = padded_size(config, portrait)
        for short in (640, 700, 800):
            for rounding in ("nearest", "down"):
                resized = resized_size(height, width, short, config.long_edge, rounding)
                assert (np.array(resized) <= padded).all()
                assert max(resized) <= 1333 and min(resized) >= 1


def test_padded_size_is_one_for_landscape_and_one_for_portrait():
    assert padded_size(DataConfig(), portrait=False) == (800, 1344)
    assert padded_size(DataConfig(), portrait=True) == (1344, 800)
    several = DataConfig(short_edge=(480, 801), short_edge_test=640, long_edge=1024)
    assert padded_size(several, portrait=False) == (832, 1024)
    larger_test_images = DataConfig(short_edge=(480,), short_edge_test=810)
    assert padded_size(larger_test_images, portrait=True) == (1344, 832)


def test_square_images_are_landscape():
    np.testing.assert_array_equal(is_portrait(np.array([[30, 20], [20, 20], [20, 30]])), [True, False, False])


@pytest.mark.parametrize(
    "height, width, size, padded",
    [
        (20, 30, (20, 30), (32, 32)),
        (45, 30, (30, 20), (32, 32)),
        (33, 33, (20, 20), (32, 32)),
        (10, 100, (3, 32), (32, 32)),
        (7, 9, (20, 26), (32, 32)),
    ],
)
def test_padding_is_zero_at_the_right_and_the_bottom(height, width, size, padded):
    image = np.full((height, width, 3), 200, np.uint8)
    resized, around = inference_sizes(height, width, AS_IT_IS)
    result = resize_and_pad(image, resized, around)
    assert resized == size and result.shape == (*padded, 3) and result.dtype == np.uint8
    assert (result[: size[0], : size[1]] == 200).all()
    assert not result[size[0] :].any() and not result[:, size[1] :].any()


@pytest.mark.parametrize("divisor, expected", [(0, (64, 96)), (32, (64, 64)), (1, (41, 61)), (16, (48, 64))])
def test_padding_divisor_pads_to_multiples(divisor, expected):
    config = DataConfig(short_edge=(41,), short_edge_test=41, long_edge=90, padding_divisor=divisor)
    assert inference_sizes(82, 122, config) == ((41, 61), expected)
    assert inference_sizes(122, 82, config) == ((61, 41), expected[::-1])


# ---- images and objects of other libraries


@pytest.fixture(scope="module")
def from_torchvision(golden):
    """Two images and their objects transformed by torchvision (short edge 100, long 140) and by us."""
    arrays = golden("transform")
    info = DatasetInfo("one", (1,), ("a",), ("joint",), (0,))
    config = DataConfig(
        short_edge=(100,), short_edge_test=100, long_edge=140, max_objects=1, mask_size=56, augment=STILL
    )
    records = [
        record(
            arrays[f"img{i}"], arrays[f"src{i}_boxes"], arrays[f"src{i}_masks"],
            keypoints=arrays[f"src{i}_keypoints"],
        )
        for i in range(2)
    ]  # fmt: skip

    def examples(conventions=OURS):
        return [example(given, config, info, conventions=conventions) for given in records]

    return arrays, examples


def test_images_equal_torchvision(from_torchvision):
    arrays, examples = from_torchvision
    golden = (arrays["batch0"], 1), (arrays["batch1_rows"], 2)
    for one, (expected, step) in zip(examples(TORCHVISION), golden, strict=True):
        assert one.images.dtype == np.float32
        height, width = one.sizes
        inside = np.zeros((*one.images.shape[:2], 1), bool)
        inside[:height, :width] = True
        normalised = np.where(inside, (one.images / 255 - MEAN) / STD, 0)[::step]
        rows, columns = normalised.shape[:2]
        # torchvision pads the two to one size: beyond our padding it is zero as well
        expected = expected.transpose(1, 2, 0)
        np.testing.assert_allclose(normalised, expected[:rows, :columns], rtol=0, atol=3e-5)
        assert not expected[rows:].any() and not expected[:, columns:].any()


@pytest.mark.parametrize("conventions", [OURS, DETECTRON2, TORCHVISION])
def test_objects_equal_torchvision(from_torchvision, conventions):
    """Boxes and keypoints follow the integer sizes, not the nominal scale: 60 -> 93, 90 -> 140."""
    arrays, examples = from_torchvision
    for i, one in enumerate(examples(conventions)):
        np.testing.assert_array_equal(one.sizes, arrays["image_sizes"][i])
        np.testing.assert_allclose(one.boxes, arrays[f"tgt{i}_boxes"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(one.keypoints, arrays[f"tgt{i}_keypoints"], rtol=0, atol=1e-4)
        # torch's "nearest" reads the pixel at the upper left corner, half an old pixel from our cell's centre
        resized = crop(arrays[f"tgt{i}_masks"][0], one.boxes[0], 56)
        assert (one.masks[0] != resized).mean() < 0.03
        assert 0.5 < one.masks[0].mean() < 0.7


def test_area_and_antialiased_enlarge_bilinearly_and_round(from_torchvision):
    _, examples = from_torchvision
    for exact, *rounded in zip(examples(BILINEAR), examples(), examples(DETECTRON2), strict=True):
        for one in rounded:
            assert one.images.dtype == np.uint8
            np.testing.assert_allclose(one.images.astype(float), exact.images, rtol=0, atol=1)


@pytest.mark.parametrize("conventions", [OURS, DETECTRON2, TORCHVISION])
@pytest.mark.parametrize("size", [(33, 47), (47, 33), (15, 40)])
def test_detection_resizes_as_training_does(size, conventions):
    made = record(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    expected = example(made, conventions=conventions)
    resized, padded = inference_sizes(*size, AS_IT_IS, conventions)
    image = resize_and_pad(decode_record(made), resized, padded, conventions)
    assert image.dtype == expected.images.dtype
    np.testing.assert_array_equal(image, expected.images)
    np.testing.assert_array_equal(resized, expected.sizes)


def test_shrinking_averages():
    image = np.zeros((40, 60, 3), np.uint8)
    image[::2, ::2] = 200  # a grid that bilinear sampling would hit or miss
    size, padded = inference_sizes(40, 60, AS_IT_IS)
    assert size == (20, 30) and (resize_and_pad(image, size, padded)[:20, :30] == 50).all()


# ---- masks cropped to boxes


def test_crop_mask_equals_the_definition():
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (23, 31)).astype(np.uint8)
    for size in (1, 5, 28):
        for _ in range(20):
            corner = rng.uniform(-8, 25, 2)
            box = np.concatenate([corner, corner + rng.uniform(0.05, 20, 2)])
            np.testing.assert_array_equal(crop(mask, box, size), crop_by_pixel(mask, box, size))


def test_crop_mask_by_hand():
    mask = np.array([[1, 0, 1], [0, 1, 1]], np.uint8)
    enlarged = crop(mask, np.array([0.0, 0.0, 3.0, 2.0]), 6)
    np.testing.assert_array_equal(enlarged, np.kron(mask, np.ones((3, 2))))
    # the left half of the cells lies left of the image, the lower half below it
    beyond = crop(mask, np.array([-2.0, 0.0, 2.0, 4.0]), 4)
    np.testing.assert_array_equal(beyond, [[0, 0, 1, 0], [0, 0, 0, 1], [0] * 4, [0] * 4])


def test_an_object_without_a_mask_has_zero_crops():
    assert not MaskRuns("", 4, 6).crop(np.array([0.0, 0.0, 6.0, 4.0]), 3).any()


def test_cropping_a_cropped_mask_to_its_own_box_gives_it_back():
    rng = np.random.default_rng(0)
    boxes = np.float32([[3.3, 1.7, 20.9, 18.2], [0, 0, 30, 20], [-3.0, 2.5, 11.25, 30.0]])
    masks = np.stack([crop(rng.integers(0, 2, (20, 30)).astype(np.uint8), box, 16) for box in boxes])
    given = jnp.float32(masks), jnp.asarray(boxes), jnp.asarray(boxes)
    np.testing.assert_allclose(crop_masks(*given, size=16, sampling_ratio=1), masks, atol=1e-4)
    np.testing.assert_array_equal(np.round(crop_masks(*given, size=16)), masks)


def test_pixels_of_an_object_survive_cropping_and_enlarging():
    """13 x 13 pixels in 39 x 39 cells, and back at one bin per pixel: exactly the mask."""
    mask, _ = letter()
    config = DataConfig(
        short_edge=(50,), short_edge_test=50, long_edge=90, max_objects=1, mask_size=39, augment=STILL
    )
    one = example(record(picture_of(mask), [[6, 3, 19, 16]], [mask]), config)
    np.testing.assert_allclose(one.boxes[0], [15, 7.5, 47.5, 40], rtol=1e-6)
    box = jnp.asarray(one.boxes)
    cropped = crop_masks(jnp.float32(one.masks), box, box, size=13, sampling_ratio=1)
    np.testing.assert_allclose(cropped[0], mask[3:16, 6:19], atol=1e-4)
