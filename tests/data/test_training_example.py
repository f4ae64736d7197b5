"""Training examples: flips, random sizes, object slots, crowds, objects without masks."""

import dataclasses

import numpy as np
import pytest
from example_records import (
    AS_IT_IS,
    BLUE,
    FACES,
    FLIPPING,
    GREEN,
    RED,
    THINGS,
    crop_by_pixel,
    example,
    flipped_example,
    letter,
    picture_of,
    record,
)

from mrcnn_jax.config import DataConfig
from mrcnn_jax.data.augment.example import training_example
from mrcnn_jax.errors import InputError

BLANK = np.zeros((20, 30, 3), np.uint8)


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_image_that_cannot_be_decoded_is_named_by_id_and_file(data):
    with pytest.raises(InputError, match=r"image 7 \(seven.png\)"):
        example(record(BLANK)._replace(image=data))


# ---- masks


def test_box_beyond_the_image_is_clipped_and_its_mask_fills_it():
    mask = np.zeros((20, 30), np.uint8)
    mask[5:13, :4] = 1
    one = example(record(picture_of(mask), [[-4, 5, 4, 13]], [mask]))
    np.testing.assert_array_equal(one.boxes[0], [0, 5, 4, 13])
    assert one.masks[0].all()


def test_box_within_a_pixel_of_the_image_stays_as_annotated():
    """Annotations of COCO end a fraction of a pixel beyond the image; the mask is 0 there."""
    mask = np.zeros((20, 30), np.uint8)
    mask[5:13, :4] = 1
    one = example(record(picture_of(mask), [[-1, 5, 4, 13]], [mask]))
    np.testing.assert_array_equal(one.boxes[0], [-1, 5, 4, 13])
    assert not one.masks[0, :, 0].any() and one.masks[0, :, -1].all()


def test_model_without_masks_gets_zero_masks_and_everything_else():
    mask, box = letter()
    given = record(picture_of(mask), [box], [mask])
    full, bare = (
        vars(training_example(given, THINGS, AS_IT_IS, np.random.default_rng(0), masks=masks))
        for masks in (True, False)
    )
    assert full["masks"].any() and bare["masks"].dtype == full["masks"].dtype
    np.testing.assert_array_equal(bare.pop("masks"), np.zeros_like(full.pop("masks")))
    for name in full:
        np.testing.assert_array_equal(bare[name], full[name])


def test_object_without_a_mask_has_a_zero_mask():
    assert not example(record(BLANK, [[1, 1, 9, 9]])).masks.any()


def test_crowd_has_a_box_and_a_flag_but_no_mask():
    mask, box = letter()
    one = example(record(picture_of(mask), [box, box], [mask, mask], crowd=[True, False]))
    np.testing.assert_array_equal(one.crowd, [True, False, False, False])
    np.testing.assert_array_equal(one.valid, [True, True, False, False])
    np.testing.assert_array_equal(one.boxes[0], box)
    assert not one.masks[0].any() and one.masks[1].any()


# ---- augmentation


def test_flipped_image_boxes_and_masks_equal_flipping_by_hand():
    mask, box = letter()
    second = np.zeros_like(mask)
    second[0:3, 22:30] = 1
    image = picture_of(mask) + picture_of(second, BLUE)
    one = flipped_example(record(image, [box, [22, 0, 30, 3]], [mask, second], classes=[2, 1]))
    np.testing.assert_array_equal(one.sizes, [20, 30])
    expected = np.zeros((32, 32, 3), np.uint8)  # flipped within the image, not within the padding
    expected[:20, :30] = image[:, ::-1]
    np.testing.assert_array_equal(one.images, expected)
    np.testing.assert_array_equal(one.boxes, [[11, 4, 24, 15], [0, 0, 8, 3], [0] * 4, [0] * 4])
    np.testing.assert_array_equal(one.classes, [2, 1, 0, 0])
    for slot, color in enumerate((RED, BLUE)):
        seen = (one.images == color).all(axis=2).astype(np.uint8)
        np.testing.assert_array_equal(one.masks[slot], crop_by_pixel(seen, one.boxes[slot], 16))
    assert 0 < one.masks[0].mean() < 1 and one.masks[1].all()
    assert one.masks.flags.c_contiguous


