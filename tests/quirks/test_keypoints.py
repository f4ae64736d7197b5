"""Keypoints of COCO files."""

import pytest
from converted_sets import change_first, convert
from quirks import quirk

from mrcnn_jax.data.coco_keypoints import flip_indices
from mrcnn_jax.data.dataset import read_metadata


def with_keypoints(change=None):
    """Returns a change that adds two keypoints to every class and object, and then makes the other change."""

    def whole(content):
        for category in content["categories"]:
            category.update(keypoints=["left_eye", "right_eye"], skeleton=[[1, 2]])
        for annotation in content["annotations"]:
            annotation.update(keypoints=[30, 20, 2, 50, 30, 2], num_keypoints=2)
        if change:
            change(content)

    return whole


def categories(**fields):
    return with_keypoints(lambda d: [c.update(fields) for c in d["categories"]])


NONE, LEFT, RIGHT = [0, 0, 0], [30, 20, 2], [50, 30, 2]
GOOD = {
    "empty": ([], [NONE, NONE]), "null": (None, [NONE, NONE]), "object": ({}, [NONE, NONE]),
    "visibility float": ([30, 20, 2.0, 50, 30, 1.0], [LEFT, [50, 30, 1]]),
    "null coordinates": ([None, None, 0, 50, 30, 2], [NONE, RIGHT]),
}  # fmt: skip
FLAWED = {
    "five numbers": ([30, 20, 2, 50, 30], [NONE, NONE]), "word": ("eyes", [NONE, NONE]),
    "visibility 3": ([30, 20, 3, 50, 30, 2], [NONE, RIGHT]),
    "visibility -1": ([30, 20, -1, 50, 30, 2], [NONE, RIGHT]),
    "visibility 0.5": ([30, 20, 0.5, 50, 30, 2], [NONE, RIGHT]),
    "visibility null": ([30, 20, None, 50, 30, 2], [NONE, RIGHT]),
    "visibility word": ([30, 20, "yes", 50, 30, 2], [NONE, RIGHT]),
    "visibility list": ([30, 20, [2], 50, 30, 2], [NONE, RIGHT]),
    "visibility true": ([30, 20, True, 50, 30, False], [LEFT, [50, 30, 0]]),
    "visibility text": ([30, 20, "2", 50, 30, "2.0"], [LEFT, RIGHT]),
    "null, visible": ([None, 20, 2, 50, 30, 2], [NONE, RIGHT]),
    "NaN": ([30, float("nan"), 2, 50, 30, 2], [NONE, RIGHT]),
    "beyond float": ([30, 10**400, 2, 50, 30, 2], [NONE, RIGHT]),
    "text": (["30", "20", "2", "50", "30", "2"], [LEFT, RIGHT]),
    "whole text": ("[30, 20, 2, 50, 30, 2]", [LEFT, RIGHT]),
    "triples": ([LEFT, RIGHT], [LEFT, RIGHT]),
    "pairs": ([30, 20, 50, 30], [LEFT, RIGHT]),
}  # fmt: skip


@quirk(
    "`keypoints` empty, with nulls, NaN, text, a visibility other than 0, 1, 2",
    "the good keypoints are kept",
)
@pytest.mark.parametrize("name", GOOD | FLAWED)
def test_keypoints_of_objects(tmp_path, name):
    given, expected = (GOOD | FLAWED)[name]
    records, report = convert(tmp_path, with_keypoints(change_first(keypoints=given)))
    assert report.kept == 4 and records[0].objects.keypoints.tolist() == [expected]
    assert records[1].objects.keypoints.tolist() == [[LEFT, RIGHT]]
    assert bool(report.mended or report.dropped) == (name in FLAWED)


