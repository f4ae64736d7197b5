"""The embedded set: exact labels, every class, reproducible pictures, classes not given away by colour."""

import dataclasses
import itertools
import json

import cv2
import numpy as np
import pytest

from mrcnn_jax.data import shapes
from mrcnn_jax.data.coco_keypoints import PERSON_SIGMAS
from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.shapes import INFO, KEYPOINTS, ShapesConfig
from mrcnn_jax.errors import InputError
from mrcnn_jax.run_length_masks import RunLengthMasks

CONFIG = ShapesConfig(train_images=300, validation_images=5)
PUPPET = INFO.category_names.index("puppet")
CHANCE = 1 / INFO.num_classes


@pytest.fixture(scope="module")
def drawn():
    return list(shapes.generate(CONFIG, "train"))


def picture(record) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def masks(record) -> np.ndarray:
    return np.asarray(RunLengthMasks(record.objects.rles, record.height, record.width))


def equal(a, b) -> bool:
    same_objects = all(np.array_equal(x, y) for x, y in zip(a.objects, b.objects, strict=True))
    return a.image == b.image and a[1:5] == b[1:5] and same_objects


def test_smaller_set_of_the_same_seed_is_the_beginning_of_a_larger_one(drawn):
    fewer = shapes.generate(dataclasses.replace(CONFIG, train_images=5), "train")
    assert [equal(a, b) for a, b in itertools.zip_longest(fewer, drawn[:5])] == [True] * 5


def test_other_seed_and_other_split_give_other_images(drawn):
    other_seed = next(shapes.generate(dataclasses.replace(CONFIG, seed=1), "train"))
    other_split = next(shapes.generate(CONFIG, "validation"))
    assert len({drawn[0].image, other_seed.image, other_split.image}) == 3


def test_number_names_and_sizes_of_images(drawn):
    assert len(drawn) == 300
    assert len(list(shapes.generate(CONFIG, "validation"))) == 5
    assert [r.image_id for r in drawn] == list(range(1, 301))
    assert len({r.file_name for r in drawn}) == 300
    assert {(r.height, r.width) for r in drawn} == set(CONFIG.image_sizes)
    assert all(picture(r).shape == (r.height, r.width, 3) for r in drawn)


def test_types_and_lengths(drawn):
    for record in drawn:
        objects = record.objects
        n = len(objects.ids)
        assert (objects.ids.dtype, objects.ids.shape) == (np.int64, (n,))
        assert (objects.boxes.dtype, objects.boxes.shape) == (np.float64, (n, 4))
        assert (objects.classes.dtype, objects.classes.shape) == (np.int32, (n,))
        assert (objects.areas.dtype, objects.areas.shape) == (np.float64, (n,))
        assert (objects.crowd.dtype, objects.crowd.shape) == (bool, (n,)) and not objects.crowd.any()
        assert (objects.keypoints.dtype, objects.keypoints.shape) == (np.float32, (n, len(KEYPOINTS), 3))
        assert len(objects.rles) == n and all(isinstance(rle, str) for rle in objects.rles)


def test_object_ids_are_unique_and_positive(drawn):
    ids = np.concatenate([r.objects.ids for r in drawn])
    assert len(np.unique(ids)) == len(ids) and ids.min() > 0


def test_number_of_objects_ranges_from_zero_to_max_objects(drawn):
    assert {len(r.objects.ids) for r in drawn} == set(range(CONFIG.max_objects + 1))


def test_every_class_is_common(drawn):
    counts = np.bincount(np.concatenate([r.objects.classes for r in drawn]), minlength=INFO.num_classes)
    assert len(counts) == INFO.num_classes
    assert counts.min() > 0.7 * counts.mean()


