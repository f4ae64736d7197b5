"""Training examples: sizes, padding, flips, masks cropped to boxes, object slots."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_jax import ops
from mrcnn_jax.config import DETECTRON2, OURS, TORCHVISION, Conventions, DataConfig
from mrcnn_jax.data.dataset import Objects, Record
from mrcnn_jax.data.pipeline import evaluation_batches
from mrcnn_jax.data.resize import resized_size
from mrcnn_jax.data.transforms import (
    crop_mask,
    decode_mask,
    inference_sizes,
    is_portrait,
    padded_size,
    resize_and_pad,
    training_example,
)
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo

crop_masks = jax.jit(ops.crop_masks, static_argnames=("size", "sampling_ratio"))
RED, GREEN, BLUE = np.eye(3, dtype=np.uint8) * 255
THINGS = DatasetInfo("things", (1, 2, 3), ("a", "b", "c"))
FACES = DatasetInfo("faces", (1,), ("face",), ("nose", "left_eye", "right_eye"), keypoint_flip=(0, 2, 1))
AS_IT_IS = DataConfig(short_edge=(20,), short_edge_test=20, long_edge=32, max_objects=4, mask_size=16, flip=False)  # a 20x30 image keeps its size
MIRRORING = dataclasses.replace(AS_IT_IS, flip=True)
BILINEAR = dataclasses.replace(OURS, resize="bilinear")


def encode(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def rle(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


def record(image: np.ndarray, boxes=(), masks=None, classes=None, areas=None, crowd=None, keypoints=None, joints: int = 0) -> Record:
    """Objects without a mask unless masks are given; areas are those of the boxes unless given."""
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    count = len(boxes)
    objects = Objects(
        ids=np.arange(count) + 1,
        boxes=boxes,
        classes=np.zeros(count, np.int32) if classes is None else np.array(classes, np.int32),
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) if areas is None else np.array(areas, np.float64),
        crowd=np.zeros(count, bool) if crowd is None else np.array(crowd),
        rles=[""] * count if masks is None else [rle(mask) for mask in masks],
        keypoints=np.zeros((count, joints, 3), np.float32) if keypoints is None else np.array(keypoints, np.float32),
    )
    return Record(encode(image), image_id=7, file_name="seven.png", height=image.shape[0], width=image.shape[1], objects=objects)


def example(
    given: Record,
    config: DataConfig = AS_IT_IS,
    info: DatasetInfo = THINGS,
    seed: int = 0,
    conventions: Conventions = OURS,
):
    return training_example(given, info, config, np.random.default_rng(seed), conventions=conventions)


def mirrored_example(given: Record, info: DatasetInfo = THINGS):
    """The first of a few draws in which the image is not as it was."""
    plain = example(given, info=info).images
    draws = (example(given, MIRRORING, info, seed) for seed in range(50))
    return next(draw for draw in draws if not np.array_equal(draw.images, plain))


def picture_of(mask: np.ndarray, color: np.ndarray = RED) -> np.ndarray:
    return mask[..., None] * color


def letter(height: int = 20, width: int = 30) -> tuple[np.ndarray, list[float]]:
    """An asymmetric object, an "L" with a dot, and its box."""
    mask = np.zeros((height, width), np.uint8)
    mask[4:15, 6:9] = mask[12:15, 6:19] = mask[5, 17] = 1
    return mask, [6, 4, 19, 15]


# ---- sizes


def test_every_resized_image_fits_its_padded_size():
    config, rng = DataConfig(short_edge=(640, 800), short_edge_test=700), np.random.default_rng(0)
    for height, width in np.exp(rng.uniform(0, 9, (5000, 2))).astype(int) + 1:
        for short in (640, 700, 800):
            padded = padded_size(config, bool(is_portrait(np.array([[height, width]]))[0]))
            for rounding in ("nearest", "down"):
                resized = resized_size(height, width, short, config.long_edge, rounding)
                assert resized[0] <= padded[0] and resized[1] <= padded[1] and max(resized) <= 1333 and min(resized) >= 1


def test_padded_size_is_one_for_landscape_and_one_for_portrait():
    assert padded_size(DataConfig(), portrait=False) == (800, 1344) and padded_size(DataConfig(), portrait=True) == (1344, 800)
    several = DataConfig(short_edge=(480, 801), short_edge_test=640, long_edge=1024)
    assert padded_size(several, portrait=False) == (832, 1024)
    assert padded_size(DataConfig(short_edge=(480,), short_edge_test=810), portrait=True) == (1344, 832)  # room for the test images too


def test_square_images_are_landscape():
    np.testing.assert_array_equal(is_portrait(np.array([[30, 20], [20, 20], [20, 30]])), [True, False, False])


@pytest.mark.parametrize("height, width, size, padded", [(20, 30, (20, 30), (32, 32)), (45, 30, (30, 20), (32, 32)), (33, 33, (20, 20), (32, 32)),
                                                         (10, 100, (3, 32), (32, 32)), (7, 9, (20, 26), (32, 32))])  # fmt: skip
def test_padding_is_zero_and_only_at_the_right_and_the_bottom(height, width, size, padded):
    image = np.full((height, width, 3), 200, np.uint8)
    resized, around = inference_sizes(height, width, AS_IT_IS)
    result = resize_and_pad(image, resized, around)
    assert resized == size and result.shape == (*padded, 3) and result.dtype == np.uint8
    assert (result[: size[0], : size[1]] == 200).all()
    assert not result[size[0] :].any() and not result[:, size[1] :].any()


def test_landscape_and_portrait_lie_in_different_shapes():
    config = DataConfig(short_edge=(40,), short_edge_test=40, long_edge=70)
    for shape, expected in (((50, 60), (64, 96, 3)), ((60, 50), (96, 64, 3)), ((50, 50), (64, 96, 3))):
        size, padded = inference_sizes(*shape, config)
        assert resize_and_pad(np.zeros((*shape, 3), np.uint8), size, padded).shape == expected


@pytest.mark.parametrize("divisor, expected", [(0, (64, 96)), (32, (64, 64)), (1, (41, 61)), (16, (48, 64))])
def test_padding_divisor(divisor, expected):
    config = DataConfig(short_edge=(41,), short_edge_test=41, long_edge=90, padding_divisor=divisor)
    assert inference_sizes(82, 122, config) == ((41, 61), expected)
    assert inference_sizes(122, 82, config) == ((61, 41), expected[::-1])


@pytest.fixture(scope="module")
def from_torchvision(golden):
    """Two images, their objects, and what torchvision's transform makes of them: shorter edge 100, longer at most 140."""
    arrays = golden("transform")
    info = DatasetInfo("one", (1,), ("a",), ("joint",), (0,))
    config = DataConfig(short_edge=(100,), short_edge_test=100, long_edge=140, max_objects=1, mask_size=56, flip=False)
    records = [record(arrays[f"img{i}"], arrays[f"src{i}_boxes"], arrays[f"src{i}_masks"], keypoints=arrays[f"src{i}_keypoints"]) for i in range(2)]

    def examples(conventions=OURS):
        return [example(given, config, info, conventions=conventions) for given in records]

    return arrays, examples


