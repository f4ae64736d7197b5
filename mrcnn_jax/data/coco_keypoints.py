"""COCO's 17 keypoints of a person: names, mirror images, skeleton and tolerances.

References:
    Names and skeleton: https://cocodataset.org/#format-data;
    tolerances: https://cocodataset.org/#keypoints-eval.
"""

import re

_PAIRED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
_OTHER_SIDE = {"left": "right", "l": "r", "lt": "rt", "左": "右"}
_OTHER_SIDE |= {right: left for left, right in _OTHER_SIDE.items()}
_WORD = re.compile(r"left|right|左|右|[^\W\d_]+?(?=left|right|左|右|[\W\d_]|$)|\d+")


def flip_indices(names: tuple[str, ...]) -> tuple[int, ...]:
    """Returns, for each keypoint, the index of the one that takes its place in the mirrored image.

    Names that differ in their side alone trade places, however the side is written: left_eye, LeftEye,
    "eye left", lefteye, l_eye, LEye, eye.L, leye. Every other keypoint keeps its own place.
    """
    words = [_words(name) for name in names]
    index = {name: i for i, name in reversed(list(enumerate(words)))}
    flipped = [index.get(_mirror(name), i) for i, name in enumerate(words)]
    for i, name in enumerate(words):  # leye and reye, where they are no words of their own
        if flipped[i] == i and name and name[0][:1] in ("l", "r") and len(name[0]) > 3:
            flipped[i] = index.get((_OTHER_SIDE[name[0][0]] + name[0][1:], *name[1:]), i)
    return tuple(other if flipped[other] == i else i for i, other in enumerate(flipped))


def _words(name: str) -> tuple[str, ...]:
    """Returns the words of a name in lower case: LEye and l_eye are (l, eye)."""
    spaced = re.sub(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return tuple(_WORD.findall(spaced.lower()))


def _mirror(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_OTHER_SIDE.get(word, word) for word in words)


PERSON_KEYPOINTS = ("nose", *(f"{side}_{part}" for part in _PAIRED for side in ("left", "right")))

PERSON_FLIP = flip_indices(PERSON_KEYPOINTS)

PERSON_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
"""Pairs of keypoints to join in pictures, counted from 0."""

PERSON_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
    0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
)  # fmt: skip
"""Tolerance of each keypoint in the object keypoint similarity (OKS)."""
