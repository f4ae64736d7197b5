"""COCO's 17 keypoints of a person: names, mirror images, skeleton and tolerances.

References:
    Names and skeleton: https://cocodataset.org/#format-data;
    tolerances: https://cocodataset.org/#keypoints-eval.
"""

import re

_PAIRED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")


def flip_indices(names: tuple[str, ...]) -> tuple[int, ...]:
    """Returns, for each keypoint, the index of the one that takes its place in the mirrored image.

    Names that differ in "left" and "right" alone trade places; every other keypoint keeps its own.
    """
    other_side = {"left": "right", "right": "left"}
    mirrored = (re.sub("left|right", lambda side: other_side[side[0]], name) for name in names)
    return tuple(names.index(other) if other in names else i for i, other in enumerate(mirrored))


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