def test_images_equal_torchvision(from_torchvision):
    arrays, examples = from_torchvision
    for batch, expected, step in zip(examples(TORCHVISION), (arrays["batch0"], arrays["batch1_rows"]), (1, 2), strict=True):
        assert batch.images.dtype == np.float32
        height, width = batch.sizes
        inside = np.zeros((*batch.images.shape[:2], 1), bool)
        inside[:height, :width] = True
        seen = np.where(inside, (batch.images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], 0)[::step]
        # torchvision pads the two to one size: what lies beyond our padding is zero as well
        np.testing.assert_allclose(seen, expected.transpose(1, 2, 0)[: seen.shape[0], : seen.shape[1]], rtol=0, atol=3e-5)
        assert not expected[:, seen.shape[0] :].any() and not expected[:, :, seen.shape[1] :].any()


@pytest.mark.parametrize("conventions", [OURS, DETECTRON2, TORCHVISION])
def test_objects_equal_torchvision(from_torchvision, conventions):
    """Boxes and keypoints follow the sizes really reached, not the scale aimed at: 60 -> 93, 90 -> 140."""
    arrays, examples = from_torchvision
    for i, batch in enumerate(examples(conventions)):
        np.testing.assert_array_equal(batch.sizes, arrays["image_sizes"][i])
        np.testing.assert_allclose(batch.boxes, arrays[f"tgt{i}_boxes"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(batch.keypoints, arrays[f"tgt{i}_keypoints"], rtol=0, atol=1e-4)
        # torch's "nearest" reads the pixel at the upper left corner of each new one, half an old pixel from where our cells read
        np.testing.assert_array_less((batch.masks[0] != crop_mask(arrays[f"tgt{i}_masks"][0], batch.boxes[0], 56)).mean(), 0.03)
        assert 0.5 < batch.masks[0].mean() < 0.7


def test_area_and_antialiased_enlarge_bilinearly_too_in_whole_levels(from_torchvision):
    _, examples = from_torchvision
    for kinds in zip(examples(BILINEAR), examples(), examples(DETECTRON2), strict=True):
        for batch in kinds[1:]:
            assert batch.images.dtype == np.uint8
            np.testing.assert_allclose(batch.images.astype(float), kinds[0].images, rtol=0, atol=1)


class Records(list):
    """What evaluation asks of a source."""

    @property
    def sizes(self):
        return np.array([[given.height, given.width] for given in self])


@pytest.mark.parametrize("conventions", [OURS, DETECTRON2, TORCHVISION])
def test_evaluation_resizes_as_training_does(conventions):
    rng = np.random.default_rng(0)
    source = Records(record(rng.integers(0, 256, (*size, 3), np.uint8)) for size in ((33, 47), (47, 33), (15, 40)))
    for batch in evaluation_batches(source, AS_IT_IS, 2, conventions=conventions):
        for image, size, original, valid in zip(batch.images, batch.sizes, *batch.info[1:], strict=True):
            if valid:
                given = next(one for one in source if (one.height, one.width) == tuple(original))
                trained = example(given, conventions=conventions)
                assert image.dtype == trained.images.dtype
                np.testing.assert_array_equal(image, trained.images)
                np.testing.assert_array_equal(size, trained.sizes)
            else:
                assert not image.any()


def test_shrinking_averages():
    image = np.zeros((40, 60, 3), np.uint8)
    image[::2, ::2] = 200  # a grid that bilinear sampling would hit or miss
    size, padded = inference_sizes(40, 60, AS_IT_IS)
    result = resize_and_pad(image, size, padded)
    assert size == (20, 30) and (result[:20, :30] == 50).all()


def test_a_training_image_that_cannot_be_decoded_is_named_by_id_and_file():
    for data in (b"", b"no image"):
        with pytest.raises(InputError, match=r"image 7 \(seven.png\)"):
            example(record(np.zeros((20, 30, 3), np.uint8))._replace(image=data))


# ---- masks in their boxes


def brute_force_crop(mask, box, size):
    x1, y1, x2, y2 = box
    crop = np.zeros((size, size), np.uint8)
    for i in range(size):
        for j in range(size):
            y, x = int(np.floor(y1 + (i + 0.5) / size * (y2 - y1))), int(np.floor(x1 + (j + 0.5) / size * (x2 - x1)))
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]:
                crop[i, j] = mask[y, x]
    return crop


def test_crop_mask_equals_brute_force():
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (23, 31)).astype(np.uint8)
    for size in (1, 5, 28):
        for _ in range(40):
            corner = rng.uniform(-8, 25, 2)
            box = np.concatenate([corner, corner + rng.uniform(0.05, 20, 2)])
            np.testing.assert_array_equal(crop_mask(mask, box, size), brute_force_crop(mask, box, size))