def test_left_and_right_keypoints_trade_places_in_a_flip():
    image = BLANK.copy()
    image[10, 12], image[5, 8], image[6, 17] = RED, GREEN, BLUE  # nose, left eye, right eye
    points = [
        [[12.5, 10.5, 2], [8.5, 5.5, 1], [17.5, 6.5, 2]],
        [[0, 0, 0], [3.0, 3.0, 0], [17.5, 6.5, 1]],
    ]
    given = record(image, [[2, 2, 22, 18], [5, 5, 20, 20]], keypoints=points)
    plain, flipped = example(given, info=FACES), flipped_example(given, FACES)
    assert plain.keypoints.shape == (4, 3, 3)
    # an unlabelled keypoint has coordinates 0 whatever was annotated
    np.testing.assert_array_equal(plain.keypoints[:2], [points[0], [[0] * 3, [0] * 3, [17.5, 6.5, 1]]])
    expected = [
        [[17.5, 10.5, 2], [12.5, 6.5, 2], [21.5, 5.5, 1]],
        [[0, 0, 0], [12.5, 6.5, 1], [0, 0, 0]],
    ]
    np.testing.assert_array_equal(flipped.keypoints[:2], expected)
    for color, (x, y, _) in zip((RED, BLUE, GREEN), flipped.keypoints[0], strict=True):
        np.testing.assert_array_equal(flipped.images[int(y), int(x)], color)
    assert not flipped.keypoints[2:].any()


def test_half_of_the_images_are_flipped_or_none_without_flip():
    given = record(picture_of(letter()[0]))
    plain = example(given).images
    flipped = [not np.array_equal(example(given, FLIPPING, seed=seed).images, plain) for seed in range(200)]
    assert 70 < sum(flipped) < 130
    assert all(np.array_equal(example(given, seed=seed).images, plain) for seed in range(20))


def test_short_edge_is_drawn_among_those_configured():
    config = DataConfig(
        short_edge=(16, 20, 24), short_edge_test=20, long_edge=40, max_objects=1, mask_size=4
    )
    sizes = [tuple(example(record(BLANK), config, seed=seed).sizes.tolist()) for seed in range(60)]
    assert {size: sizes.count(size) > 8 for size in sizes} == {(16, 24): True, (20, 30): True, (24, 36): True}


# ---- object slots


def test_of_too_many_objects_the_largest_are_kept_in_order():
    mask, box = letter()
    boxes = np.array([box] * 6) + np.arange(6)[:, None] * 0.5
    masks = [np.roll(mask, i, axis=1) for i in range(6)]
    options = {"areas": [5, 90, 20, 20, 1000, 30], "crowd": np.arange(6) == 1}
    one = example(record(picture_of(mask), boxes, masks, classes=[0, 1, 2, 0, 1, 2], **options))
    assert one.valid.all()
    np.testing.assert_array_equal(one.boxes, boxes[[1, 2, 4, 5]])
    np.testing.assert_array_equal(one.classes, [1, 2, 1, 2])
    np.testing.assert_array_equal(one.crowd, [True, False, False, False])
    for slot, index in ((1, 2), (2, 4), (3, 5)):
        np.testing.assert_array_equal(one.masks[slot], crop_by_pixel(masks[index], boxes[index], 16))


def test_of_too_many_equal_objects_the_first_are_kept():
    areas = np.random.default_rng(0).integers(1, 4, 500)
    boxes = np.array([[0, 0, 9, 9]] * 500) + np.arange(500)[:, None] / 32
    one = example(record(picture_of(letter()[0]), boxes, areas=areas))
    np.testing.assert_array_equal(one.boxes, boxes[areas == 3][:4])


@pytest.mark.parametrize("info", [THINGS, FACES], ids=["things", "keypoints"])
@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_shapes_and_types_do_not_depend_on_the_objects(info, count):
    joints = len(info.keypoint_names)
    for make in (lambda given: example(given, info=info), lambda given: flipped_example(given, info)):
        one = make(record(picture_of(letter()[0]), [[1, 2, 9, 12]] * count, joints=joints))
        assert {name: (value.shape, value.dtype) for name, value in vars(one).items()} == {
            "images": ((32, 32, 3), np.uint8),
            "sizes": ((2,), np.int32),
            "boxes": ((4, 4), np.float32),
            "classes": ((4,), np.int32),
            "valid": ((4,), np.bool_),
            "crowd": ((4,), np.bool_),
            "masks": ((4, 16, 16), np.uint8),
            "has_mask": ((4,), np.bool_),
            "keypoints": ((4, joints, 3), np.float32),
        }
        assert one.valid.sum() == min(count, 4) and not one.valid[count:].any()
        assert not one.boxes[count:].any() and not one.masks.any()


def test_record_is_not_modified():
    mask, box = letter()
    points = [[[12.5, 10.5, 2], [8.5, 5.5, 1], [0, 0, 0]]]
    given = record(picture_of(mask), [box], [mask], keypoints=points)
    before = [np.copy(field) for field in given.objects]
    enlarging = dataclasses.replace(FLIPPING, short_edge=(30,), short_edge_test=30, long_edge=64)
    for seed in range(8):
        example(given, enlarging, FACES, seed)
    for field, expected in zip(given.objects, before, strict=True):
        np.testing.assert_array_equal(field, expected)