def test_masks_are_disjoint_and_agree_with_boxes_and_areas(drawn):
    for record in drawn:
        shown = masks(record)
        assert shown.sum(0).max(initial=0) <= 1
        np.testing.assert_array_equal(shown.sum((1, 2)), record.objects.areas)
        for mask, box in zip(shown, record.objects.boxes, strict=True):
            rows, columns = np.nonzero(mask)
            np.testing.assert_array_equal(box, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (record.objects.areas >= 60).all()


def test_some_objects_are_cut_by_the_border_and_most_are_not(drawn):
    touching = [
        (box[:2] == 0).any() or (box[2:] == (record.width, record.height)).any()
        for record in drawn
        for box in record.objects.boxes
    ]
    assert 0.1 < np.mean(touching) < 0.5


def test_extents_span_the_configured_sizes(drawn):
    extents = np.concatenate([(r.objects.boxes[:, 2:] - r.objects.boxes[:, :2]).max(1) for r in drawn])
    assert extents.min() < CONFIG.min_size + 2
    assert 80 < extents.max() <= 2**0.5 * CONFIG.max_size + 2


def test_visibility_agrees_with_the_masks(drawn):
    seen = []
    for record in drawn:
        objects = record.objects
        for mask, kind, keypoints in zip(masks(record), objects.classes, objects.keypoints, strict=True):
            if kind != PUPPET:
                assert not keypoints.any()
                continue
            for x, y, visibility in keypoints:
                seen.append(visibility)
                if visibility == 0:
                    assert (x, y) == (0, 0)
                else:
                    assert 0 <= x < record.width and 0 <= y < record.height
                    assert mask[int(y), int(x)] == (visibility == 2)
    shares = np.bincount(np.array(seen, int)) / len(seen)
    assert shares[2] > 0.6 and shares[1] > 0.02 and shares[0] > 0.02


def test_hidden_keypoints_lie_under_another_object(drawn):
    for record in drawn:
        anything = masks(record).any(0)
        hidden = record.objects.keypoints[record.objects.keypoints[..., 2] == 1]
        assert all(anything[int(y), int(x)] for x, y, _ in hidden)


def test_flip_table_swaps_left_and_right():
    swap = {"left": "right", "right": "left"}
    mirrored = ["_".join(swap.get(word, word) for word in name.split("_")) for name in KEYPOINTS]
    assert tuple(KEYPOINTS[i] for i in INFO.keypoint_flip) == tuple(mirrored)
    assert [INFO.keypoint_flip[i] for i in INFO.keypoint_flip] == list(range(len(KEYPOINTS)))


def test_info_is_consistent():
    assert len(INFO.category_ids) == len(set(INFO.category_names)) == len(shapes.KINDS)
    assert list(INFO.category_ids) == sorted(set(INFO.category_ids))
    assert INFO.category_ids != tuple(range(1, INFO.num_classes + 1)), "gaps keep the id mapping in use"
    assert {j for bone in INFO.skeleton for j in bone} == set(range(len(KEYPOINTS)))
    assert INFO.keypoint_classes == (PUPPET,)


def test_keypoints_have_the_tolerances_of_like_parts_of_people():
    person = "nose eye eye ear ear shoulder shoulder elbow elbow wrist wrist hip hip knee knee ankle ankle"
    tolerances = dict(zip(person.split(), PERSON_SIGMAS, strict=True))
    like = {"head": "ear", "elbow": "elbow", "hand": "wrist", "foot": "ankle"}
    assert INFO.keypoint_sigmas == tuple(tolerances[like[name.split("_")[-1]]] for name in KEYPOINTS)


def neighbours_accuracy(features: np.ndarray, classes: np.ndarray, k: int = 9) -> float:
    """Share of the second half whose class is the commonest among its k nearest in the first half."""
    features = (features - features.mean(0)) / features.std(0)
    half = len(features) // 2
    distances = np.linalg.norm(features[half:, None] - features[None, :half], axis=-1)
    votes = classes[:half][np.argsort(distances, axis=1)[:, :k]]
    guess = np.array([np.bincount(v).argmax() for v in votes])
    return float(np.mean(guess == classes[half:]))


def test_class_shows_in_the_outline_and_not_in_the_colours(drawn):
    colours, outlines, classes = [], [], []
    for record in drawn:
        image = picture(record)
        for mask, kind, box in zip(masks(record), record.objects.classes, record.objects.boxes, strict=True):
            pixels = image[mask].astype(float)
            colours.append([*pixels.mean(0), *pixels.std(0)])
            moments = cv2.HuMoments(cv2.moments(mask.astype(np.uint8), binaryImage=True)).ravel()
            fill = mask.sum() / ((box[2] - box[0]) * (box[3] - box[1]))
            outlines.append([fill, *np.log(np.abs(moments[:4]) + 1e-9)])
            classes.append(kind)
    assert neighbours_accuracy(np.array(colours), np.array(classes)) < CHANCE + 0.06
    assert neighbours_accuracy(np.array(outlines), np.array(classes)) > 3 * CHANCE


def test_outlines_can_be_seen(drawn):
    """The colour changes across nearly every outline by more than it does a step further in."""
    steps, inner = [], []
    kernel = np.ones((3, 3), np.uint8)
    for record in drawn[:100]:
        image = picture(record).astype(float)
        for mask in masks(record).astype(np.uint8):
            rim = cv2.dilate(mask, kernel, iterations=2) - cv2.dilate(mask, kernel)
            inner_mask = cv2.erode(mask, kernel, iterations=3, borderValue=1)
            edge = cv2.erode(mask, kernel, borderValue=1) - inner_mask
            if rim.any() and edge.any():
                inside = image[edge > 0].mean(0)
                steps.append(np.median(np.linalg.norm(image[rim > 0] - inside, axis=1)))
                inner.append(np.median(np.linalg.norm(image[edge > 0] - inside, axis=1)))
    assert np.quantile(steps, 0.05) > 50
    assert np.mean(np.array(steps) > 2 * np.array(inner)) > 0.9


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


def test_small_shifts_cost_mask_ap75_but_a_28_by_28_mask_does_not(drawn):
    shifted, resampled = [], []
    for record in drawn[:100]:
        for mask, box in zip(masks(record), record.objects.boxes.astype(int), strict=True):
            shifted.append(overlap(mask, np.roll(mask, (2, 2), (0, 1))))
            crop = mask[box[1] : box[3], box[0] : box[2]]
            target = (cv2.resize(crop.astype(np.float32), (28, 28)) >= 0.5).astype(np.float32)
            resampled.append(overlap(crop, cv2.resize(target, crop.shape[::-1]) >= 0.5))
    assert np.mean(np.array(shifted) > 0.75) < 0.5
    assert np.mean(np.array(resampled) > 0.9) > 0.9


def test_no_class_exceeds_the_largest_size():
    """max_size holds even below the smallest size at which a class can be recognised."""
    tiny = ShapesConfig(train_images=50, min_size=14, max_size=16)
    boxes = np.concatenate([record.objects.boxes for record in shapes.generate(tiny, "train")])
    assert (boxes[:, 2:] - boxes[:, :2]).max() <= 16 * 2**0.5 + 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"train_images": 0}, "train_images"),
        ({"validation_images": 0}, "validation_images"),
        ({"seed": -1}, "seed"),
        ({"image_sizes": ()}, "image_sizes"),
        ({"image_sizes": ((128, 8),)}, "image_sizes"),
        ({"min_size": 4}, "min_size"),
        ({"min_size": 50, "max_size": 40}, "max_size"),
        ({"max_objects": 0}, "max_objects"),
        ({"max_objects": 101}, "max_objects"),
    ],
)
def test_values_out_of_range_are_named(change, field):
    with pytest.raises(InputError, match=field):
        ShapesConfig(**change)