def test_crop_mask_by_hand():
    mask = np.array([[1, 0, 1], [0, 1, 1]], np.uint8)
    np.testing.assert_array_equal(crop_mask(mask, np.array([0.0, 0.0, 3.0, 2.0]), 6), np.kron(mask, np.ones((3, 2))))
    # half of each cell column lies left of the image, half of each row below it
    np.testing.assert_array_equal(crop_mask(mask, np.array([-2.0, 0.0, 2.0, 4.0]), 4), [[0, 0, 1, 0], [0, 0, 0, 1], [0] * 4, [0] * 4])


def test_objects_cut_by_the_border_of_the_image():
    """A polygon drawn beyond the image has a box beyond it; the mask is what the image shows, in its true place in the box."""
    mask = np.zeros((20, 30), np.uint8)
    mask[5:13, :4] = 1
    batch = example(record(picture_of(mask), [[-4, 5, 4, 13]], [mask]))
    np.testing.assert_array_equal(batch.boxes[0], [-4, 5, 4, 13])
    assert not batch.masks[0, :, :8].any() and batch.masks[0, :, 8:].all()


def test_a_model_without_masks_gets_zeros_and_everything_else():
    mask, box = letter()
    given = record(picture_of(mask), [box], [mask])
    full, bare = (training_example(given, THINGS, AS_IT_IS, np.random.default_rng(0), masks=masks) for masks in (True, False))
    assert full.masks.any() and not bare.masks.any() and bare.masks.shape == full.masks.shape and bare.masks.dtype == full.masks.dtype
    for name in ("images", "sizes", "boxes", "classes", "valid", "crowd", "keypoints"):
        np.testing.assert_array_equal(getattr(bare, name), getattr(full, name))


