"""Whole models of other libraries with random weights that follow a recipe, and what those libraries make of two images (golden/README.md)."""

import json
import math
import zlib
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from paths import GOLDEN

from mrcnn_jax.weights.import_export import Recognised, recognise
from mrcnn_jax.weights.param_map import Table, check, to_ours

FOLDER = GOLDEN / "models"
CASES = (
    "tv_maskrcnn_resnet50_fpn", "tv_maskrcnn_resnet50_fpn_v2", "tv_keypointrcnn_resnet50_fpn",
    "d2_mask_rcnn_R_50_FPN", "d2_mask_rcnn_R_50_C4", "d2_keypoint_rcnn_R_50_FPN",
)  # fmt: skip


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def images() -> tuple[np.ndarray, np.ndarray]:
    """RGB, 320 x 416 and 240 x 300."""
    both = arrays(FOLDER / "images.npz")
    return both["first"], both["second"]


class Case:
    """One model: its tensors, the source's conventions, expected outputs."""

    def __init__(self, name: str):
        self.name, self.folder = name, FOLDER / name
        self.torchvision = name.startswith("tv")
        self.source = "torchvision" if self.torchvision else "detectron2"
        settings = self.folder / "config.yaml"
        self.settings = settings if settings.exists() else None
        self.expected = arrays(self.folder / "expected.npz")

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """The state dict: normal numbers drawn for each name, times sqrt(2 / fan in), times a recorded scale; small tensors are stored."""
        manifest = json.loads((self.folder / "manifest.json").read_text())
        tensors = arrays(self.folder / "small.npz")
        for name, recipe in manifest["tensors"].items():
            random, shape = np.random.Generator(np.random.PCG64([manifest["seed"], zlib.crc32(name.encode())])), recipe["shape"]
            fan_in = np.float32(math.sqrt(2 / math.prod(shape[1:])))
            tensor = random.standard_normal(shape, np.float32) * fan_in * np.float32(recipe["scale"])
            assert zlib.crc32(tensor.astype("<f4").tobytes()) == recipe["crc32"], f"NumPy draws other numbers for {name} than it did"
            tensors[name] = tensor
        return tensors

    @cached_property
    def recognised(self) -> Recognised:
        return recognise(self.source, self.tensors, self.name, self.settings)

    @cached_property
    def table(self) -> Table:
        return self.recognised.table(self.recognised.experiment.model)

    def variables(self) -> dict:
        return jax.device_put(to_ours(self.recognised.tensors, self.table))

    def check(self, template) -> None:
        """Every tensor of the file has its place in the model, and every array of the model its tensor."""
        assert check(self.recognised.tensors, self.table, template, self.name) == []
        assert {entry.path for entry in self.table.values()} == set(paths(template))

    def class_ids(self, prefix: str = "det") -> np.ndarray:
        """Expected classes, counted from 0 without background."""
        return self.expected[f"{prefix}_labels"] - 1 if self.torchvision else self.expected[f"{prefix}_classes"]


def paths(tree) -> list[str]:
    return ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


class Matches(NamedTuple):
    """Rows that belong together, of boxes that may come in another order."""

    ours: np.ndarray
    theirs: np.ndarray


def match(boxes, expected, classes=None, expected_classes=None) -> Matches:
    """Pairs of the same class with an IoU above 0.99, each box at most once."""
    boxes, expected = (np.asarray(array, np.float64) for array in (boxes, expected))
    low, high = np.maximum(boxes[:, None, :2], expected[None, :, :2]), np.minimum(boxes[:, None, 2:], expected[None, :, 2:])
    area = [np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (boxes, expected)]
    overlap = np.prod(np.maximum(high - low, 0), axis=2)
    iou = overlap / np.maximum(area[0][:, None] + area[1][None] - overlap, 1e-9)
    if classes is not None:
        iou[np.asarray(classes)[:, None] != np.asarray(expected_classes)[None]] = 0
    ours, theirs = [], []
    for row, column in zip(*np.unravel_index(np.argsort(-iou, axis=None, kind="stable")[: 4 * len(expected)], iou.shape), strict=True):
        if iou[row, column] > 0.99 and row not in ours and column not in theirs:
            ours.append(row)
            theirs.append(column)
    order = np.argsort(theirs)
    return Matches(np.array(ours, int)[order], np.array(theirs, int)[order])
