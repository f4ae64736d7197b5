"""Classes and keypoints of published weights agree with COCO's own annotation files."""

import json

import pytest

from mrcnn_jax.data.coco_classes import COCO, COCO_CATEGORIES, COCO_PERSON, COCO_WITH_GAPS, unknown
from mrcnn_jax.data.formats.coco import CocoFile
from mrcnn_jax.structures import DatasetInfo


def test_coco_has_eighty_classes():
    assert COCO.num_classes == 80 and len(set(COCO.category_names)) == 80
    assert COCO_CATEGORIES == tuple(zip(COCO.category_ids, COCO.category_names, strict=True))
    ids = dict(zip(COCO.category_names, COCO.category_ids, strict=True))
    known = {"person": 1, "stop sign": 13, "backpack": 27, "handbag": 31, "wine glass": 46, "toilet": 70}
    known |= {"book": 84, "toothbrush": 90}
    assert {name: ids[name] for name in known} == known
    assert COCO.keypoint_names == COCO.keypoint_classes == COCO.keypoint_sigmas == ()


def test_coco_with_gaps_has_ninety_classes():
    assert COCO_WITH_GAPS.category_ids == tuple(range(1, 91))
    assert len(set(COCO_WITH_GAPS.category_names)) == 90
    unused = {id_ for id_ in COCO_WITH_GAPS.category_ids if id_ not in COCO.category_ids}
    assert unused == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    for id_, name in zip(COCO_WITH_GAPS.category_ids, COCO_WITH_GAPS.category_names, strict=True):
        assert name == (f"N/A {id_}" if id_ in unused else dict(COCO_CATEGORIES)[id_])


def test_person_keypoints_swap_left_and_right_in_a_flip():
    names = COCO_PERSON.keypoint_names
    assert len(names) == len(COCO_PERSON.keypoint_flip) == len(COCO_PERSON.keypoint_sigmas) == 17
    swapped = [name.replace("left", "?").replace("right", "left").replace("?", "right") for name in names]
    assert [names[i] for i in COCO_PERSON.keypoint_flip] == swapped
    edges = {frozenset(edge) for edge in COCO_PERSON.skeleton}
    flip = COCO_PERSON.keypoint_flip
    assert len(edges) == 19 and edges == {frozenset((flip[a], flip[b])) for a, b in COCO_PERSON.skeleton}


def test_unknown_numbers_classes_from_one():
    assert unknown(3) == DatasetInfo("unknown", (1, 2, 3), ("class 1", "class 2", "class 3"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_categories_equal_those_of_coco_files(test_data, split):
    path = test_data / f"coco_instances/annotations/instances_{split}.json"
    categories = json.loads(path.read_bytes())["categories"]
    assert [(category["id"], category["name"]) for category in categories] == list(COCO_CATEGORIES)


@pytest.mark.parametrize("split", ["train", "val"])
def test_person_keypoints_equal_those_of_coco_files(test_data, split):
    folder = test_data / "coco_person"
    annotations = folder / f"annotations/person_keypoints_{split}.json"
    file = CocoFile(folder / "images", annotations, name="coco_person")
    assert file.info == COCO_PERSON
