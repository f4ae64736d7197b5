"""Full-size models that torchvision makes with random weights detect alike when imported, and export bit for
bit.

Another Python runs torchvision (torchvision_side.py), as this project does not need torch.
"""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from library_models import check_complete, match_boxes, read_arrays, variable_shapes
from paths import TESTS

from mrcnn_jax.checkpoint import CheckpointStore
from mrcnn_jax.config import TORCHVISION, BackboneConfig, DataConfig, Experiment, ModelConfig
from mrcnn_jax.data import coco_classes
from mrcnn_jax.inference import detector as detectors
from mrcnn_jax.inference import stream
from mrcnn_jax.models.resnet import ResNet
from mrcnn_jax.weights.import_export import export_weights, identify_model, import_weights
from mrcnn_jax.weights.param_map import to_jax
from mrcnn_jax.weights.readers import read_tensors

MARGIN = {"boxes": 0.05, "scores": 2e-3, "probabilities": 5e-3, "keypoints": 0.05, "keypoints_scores": 2e-2}
"""Largest allowed differences from torchvision, as in golden/README.md; boxes and keypoints in pixels."""


@pytest.fixture(scope="module")
def torchvision():
    """``torchvision(name, ...)``: a function of torchvision_side.py."""
    python = os.environ.get("MRCNN_TORCHVISION_PYTHON")
    if not python:
        pytest.skip(
            "MRCNN_TORCHVISION_PYTHON does not name a Python interpreter that has torch and torchvision"
        )
    script = TESTS / "helpers" / "torchvision_side.py"
    with subprocess.Popen(
        [python, "-I", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def call(function, **arguments):
            process.stdin.write(json.dumps({"do": function, **arguments}, default=str) + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n", (
                f"torchvision_side.{function} failed with {arguments}"
            )

        yield call


@pytest.fixture
def folder():
    """A folder for hundreds of megabytes; those of pytest would be kept for three runs."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


EDGES = {"min_size": 128, "max_size": 192}
LANDSCAPE = [(100, 141), (300, 407)]
"""Resized to 128 x 180 and 128 x 173, which are padded alike."""
OTHERS = [(141, 100), (120, 391)]
"""A portrait, and one whose longer edge binds: 58 x 192."""


@dataclass(frozen=True)
class Case:
    """A model, its images, and fields of it that a file does not tell."""

    name: str
    seed: int
    arguments: dict
    images: list = field(default_factory=lambda: LANDSCAPE)
    detections: int = 20
    backbone: dict = field(default_factory=dict)
    rpn: dict = field(default_factory=dict)

    def make(self, torchvision, folder):
        torchvision("make", folder=folder, images=self.images, seed=self.seed, **self.model)
        return read_arrays(folder / "outputs.npz")

    def take(self, torchvision, file):
        torchvision(
            "take",
            file=file,
            out=file.with_name("taken.npz"),
            seed=self.seed,
            image=self.images[0],
            **self.model,
        )
        return read_arrays(file.with_name("taken.npz"))

    @property
    def model(self):
        few = {
            "rpn_post_nms_top_n_test": 100,
            "box_detections_per_img": self.detections,
            "box_score_thresh": 0.02,
        }
        return {"name": self.name, **EDGES, **few, **self.arguments}

    def change(self, experiment):
        data = replace(
            experiment.data,
            short_edge=(EDGES["min_size"],),
            short_edge_test=EDGES["min_size"],
            long_edge=EDGES["max_size"],
        )
        model = experiment.model
        model = replace(
            model, backbone=replace(model.backbone, **self.backbone),
            rpn=replace(model.rpn, post_nms_test=100, **self.rpn),
            box=replace(model.box, score_threshold=0.02, max_detections=self.detections),
        )  # fmt: skip
        return replace(experiment, model=model, data=data)


RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
CASES = [
    Case("maskrcnn_resnet50_fpn", 1, {"epsilon": 0.0}),  # as the published weights are run
    # as models that are trained from ImageNet weights are run
    Case(
        "fasterrcnn_resnet50_fpn", 2, {"epsilon": 1e-5, "num_classes": 4}, backbone={"norm_epsilon": 1e-5}
    ),
    Case("keypointrcnn_resnet50_fpn", 3, {}, detections=6),  # trained from scratch: batch norm
    Case("maskrcnn_resnet50_fpn_v2", 4, {}),
    Case("fasterrcnn_resnet50_fpn_v2", 5, {}),
    Case(
        "maskrcnn_resnet18_fpn", 6,
        {"backbone": "resnet18", "epsilon": 0.0, "num_classes": 4, "ratios": RATIOS}, OTHERS,
        rpn={"aspect_ratios": RATIOS},
    ),
]  # fmt: skip


def detect(detector, image, monkeypatch):
    """Returns detections, and mask probabilities before they are pasted."""
    kept = []

    def keep(predictions, *arguments):
        kept.append(predictions)
        return convert(predictions, *arguments)

    convert = stream.to_detections
    with monkeypatch.context() as patch:
        patch.setattr(stream, "to_detections", keep)
        found = detector(image)
    return found, kept[0].masks[kept[0].valid] if found.masks is not None else None


def compare(detector, expected, monkeypatch):
    """Asserts that detections are the expected ones; returns the largest differences."""
    worst, number, matched, near = {}, 0, 0, []
    for image in range(sum(name.startswith("image") for name in expected)):
        theirs = {
            name.removesuffix(str(image)): value
            for name, value in expected.items()
            if name.endswith(str(image))
        }
        found, probabilities = detect(detector, theirs["image"], monkeypatch)
        pairs = match_boxes(found.boxes, theirs["boxes"], found.class_ids, theirs["labels"] - 1)
        assert len(found.boxes) == len(theirs["boxes"]) == detector.experiment.model.box.max_detections
        number, matched = number + len(theirs["boxes"]), matched + len(pairs.ours)
        ours = {"boxes": found.boxes, "scores": found.scores}
        if "masks" in theirs:
            ours["probabilities"] = probabilities
            assert np.mean(found.masks[pairs.ours] != theirs["masks"][pairs.theirs]) < 1e-3
            assert theirs["masks"].any(axis=(1, 2)).mean() > 0.4
        if "keypoints" in theirs:
            ours["keypoints_scores"] = found.keypoints[..., 2]
            distance = np.abs(
                found.keypoints[pairs.ours, :, :2] - theirs["keypoints"][pairs.theirs, :, :2]
            ).max(axis=2)
            near.append(distance < MARGIN["keypoints"])
        for name, values in ours.items():
            difference = np.abs(values[pairs.ours] - theirs[name][pairs.theirs]).max()
            worst[name] = max(float(difference), worst.get(name, 0.0))
    assert matched >= 0.98 * number
    assert all(difference < MARGIN[name] for name, difference in worst.items()), worst
    assert not near or np.mean(np.concatenate(near)) >= 0.98
    return worst


def same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_imported_models_detect_alike_and_export_bit_for_bit(case, torchvision, folder, monkeypatch):
    expected = case.make(torchvision, folder)
    assert import_weights(folder / "state.npz", folder / "ours", change=case.change) == []
    detector = detectors.load(folder / "ours")
    assert detector.experiment.name == case.name
    print("largest differences", compare(detector, expected, monkeypatch))

    theirs, back = folder / "state.npz", folder / "back.npz"
    differences = export_weights("torchvision", folder / "ours", back)
    assert {line.partition(":")[0] for line in differences} == {
        "model.rpn.post_nms_test", "model.box.score_threshold", "model.box.max_detections",
        *(f"model.backbone.{name}" for name in case.backbone), *(f"model.rpn.{name}" for name in case.rpn),
    }  # fmt: skip
    same_bits(read_arrays(back), read_arrays(theirs))
    again = case.take(torchvision, back)
    same_bits(again, {name: value for name, value in expected.items() if name in again})


def test_torchvision_detects_alike_with_a_model_of_ours(torchvision, folder, monkeypatch):
    """With torchvision's conventions, and variables that it did not make."""
    case = Case("maskrcnn_resnet50_fpn", 7, {"epsilon": 1e-5, "num_classes": 4})
    backbone = BackboneConfig(stride_in_1x1=False)
    model = ModelConfig(num_classes=3, backbone=backbone, conventions=TORCHVISION)
    data = DataConfig(dataset="data/coco", padding_divisor=32)
    experiment = case.change(Experiment(name=case.name, model=model, data=data))
    model = experiment.model
    model = replace(model, rpn=replace(model.rpn, min_size=1e-3), box=replace(model.box, min_size=1e-2))
    variables = tiny.jittered(variable_shapes(model))
    state = {"params": variables.pop("params"), "model_state": variables}
    with CheckpointStore(folder / "ours" / "checkpoints") as checkpoints:
        checkpoints.save(0, state, 0, replace(experiment, model=model), coco_classes.unknown(3))
        checkpoints.wait()
    differences = export_weights("torchvision", folder / "ours", folder / "theirs.npz")
    assert "model.backbone.norm_epsilon: 1e-05 here, 0.0 there" in differences
    compare(detectors.load(folder / "ours"), case.take(torchvision, folder / "theirs.npz"), monkeypatch)


BACKBONES = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_64x4d",
    "wide_resnet50_2",
]


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_have_the_same_features(name, torchvision, folder):
    torchvision("make_backbone", folder=folder, name=name, seed=8)
    expected = read_arrays(folder / "outputs.npz")
    source = identify_model("torchvision", read_arrays(folder / "state.npz"), name)
    model = source.experiment.model
    check_complete(source, name)
    network = ResNet(model.backbone)
    image = jnp.asarray(expected["image"].transpose(0, 2, 3, 1))
    variables = to_jax(source.tensors, source.make_param_map(model))
    variables = {collection: modules["backbone"] for collection, modules in variables.items()}
    features = network.apply(
        variables, image
    )  # not compiled as a whole: most blocks are alike, and compiled once
    for layer, feature in enumerate(features, start=1):
        theirs = expected[f"layer{layer}"]
        rms = np.sqrt(np.mean(theirs**2))
        np.testing.assert_allclose(
            feature.transpose(0, 3, 1, 2), theirs, rtol=0, atol=1e-3 * rms, err_msg=f"layer{layer}"
        )


def test_files_of_pytorch_are_read(torchvision, folder):
    torchvision("make_backbone", folder=folder, name="resnet18", seed=9)
    same_bits(read_tensors(folder / "state.pth"), read_arrays(folder / "state.npz"))