def test_no_mask_gives_zeros():
    np.testing.assert_array_equal(decode_mask("", 4, 6), np.zeros((4, 6)))
    assert not example(record(np.zeros((20, 30, 3), np.uint8), [[1, 1, 9, 9]])).masks.any()


def test_reading_the_cropped_mask_over_its_own_box_gives_it_back():
    rng = np.random.default_rng(0)
    boxes = np.float32([[3.3, 1.7, 20.9, 18.2], [0, 0, 30, 20], [-3.0, 2.5, 11.25, 30.0]])
    masks = np.stack([crop_mask(rng.integers(0, 2, (20, 30)).astype(np.uint8), box, 16) for box in boxes])
    given = jnp.float32(masks), jnp.asarray(boxes), jnp.asarray(boxes)
    np.testing.assert_allclose(crop_masks(*given, size=16, sampling_ratio=1), masks, atol=1e-4)
    np.testing.assert_array_equal(np.round(crop_masks(*given, size=16)), masks)


def test_the_pixels_of_an_object_survive_the_way_into_the_batch_and_back():
    """13 x 13 pixels in 39 x 39 cells, and back at one bin a pixel: the mask, exactly, though the image itself was enlarged."""
    mask, _ = letter()
    config = DataConfig(short_edge=(50,), short_edge_test=50, long_edge=90, max_objects=1, mask_size=39, flip=False)
    batch = example(record(picture_of(mask), [[6, 3, 19, 16]], [mask]), config)
    np.testing.assert_allclose(batch.boxes[0], [15, 7.5, 47.5, 40], rtol=1e-6)
    box = jnp.asarray(batch.boxes)
    np.testing.assert_allclose(crop_masks(jnp.float32(batch.masks), box, box, size=13, sampling_ratio=1)[0], mask[3:16, 6:19], atol=1e-4)


# ---- mirroring


def test_mirrored_image_boxes_and_masks_equal_mirroring_by_hand():
    mask, box = letter()
    second = np.zeros_like(mask)
    second[0:3, 22:30] = 1
    given = record(picture_of(mask) + picture_of(second, BLUE), [box, [22, 0, 30, 3]], [mask, second], classes=[2, 1])
    batch = mirrored_example(given)
    np.testing.assert_array_equal(batch.sizes, [20, 30])
    expected = np.zeros((32, 32, 3), np.uint8)  # mirrored within the image, not within the padding
    expected[:20, :30] = (picture_of(mask) + picture_of(second, BLUE))[:, ::-1]
    np.testing.assert_array_equal(batch.images, expected)
    np.testing.assert_array_equal(batch.boxes, [[11, 4, 24, 15], [0, 0, 8, 3], [0] * 4, [0] * 4])
    np.testing.assert_array_equal(batch.classes, [2, 1, 0, 0])
    for slot, color in enumerate((RED, BLUE)):
        seen = (batch.images == color).all(axis=2).astype(np.uint8)
        np.testing.assert_array_equal(batch.masks[slot], brute_force_crop(seen, batch.boxes[slot], 16))
    assert 0 < batch.masks[0].mean() < 1 and batch.masks[1].all()
    assert batch.masks.flags.c_contiguous


def test_left_and_right_keypoints_swap_in_the_mirror():
    image = np.zeros((20, 30, 3), np.uint8)
    image[10, 12], image[5, 8], image[6, 17] = RED, GREEN, BLUE  # nose, left eye, right eye
    points = [[[12.5, 10.5, 2], [8.5, 5.5, 1], [17.5, 6.5, 2]], [[0, 0, 0], [3.0, 3.0, 0], [17.5, 6.5, 1]]]
    given = record(image, [[2, 2, 22, 18], [5, 5, 20, 20]], keypoints=points)
    plain, mirrored = example(given, info=FACES), mirrored_example(given, FACES)
    assert plain.keypoints.shape == (4, 3, 3)
    # an unlabelled keypoint is nowhere, whatever its numbers said, mirrored or not
    np.testing.assert_array_equal(plain.keypoints[:2], [points[0], [[0, 0, 0], [0, 0, 0], [17.5, 6.5, 1]]])
    np.testing.assert_array_equal(
        mirrored.keypoints[:2], [[[17.5, 10.5, 2], [12.5, 6.5, 2], [21.5, 5.5, 1]], [[0, 0, 0], [12.5, 6.5, 1], [0, 0, 0]]]
    )
    for color, (x, y, _) in zip((RED, BLUE, GREEN), mirrored.keypoints[0], strict=True):
        np.testing.assert_array_equal(mirrored.images[int(y), int(x)], color)
    assert not mirrored.keypoints[2:].any()