def test_unknown_split_is_named():
    with pytest.raises(InputError, match="'test'.*train and validation"):
        shapes.generate(CONFIG, "test")


def test_prepare_writes_what_is_generated_and_only_once(tmp_path):
    config = ShapesConfig(train_images=6, validation_images=2)
    assert shapes.prepare(tmp_path / "set", config) is True
    assert shapes.prepare(tmp_path / "set", config) is False
    for split in shapes.SPLITS:
        stored = open_dataset(tmp_path / "set", split)
        assert stored.info == INFO
        pairs = itertools.zip_longest(stored, shapes.generate(config, split))
        assert all(equal(a, b) for a, b in pairs)


def test_prepare_replaces_a_set_of_another_config(tmp_path):
    config = ShapesConfig(train_images=2, validation_images=1)
    other = dataclasses.replace(config, train_images=3)
    written = [shapes.prepare(tmp_path / "set", one) for one in (config, other, other, config)]
    assert written == [True, True, False, True]
    assert len(open_dataset(tmp_path / "set", "train")) == 2


def test_prepare_replaces_a_set_of_another_description(tmp_path):
    """Such as one prepared before the classes with keypoints were named."""
    config = ShapesConfig(train_images=2, validation_images=1)
    shapes.prepare(tmp_path / "set", config)
    for name, part in (("shapes.json", "info"), ("metadata.json", "dataset")):
        content = json.loads((tmp_path / "set" / name).read_text())
        for field in ("keypoint_classes", "keypoint_sigmas"):
            del content[part][field]
        (tmp_path / "set" / name).write_text(json.dumps(content, indent=1))
    assert open_dataset(tmp_path / "set", "train").info != INFO
    assert shapes.prepare(tmp_path / "set", config) is True
    assert open_dataset(tmp_path / "set", "train").info == INFO
    assert shapes.prepare(tmp_path / "set", config) is False


def test_prepare_at_once_in_two_processes_writes_one_whole_set(tmp_path, monkeypatch):
    """The other process finishes while this one draws."""
    config, write = ShapesConfig(train_images=2, validation_images=1), shapes.write_dataset

    def after_the_other(*arguments, **options):
        monkeypatch.setattr(shapes, "write_dataset", write)
        assert shapes.prepare(tmp_path / "set", config) is True
        write(*arguments, **options)

    monkeypatch.setattr(shapes, "write_dataset", after_the_other)
    assert shapes.prepare(tmp_path / "set", config) is False
    assert len(open_dataset(tmp_path / "set", "train")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_prepare_leaves_other_directories_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        shapes.prepare(tmp_path, ShapesConfig(train_images=1, validation_images=1))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
