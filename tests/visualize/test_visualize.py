"""Pictures: what is drawn where, in which colours, and which files can be read."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import Detections
from mrcnn_jax.visualize.draw import (
    contact_sheet,
    draw_detections,
    draw_ground_truth,
    plot_curves,
    read_image,
    save_image,
)

NAMES = ("cat", "Bär")


def scene(height=64, width=96):
    """A gray image; a big disc of class 0, a rectangle of class 1 and a doubtful one."""
    y, x = np.mgrid[:height, :width]
    disc = (x - 24) ** 2 + (y - 40) ** 2 < 18**2
    rectangle = (x >= 60) & (x < 90) & (y >= 30) & (y < 50)
    doubtful = (x >= 60) & (x < 90) & (y >= 2) & (y < 8)
    found = Detections(
        boxes=np.float32([[6, 22, 42, 58], [60, 30, 90, 50], [60, 2, 90, 8]]),
        scores=np.float32([0.98, 0.75, 0.2]),
        class_ids=np.int32([0, 1, 1]),
        masks=np.stack([disc, rectangle, doubtful]),
    )
    return np.full((height, width, 3), 100, np.uint8), found


def pick(found, *rows):
    return Detections(*(field if field is None else field[list(rows)] for field in found))


def test_a_mask_is_tinted_and_its_surroundings_are_not():
    image, found = scene()
    before = image.copy()
    drawn = draw_detections(image, found, NAMES, scale=1)
    assert drawn.dtype == np.uint8 and drawn.shape == image.shape
    np.testing.assert_array_equal(image, before)
    assert len(np.unique(drawn[45:52, 19:29].reshape(-1, 3), axis=0)) == 1  # translucent: one tint over flat gray
    assert np.ptp(drawn[50, 24].astype(int)) > 50 and drawn[50, 24].max() < 255
    assert (drawn[30:60, 45:58] == 100).all()  # between the boxes
    assert not (drawn[22, 6:42] == 100).all(axis=-1).any()  # the box's first row
    assert not (drawn[57, 6:42] == 100).all(axis=-1).any()  # and its last


@pytest.mark.parametrize("scale", [1, 3])
def test_a_box_is_drawn_on_its_first_and_last_pixels(scale):
    image, found = scene()
    one = pick(found, 1)._replace(masks=np.zeros((1, 64, 96), bool))
    drawn = draw_ground_truth(image, one.boxes, one.class_ids, one.masks, ("", ""), scale=scale)
    rows, columns = np.nonzero((drawn != 100).any(axis=-1))
    extent = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert extent == (60 * scale, 30 * scale, 90 * scale, 50 * scale)


def test_the_score_threshold_leaves_out_and_does_not_recolour():
    image, found = scene()
    default = draw_detections(image, found, NAMES, scale=1)
    assert (default[2:8, 70:90] == 100).all()  # to the right of the label
    everything = draw_detections(image, found, NAMES, score_threshold=0.2, scale=1)
    assert (everything[5, 62:88] != 100).any(axis=-1).all()
    only_second = draw_detections(image, found._replace(scores=np.float32([0.1, 0.75, 0.2])), NAMES, scale=1)
    np.testing.assert_array_equal(only_second[44:50, 60:90], default[44:50, 60:90])
    assert (only_second[32:58, 6:42] == 100).all()


def test_instances_of_one_class_have_colours_of_their_own():
    image = np.full((40, 400, 3), 100, np.uint8)
    boxes = np.float32([[20 * i, 20, 20 * i + 18, 38] for i in range(20)])
    masks = np.zeros((20, 40, 400), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    drawn = draw_detections(image, Detections(boxes, np.ones(20), np.zeros(20, int), masks), ("cell",), scale=1)
    tints = drawn[29, 9::20].astype(int)
    distances = np.abs(tints[:, None] - tints[None]).sum(axis=-1) + 1000 * np.eye(20, dtype=int)
    assert distances.min() >= 12 and np.diag(distances, 1).min() >= 60  # neighbours differ most


def test_small_images_are_enlarged_and_large_ones_are_not():
    image, found = scene()
    assert draw_detections(image, found, NAMES).shape == (7 * 64, 7 * 96, 3)
    assert draw_detections(image, found, NAMES, scale=3).shape == (192, 288, 3)
    empty = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros((0, 800, 1200), bool))
    large = np.random.default_rng(0).integers(0, 256, (800, 1200, 3), np.uint8)
    np.testing.assert_array_equal(draw_detections(large, empty, NAMES), large)


def test_an_enlarged_mask_stays_in_its_place():
    image, found = scene()
    drawn = draw_detections(image, pick(found, 1), NAMES, scale=4)
    tinted = (drawn != 100).any(axis=-1)
    assert tinted[4 * 30 : 4 * 50, 4 * 60 : 4 * 90].all()
    assert not tinted[4 * 50 + 2 :].any() and not tinted[:, : 4 * 60 - 2].any() and not tinted[:, 4 * 90 + 2 :].any()


def label_area(drawn):
    """Where letters are: nearly white or black, which nothing else in the scene is."""
    return (drawn.min(axis=-1) > 190) | (drawn.max(axis=-1) < 50)


def test_labels_stand_above_their_boxes_and_say_different_things():
    image, found = scene(64, 96)
    one = pick(found, 0)
    drawn = draw_detections(image, one, NAMES, scale=6)
    rows, columns = np.nonzero(label_area(drawn))
    assert len(rows) > 40 and rows.max() < 6 * 22 and columns.min() >= 6 * 6
    other = draw_detections(image, one._replace(class_ids=np.int32([1])), NAMES, scale=6)
    assert (drawn != other).any()
    truth = draw_ground_truth(image, one.boxes, one.class_ids, one.masks, NAMES, scale=6)
    assert 0 < label_area(truth).sum() < len(rows)  # no score
    np.testing.assert_array_equal(truth[6 * 24 :], drawn[6 * 24 :])  # else the same picture


def test_a_label_at_the_border_moves_inside():
    image, found = scene()
    corner = pick(found, 0)._replace(boxes=np.float32([[70, 0, 96, 64]]), masks=np.zeros((1, 64, 96), bool))
    drawn = draw_detections(image, corner, ("a very long name of a class", ""), scale=6)
    letters = label_area(drawn)
    assert letters[: 6 * 10].sum() > 40 and not letters[:, -3:].any()


def test_labels_do_not_cover_one_another():
    image, found = scene()
    twice = pick(found, 0, 0)
    crowd = pick(found, *[0] * 30)
    one, two, many = (
        label_area(draw_detections(image, d, ("i", "i"), scale=6)).sum() for d in (pick(found, 0), twice, crowd)
    )
    assert one < two <= many < 4 * one  # above, within and below are taken; the others stay silent


def test_keypoints_and_skeleton():
    image, found = scene()
    points = np.float32([[[68, 5, 0.9], [92, 5, 0.4], [80, 20, 0.0]]])
    person = pick(found, 0)._replace(keypoints=points)
    plain = draw_detections(image, pick(found, 0), NAMES, scale=1)
    dots = draw_detections(image, person, NAMES, scale=1)
    joined = draw_detections(image, person, NAMES, skeleton=[(0, 1), (1, 2)], scale=1)
    changed = (dots != plain).any(axis=-1)
    assert changed[5, 68] and changed[5, 92] and not changed[20, 80] and not changed[5, 80]
    lines = (joined != dots).any(axis=-1)
    assert lines[5, 73:87].all() and not lines[10:].any()  # the line to the missing keypoint is missing


def test_keypoints_of_low_score_are_left_out():
    image, found = scene()
    person = pick(found, 0)._replace(keypoints=np.float32([[[68, 5, 0.03], [92, 5, 0.01]]]))
    plain = draw_detections(image, pick(found, 0), NAMES, scale=1)
    for threshold, expected in (({}, (True, False)), ({"keypoint_threshold": 0.005}, (True, True)), ({"keypoint_threshold": 0.5}, (False, False))):
        changed = (draw_detections(image, person, NAMES, scale=1, **threshold) != plain).any(axis=-1)
        assert (changed[5, 68], changed[5, 92]) == expected
    truth = draw_ground_truth(image, person.boxes, person.class_ids, person.masks, NAMES, keypoints=person.keypoints, scale=1)
    assert (truth[5, [68, 92]] != 100).any(axis=-1).all()


def test_detections_without_masks():
    image, found = scene()
    person = found._replace(masks=None, keypoints=np.float32([[[24, 40, 0.9]]] * 3))
    drawn = draw_detections(image, person, ("", ""), scale=1)
    changed = (drawn != 100).any(axis=-1)
    assert changed[22, 42 - 10 : 42].all() and changed[57, 6:42].all() and changed[40, 24]  # the box and the keypoint
    assert not changed[48:56, 10:38].any()  # nothing is filled
    boxes = draw_ground_truth(image, found.boxes, found.class_ids, None, ("", ""), scale=1)
    assert (boxes[22, 6:42] != 100).any(axis=-1).all() and (boxes[48:56, 10:38] == 100).all()


def test_ground_truth_without_objects():
    image, _ = scene()
    drawn = draw_ground_truth(image, np.zeros((0, 4)), np.zeros(0, int), np.zeros((0, 64, 96), bool), NAMES, scale=1)
    np.testing.assert_array_equal(drawn, image)


def test_contact_sheet():
    pictures = [np.full((h, w, 3), v, np.uint8) for h, w, v in ((10, 20, 10), (30, 8, 20), (6, 6, 30))]
    sheet = contact_sheet(pictures, columns=2, pad=4)
    assert sheet.shape == (30 + 6 + 3 * 4, 20 + 8 + 3 * 4, 3)
    assert (sheet[4 + 10 : 4 + 20, 4:24] == 10).all()  # in the middle of its row
    assert (sheet[4:34, 28:36] == 20).all() and (sheet[38:44, 11:17] == 30).all()
    assert (sheet != 255).any(axis=-1).sum() == 200 + 240 + 36
    titled = contact_sheet(pictures, columns=5, titles=["a", "b", "ü"], pad=4)
    assert titled.shape[1] == 20 + 8 + 6 + 4 * 4
    assert (titled[4:28] < 128).any() and titled.shape[0] > 30 + 2 * 4


DOT = np.zeros((2, 2, 3), np.uint8)


@pytest.mark.parametrize("arguments", [([], 2), ([DOT], 0), ([DOT], 1, [])])
def test_bad_contact_sheets(arguments):
    with pytest.raises(InputError, match="a contact sheet"):
        contact_sheet(*arguments)


RGB = np.random.default_rng(1).integers(0, 256, (7, 9, 3), np.uint8)


@pytest.mark.parametrize(
    "name, image, expected",
    [
        ("rgb.png", Image.fromarray(RGB), RGB),
        ("rgba.png", Image.fromarray(np.dstack([RGB, RGB[..., :1]])), RGB),
        ("gray.png", Image.fromarray(RGB[..., 0]), np.repeat(RGB[..., :1], 3, axis=2)),
        ("binary.png", Image.fromarray(RGB[..., 0] > 99), np.repeat(255 * (RGB[..., :1] > 99), 3, axis=2)),
        ("gray16.png", Image.fromarray(RGB[..., 0].astype(np.uint16) * 256 + 77), np.repeat(RGB[..., :1], 3, axis=2)),
        ("gray16.tif", Image.fromarray(RGB[..., 0].astype(np.uint16) * 256 + 77), np.repeat(RGB[..., :1], 3, axis=2)),
    ],
)
def test_read_image(tmp_path, name, image, expected):
    image.save(tmp_path / name)
    found = read_image(tmp_path / name)
    assert found.dtype == np.uint8 and found.flags.writeable
    np.testing.assert_array_equal(found, expected)


def test_read_palette_and_rotated_images(tmp_path):
    few = RGB // 128 * 255
    palette = Image.fromarray(few).quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), np.array(palette.convert("RGB")))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.fromarray(RGB).save(tmp_path / "upright.jpg", exif=exif)
    assert read_image(tmp_path / "upright.jpg").shape == (7, 9, 3)


def test_save_image(tmp_path):
    save_image(tmp_path / "new" / "a.png", RGB)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.png"), RGB)
    with pytest.raises(InputError, match="cannot write image .*a.unknown"):
        save_image(tmp_path / "a.unknown", RGB)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_unreadable_images(tmp_path, suffix):
    path = tmp_path / f"photo.{suffix}"
    with pytest.raises(InputError, match=f"^cannot read image {path}: No such file or directory.$"):
        read_image(path)
    save_image(path, np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=f"^cannot read image {path}: .*truncated"):
        read_image(path)
    path.write_text("not an image")
    with pytest.raises(InputError, match=f"^cannot read image {path}: cannot identify image file"):
        read_image(path)
    with pytest.raises(InputError, match="^cannot read image"):
        read_image(tmp_path)


def test_curves(tmp_path):
    history = [{"step": s, "loss": 2 / (s + 1), "loss_mask": 1 / (s + 1), "learning_rate": 0.02} for s in range(200)]
    evaluations = [{"step": 100, "segm/AP": 12.5, "segm/APl": None}, {"step": 199, "segm/AP": 20.0, "segm/APl": None}]
    plot_curves(history, tmp_path / "plots" / "both.png", evaluations)
    plot_curves(history, tmp_path / "losses.png")
    both, losses = read_image(tmp_path / "plots" / "both.png"), read_image(tmp_path / "losses.png")
    assert both.shape[1] > 1.5 * losses.shape[1]
    blue = (np.abs(losses.astype(int) - (0x1F, 0x77, 0xB4)).sum(axis=-1) < 30).sum()
    orange = (np.abs(losses.astype(int) - (0xFF, 0x7F, 0x0E)).sum(axis=-1) < 30).sum()
    assert blue > 500 and orange > 200  # both lines are there, the total heavier


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"step": 0, "loss": 1.5}],
        [{"step": s, "loss": 0.0, "loss_mask": float("nan"), "learning_rate": None} for s in range(3)],
        [{"step": 0, "loss": 1.0}, {"step": 1, "loss": float("inf")}, {"step": 2, "loss_mask": 0.5}],
    ],
)
def test_curves_of_odd_runs(tmp_path, history):
    plot_curves(history, tmp_path / "odd.png", [{"step": 1, "segm/AP": None}])
    assert read_image(tmp_path / "odd.png").std() > 1


def test_real_images():
    if not os.environ.get("MRCNN_TEST_DATA"):
        pytest.skip("MRCNN_TEST_DATA is unset")
    folders = [Path(os.environ["MRCNN_TEST_DATA"]) / name for name in ("coco_instances/val", "dsb2018_nuclei/val")]
    for path in [path for folder in folders for path in sorted(folder.iterdir())[:20]]:
        image = read_image(path)
        with Image.open(path) as opened:
            assert image.shape == (opened.height, opened.width, 3) and image.dtype == np.uint8
