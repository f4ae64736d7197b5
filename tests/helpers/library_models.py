"""Models of other libraries: tensors, and recorded ones with the libraries' outputs (golden/README.md)."""

import json
import math
import zlib
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from paths import GOLDEN

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.models.systems import init_variables
from mrcnn_jax.weights.import_export import SourceModel, identify_model
from mrcnn_jax.weights.param_map import ParamMap, Tensors, check_tensors, to_jax, to_source

FOLDER = GOLDEN / "models"
CASES = (
    "tv_maskrcnn_resnet50_fpn", "tv_maskrcnn_resnet50_fpn_v2", "tv_keypointrcnn_resnet50_fpn",
    "d2_mask_rcnn_R_50_FPN", "d2_mask_rcnn_R_50_C4", "d2_keypoint_rcnn_R_50_FPN",
)  # fmt: skip


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz file."""
    with np.load(path) as file:
        return dict(file)


def images() -> tuple[np.ndarray, np.ndarray]:
    """Returns the two RGB images, of 320 x 416 and 240 x 300 pixels."""
    both = read_arrays(FOLDER / "images.npz")
    return both["first"], both["second"]


class Case:
    """A recorded model: its tensors, the experiment that they belong to, and the library's outputs."""

    def __init__(self, name: str):
        self.name, self.folder = name, FOLDER / name
        self.is_torchvision = name.startswith("tv")
        self.source = "torchvision" if self.is_torchvision else "detectron2"
        config = self.folder / "config.yaml"
        self.config = config if config.exists() else None
        self.expected = read_arrays(self.folder / "expected.npz")

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """The state dict: small tensors as stored, others drawn by name and scaled."""
        manifest = json.loads((self.folder / "manifest.json").read_text())
        tensors = read_arrays(self.folder / "small.npz")
        for name, recipe in manifest["tensors"].items():
            seed, shape = [manifest["seed"], zlib.crc32(name.encode())], recipe["shape"]
            tensor = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, np.float32)
            tensor *= np.float32(math.sqrt(2 / math.prod(shape[1:])))
            tensor *= np.float32(recipe["scale"])
            assert zlib.crc32(tensor.astype("<f4").tobytes()) == recipe["crc32"], (
                f"NumPy draws another {name}"
            )
            tensors[name] = tensor
        return tensors

    @cached_property
    def model(self) -> SourceModel:
        return identify_model(self.source, self.tensors, self.name, self.config)

    @cached_property
    def param_map(self) -> ParamMap:
        return self.model.make_param_map(self.model.experiment.model)

    def variables(self) -> dict:
        """Converts the tensors, after checking that each has its place in the model and none is missing."""
        check_complete(self.model, self.name)
        return jax.device_put(to_jax(self.model.tensors, self.param_map))

    def class_ids(self, prefix: str = "det") -> np.ndarray:
        """Returns expected classes, counted from 0 without background."""
        labels = self.expected.get(f"{prefix}_labels")
        return self.expected[f"{prefix}_classes"] if labels is None else labels - 1


@cache
def variable_shapes(config: ModelConfig) -> dict:
    """Returns the shapes of a model's variables."""
    return jax.eval_shape(lambda: init_variables(MaskRCNN(config), jax.random.key(0)))


def zero_tensors(config: ModelConfig, make_param_map: Callable[[ModelConfig], ParamMap]) -> Tensors:
    """Returns a model's tensors under the names of a library, all zero."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(config))
    return to_source(zeros, make_param_map(config))


def check_complete(model: SourceModel, name: str) -> None:
    """Asserts that tensors and variables of a model, or of its backbone, correspond one to one."""
    config = model.experiment.model
    template, param_map = variable_shapes(config), model.make_param_map(config)
    assert check_tensors(model.tensors, param_map, template, name) == []
    paths = flatten_dict(template, sep="/")
    expected = {path for path in paths if not model.is_backbone or "/backbone/" in path}
    assert {spec.path for spec in param_map.values()} == expected


class Matches(NamedTuple):
    """Rows of equal boxes in two lists whose order may differ."""

    ours: np.ndarray
    theirs: np.ndarray


def match_boxes(boxes, expected, classes=None, expected_classes=None) -> Matches:
    """Pairs boxes of the same class with an IoU above 0.99, each at most once."""
    boxes, expected = (np.asarray(array, np.float64) for array in (boxes, expected))
    low = np.maximum(boxes[:, None, :2], expected[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], expected[None, :, 2:])
    area = [np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (boxes, expected)]
    overlap = np.prod(np.maximum(high - low, 0), axis=2)
    iou = overlap / np.maximum(area[0][:, None] + area[1][None] - overlap, 1e-9)
    if classes is not None:
        iou[np.asarray(classes)[:, None] != np.asarray(expected_classes)[None]] = 0
    ours, theirs = [], []
    best = np.argsort(-iou, axis=None, kind="stable")[: 4 * len(expected)]
    for row, column in zip(*np.unravel_index(best, iou.shape), strict=True):
        if iou[row, column] > 0.99 and row not in ours and column not in theirs:
            ours.append(row)
            theirs.append(column)
    order = np.argsort(theirs)
    return Matches(np.array(ours, int)[order], np.array(theirs, int)[order])