def test_half_of_the_images_are_mirrored_and_none_when_told_not_to():
    mask, _ = letter()
    given = record(picture_of(mask))
    plain = example(given).images
    mirrored = [not np.array_equal(example(given, MIRRORING, seed=seed).images, plain) for seed in range(200)]
    assert 70 < sum(mirrored) < 130
    assert all(np.array_equal(example(given, seed=seed).images, plain) for seed in range(20))


def test_the_short_edge_is_drawn_among_those_given():
    config = DataConfig(short_edge=(16, 20, 24), short_edge_test=20, long_edge=40, max_objects=1, mask_size=4)
    sizes = [tuple(example(record(np.zeros((20, 30, 3), np.uint8)), config, seed=seed).sizes) for seed in range(60)]
    assert {size: sizes.count(size) > 8 for size in sizes} == {(16, 24): True, (20, 30): True, (24, 36): True}


# ---- object slots


def test_of_too_many_objects_the_largest_are_kept_in_their_order():
    mask, box = letter()
    boxes = np.array([box] * 6) + np.arange(6)[:, None] * 0.5
    masks = [np.roll(mask, i, axis=1) for i in range(6)]
    areas, crowd = [5, 90, 20, 20, 1000, 30], np.arange(6) == 1
    batch = example(record(picture_of(mask), boxes, masks, classes=[0, 1, 2, 0, 1, 2], areas=areas, crowd=crowd))
    assert batch.valid.all()
    np.testing.assert_array_equal(batch.boxes, boxes[[1, 2, 4, 5]])
    np.testing.assert_array_equal(batch.classes, [1, 2, 1, 2])
    np.testing.assert_array_equal(batch.crowd, [True, False, False, False])
    for slot, index in ((1, 2), (2, 4), (3, 5)):
        np.testing.assert_array_equal(batch.masks[slot], brute_force_crop(masks[index], boxes[index], 16))


def test_of_too_many_equal_objects_the_first_are_kept():
    areas = np.random.default_rng(0).integers(1, 4, 500)
    boxes = np.array([[0, 0, 9, 9]] * 500) + np.arange(500)[:, None] / 32
    batch = example(record(picture_of(letter()[0]), boxes, areas=areas))
    np.testing.assert_array_equal(batch.boxes, boxes[areas == 3][:4])


@pytest.mark.parametrize("info", [THINGS, FACES], ids=["things", "keypoints"])
@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_shapes_and_kinds_of_arrays_do_not_depend_on_the_objects(info, count):
    joints = len(info.keypoint_names)
    for make in (example, lambda given, info: mirrored_example(given, info)):
        batch = make(record(picture_of(letter()[0]), [[1, 2, 9, 12]] * count, joints=joints), info=info)
        assert {name: (value.shape, value.dtype) for name, value in vars(batch).items()} == {
            "images": ((32, 32, 3), np.uint8),
            "sizes": ((2,), np.int32),
            "boxes": ((4, 4), np.float32),
            "classes": ((4,), np.int32),
            "valid": ((4,), np.bool_),
            "crowd": ((4,), np.bool_),
            "masks": ((4, 16, 16), np.uint8),
            "keypoints": ((4, joints, 3), np.float32),
        }
        assert batch.valid.sum() == min(count, 4) and not batch.valid[count:].any()
        assert not batch.boxes[count:].any() and not batch.masks.any()


def test_a_crowd_has_a_box_and_a_flag_but_no_mask():
    mask, box = letter()
    batch = example(record(picture_of(mask), [box, box], [mask, mask], crowd=[True, False]))
    np.testing.assert_array_equal(batch.crowd, [True, False, False, False])
    np.testing.assert_array_equal(batch.valid, [True, True, False, False])
    np.testing.assert_array_equal(batch.boxes[0], box)
    assert not batch.masks[0].any() and batch.masks[1].any()


def test_the_record_is_left_as_it_was():
    mask, box = letter()
    given = record(picture_of(mask), [box], [mask], keypoints=[[[12.5, 10.5, 2], [8.5, 5.5, 1], [0, 0, 0]]])
    boxes, points = given.objects.boxes.copy(), given.objects.keypoints.copy()
    enlarging = dataclasses.replace(MIRRORING, short_edge=(30,), short_edge_test=30, long_edge=64)
    for seed in range(8):
        example(given, enlarging, FACES, seed)
    np.testing.assert_array_equal(given.objects.boxes, boxes)
    np.testing.assert_array_equal(given.objects.keypoints, points)