NAMES = {
    "text": ("nose,left eye", ("nose", "left eye")),
    "semicolon": ("nose; left eye", ("nose", "left eye")),
    "JSON": ('["nose", "tail"]', ("nose", "tail")),
    "numbers": ([1, 2.5], ("1", "2.5")),
    "places": ({"tail": 2, "nose": 1}, ("nose", "tail")),
    "keys": ({"nose": "a", "tail": "b"}, ("nose", "tail")),
    "objects": ([{"name": "nose"}, {"name": "tail"}], ("nose", "tail")),
    "null": (["nose", None], ("nose", "keypoint 2")),
    "repeated": (["eye", "eye"], ("eye", "eye 2")),
    "surrogate": (["a", "\ud800"], ("a", "\\ud800")),
    "number": (17, ()),
    "empty": ([[]], ()),
}


@quirk(
    "names of keypoints as one text, numbers, an object, null, repeated",
    "read as meant; repeated: numbered",
)
@pytest.mark.parametrize("given, expected", NAMES.values(), ids=NAMES.keys())
def test_names_of_keypoints(tmp_path, given, expected):
    _, report = convert(tmp_path, categories(keypoints=given))
    assert read_metadata(tmp_path / "out")[0].keypoint_names == expected and report.kept == 4


SKELETONS = {
    "from 1": ([[1, 2]], True), "from 0": ([[0, 1]], True), "names": ([["left_eye", "right_eye"]], True),
    "numbers": ([1, 2], True), "floats": ([[1.0, 2.0]], True), "text": ([["1", "2"]], True),
    "triples": ([[1, 2, 1]], False), "out of range": ([[1, 3]], False), "words": (["eyes"], False),
    "number": (5, False), "huge": ([[1, 10**400]], False), "object": ({"a": 1}, False),
    "null": (None, None), "empty": ([], None),
}  # fmt: skip


@quirk(
    "skeletons counted from 0, of names, numbers, triples, out of range",
    "drawn if clear; they stop nothing",
)
@pytest.mark.parametrize("given, drawn", SKELETONS.values(), ids=SKELETONS.keys())
def test_skeletons(tmp_path, given, drawn):
    _, report = convert(tmp_path, categories(skeleton=given))
    assert read_metadata(tmp_path / "out")[0].skeleton == (((0, 1),) if drawn else ()) and report.kept == 4
    assert ("of the skeleton are no pairs" in str(report)) == (drawn is False)


@quirk(
    "classes with different lists of keypoints",
    "the list that most objects have is used; classes are named",
)
def test_two_lists_of_keypoints(tmp_path):
    def change(content):
        content["categories"][1].update(keypoints=["head", "foot", "hand"])
        content["annotations"][0].update(keypoints=[1, 1, 2] * 3)
        del content["annotations"][2]["keypoints"]

    records, report = convert(tmp_path, with_keypoints(change))
    assert read_metadata(tmp_path / "out")[0].keypoint_classes == (0,)
    assert [record.objects.keypoints.any() for record in records] == [False, True, False, True]
    assert "used ('left_eye', 'right_eye'), the keypoints of 1 objects of 'b' are not" in str(report)


PAIRS = [
    ("left_eye", "right_eye"), ("l_eye", "r_eye"), ("LEye", "REye"), ("eye.L", "eye.R"), ("L", "R"),
    ("Left-Eye", "Right-Eye"), ("eye_left", "eye_right"), ("lefteye", "righteye"), ("leftEye", "rightEye"),
    ("LEFT_EYE", "RIGHT_EYE"), ("EyeL", "EyeR"), ("lankle", "rankle"), ("hip1L", "hip1R"), ("左眼", "右眼"),
    ("front-left-paw", "front-right-paw"), ("left eye", "right eye"), ("eye (left)", "eye (right)"),
    ("Left_Eye", "right_eye"),
]  # fmt: skip


@quirk(
    "sides of keypoints as left_eye, l_eye, LEye, eye.L, lefteye, leftEye, 左眼",
    "paired in mirrored images",
)
@pytest.mark.parametrize("left, right", PAIRS)
def test_mirror_partners(left, right):
    assert flip_indices(("nose", right, "tail", left)) == (0, 3, 2, 1)


@pytest.mark.parametrize("names", [("bright", "light"), ("leg", "arm"), ("a", "a"), ("", ""), ("lip", "tip")])
def test_other_names_are_no_mirror_partners(names):
    assert flip_indices(names) == (0, 1)
