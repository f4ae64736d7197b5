"""Scales at which the systems of the tables are run: as in the paper, or small, from scratch, on two CPU
cores.

A small scale changes all rows of a table alike: image size, and with it anchors, proposals and sampled RoIs;
narrow networks with fewer layers, and group norm in place of frozen batch norm; steps, batch and optimizer.
The field that a row is about keeps its value. Nothing is pretrained, so a detector's backbone starts from
that of its RPN, which all rows of a table share, and is trained separately from it as in the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from experiments.systems import System
from mrcnn_jax import presets
from mrcnn_jax.config import Experiment, with_changes
from mrcnn_jax.errors import InputError

COCO, PERSONS, CITYSCAPES = "data/coco", "data/coco_person", "data/cityscapes"

STAND_INS: Mapping[str, Mapping[str, Any]] = {
    "resnet50": {"name": "resnet18"},
    "resnet101": {"name": "resnet34"},
    "resnext101": {"name": "resnet50", "groups": 8, "group_width": 32},
    "resnet152": {"name": "resnet50", "groups": 8, "group_width": 32},
}
"""Networks used at a small scale, by the paper's. ResNeXt needs bottlenecks, which ResNet-18 and 34 lack."""

NARROW = {
    "model.num_classes": 0, "model.keypoint.num_keypoints": 0,
    "model.backbone.width": 16, "model.backbone.norm": "group", "model.backbone.freeze_stages": 0,
    "model.backbone.pyramid_channels": 64,
    "model.box.channels": 256, "model.mask.channels": 64,
    "model.keypoint.layers": 4, "model.keypoint.channels": 64,
    "model.rpn.samples_per_image": 64, "model.rpn.pre_nms_train": 150, "model.rpn.post_nms_train": 150,
    "model.rpn.pre_nms_test": 100, "model.rpn.post_nms_test": 100,
    "model.roi.samples_per_image": 32, "model.box.max_candidates": 200, "model.box.max_detections": 30,
    "train.optimizer": "adamw", "train.weight_decay": 0.01, "train.warmup_steps": 50, "train.clip_norm": 5.0,
    "train.checkpoint_every": 100, "train.log_every": 10,
    "evaluation.images_per_device": 8, "data.threads": 2,
}  # fmt: skip
SINGLE_MAP = {
    "model.rpn.pre_nms_train": 400, "model.rpn.pre_nms_test": 300, "model.roi.samples_per_image": 16,
}  # fmt: skip
"""C4 and C5 in addition: all anchors lie on one map, and the paper samples fewer RoIs."""
C5_ENLARGEMENT = 2
"""Images for C5 are larger by this factor: its stride is twice that of C4, so objects cover as many cells."""
MLP_CHANNELS = 256
FCIS = {"model.fcis.channels": 128, "model.roi.samples_per_image": 64}
"""FCIS in addition: as large a share of its proposals, 64 of 150, as the 128 of 300 that it is trained on."""


@dataclass(frozen=True, eq=False)
class Scale:
    """Data, batch, schedule and changed fields with which systems are run."""

    name: str
    description: str
    data: Mapping[str, str]
    """Data sets by the paper's; systems on a data set that is missing here cannot be run."""
    images: int = 0
    """Images per step over all devices; 0 takes those of the paper, which had eight devices."""
    schedule: tuple[int, ...] = ()
    """Steps, then the steps at which the learning rate decays; empty takes the preset's."""
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_small(self) -> bool:
        """Returns whether networks and schedule differ from the paper's."""
        return bool(self.schedule)


def _small_images(short: int, long: int, canonical_size: float, objects: int, mask_size: int, rate: float,
                  anchors: tuple[int, ...], proposals: int = 0) -> dict[str, Any]:  # fmt: skip
    """Returns the fields that depend on image size; ``proposals`` replaces NARROW's, and doubles its RoIs."""
    names = ("pre_nms_train", "post_nms_train", "pre_nms_test", "post_nms_test") if proposals else ()
    more = {"model.roi.samples_per_image": 64, "model.box.max_candidates": 600} if proposals else {}
    return NARROW | more | {f"model.rpn.{name}": proposals for name in names} | {
        "train.learning_rate": rate, "model.rpn.anchor_sizes": anchors,
        "model.roi.canonical_size": canonical_size,
        "data.short_edge_test": short, "data.long_edge": long, "data.max_objects": objects,
        "data.mask_size": mask_size,
    }  # fmt: skip


SHAPES = Scale(
    "shapes",
    "The embedded data set: 2,000 training images of 128 to 160 pixels (twice that for C5) and 200 validation"
    " images; for persons, its puppets only.",
    {COCO: "shapes", PERSONS: "puppets"}, images=8, schedule=(1200, 880, 1080),
    changes=_small_images(128, 160, 64.0, 8, 56, 0.006, (16, 32, 64, 128, 256)),
)  # fmt: skip
_SCALES = (
    Scale("paper", "As in the paper, on COCO and Cityscapes.",
          {name: name for name in (COCO, PERSONS, CITYSCAPES)}),
    SHAPES,
    replace(SHAPES, name="shapes-long", description="As `shapes`, with three times the steps.",
            schedule=(3600, 2640, 3240)),
    Scale(
        "nuclei",
        "Nuclei in microscopy images (BBBC038): 504 training and 80 validation images of 192 pixels.",
        {COCO: "data/nuclei"}, images=4, schedule=(800, 600, 730),
        changes=_small_images(192, 256, 96.0, 128, 28, 0.004, (8, 16, 32, 64, 128), proposals=400)
        | {"model.box.max_detections": 200, "evaluation.max_detections": (1, 100, 200)},
    ),
    Scale(
        "coco-small",
        "A few hundred photos of COCO, of 256 pixels.",
        {COCO: "data/coco_instances", PERSONS: "data/coco_person"}, images=4, schedule=(800, 600, 730),
        changes=_small_images(256, 352, 96.0, 64, 56, 0.004, (16, 32, 64, 128, 256), proposals=300)
        | {"model.box.max_detections": 100},
    ),
)  # fmt: skip
SCALES = {scale.name: scale for scale in _SCALES}


def experiment_of(
    system: System, scale: Scale, seed: int = 0, runs: Mapping[str, str] | None = None
) -> Experiment:
    """Returns the experiment of a system at a scale, for a single device.

    Args:
        system: of ``experiments.rows``.
        scale: of ``SCALES``.
        seed: of initial weights and data order.
        runs: run directories of the system's prerequisites, by system name.

    Raises:
        InputError: the scale has no such data.
    """
    base, runs = presets.get(system.base), runs or {}
    if base.data.dataset not in scale.data:
        raise InputError(f"scale {scale.name} has no data set in place of {base.data.dataset}, "
                         f"which {system.name} is trained on")  # fmt: skip
    full = with_changes(base, system.changes)
    changes = dict(system.changes) | {"data.dataset": scale.data[base.data.dataset], "train.seed": seed}
    if scale.is_small:
        changes = (dict(scale.changes) | changes | _image_sizes(full, scale) | _network(full)
                   | _schedule(full, base, scale))  # fmt: skip
    else:  # eight devices' images, of which this one processes as many at a time as one of the paper's
        changes |= {"train.images_per_device": 8 * full.train.images_per_device, "train.accumulate": 8}
    if system.rpn:
        rpn = runs.get(system.rpn.name, system.rpn.name)
        changes |= {"model.rpn.proposals_from": rpn} | ({"train.init_from": rpn} if scale.is_small else {})
    if system.backbone_from and scale.is_small:
        changes["train.init_from"] = runs.get(system.backbone_from.name, system.backbone_from.name)
    if system.starts_from:
        changes["train.init_from"] = runs.get(system.starts_from.name, system.starts_from.name)
    return replace(with_changes(base, changes), name=system.name)


def _image_sizes(full: Experiment, scale: Scale) -> dict[str, Any]:
    """Returns image sizes, with the scale jitter and the test-time augmentation of the full system.

    Where it is trained on larger images than it is tested on, the longer edge is larger too.
    """
    factor = C5_ENLARGEMENT if full.model.backbone.features == "c5" else 1
    test, long = (factor * scale.changes[f"data.{edge}"] for edge in ("short_edge_test", "long_edge"))
    enlargement = max(1.0, max(full.data.short_edge) / full.data.short_edge_test)

    def scaled(edges):
        return tuple(round(test / full.data.short_edge_test * edge) for edge in edges)

    return {
        "data.short_edge": scaled(full.data.short_edge), "data.short_edge_test": test,
        "data.long_edge": round(enlargement * long),
        "evaluation.tta_scales": scaled(full.evaluation.tta_scales),
    }  # fmt: skip


def _network(full: Experiment) -> dict[str, Any]:
    """Returns the fields of the network that replaces the full system's."""
    backbone, mask = full.model.backbone, full.model.mask
    is_resnext = backbone.groups > 1 and backbone.name == "resnet101"
    network = STAND_INS["resnext101" if is_resnext else backbone.name]
    changes = {f"model.backbone.{name}": value for name, value in network.items()}
    if mask.head == "mlp":
        changes["model.mask.channels"] = MLP_CHANNELS
    changes |= SINGLE_MAP if backbone.features != "fpn" else {}
    return changes | (FCIS if full.model.system == "fcis" else {})


def _schedule(full: Experiment, base: Experiment, scale: Scale) -> dict[str, Any]:
    """Returns the scale's schedule, stretched as the system's is in comparison with its preset's."""
    steps, *decays = (round(step * full.train.steps / base.train.steps) for step in scale.schedule)
    return {"train.steps": steps, "train.decay_steps": tuple(decays), "train.images_per_device": scale.images}


def fit_to_devices(experiment: Experiment, devices: int) -> Experiment:
    """Returns the experiment of a single device for several devices.

    The batch stays the same where devices can share it; otherwise it grows or shrinks, and steps do the
    opposite.
    """
    train = experiment.train
    images = max(1, train.images_per_device // devices)
    stretch = train.images_per_device / (images * devices)  # of the schedule
    at_once = train.images_per_device // train.accumulate

    def stretched(steps: int) -> int:
        return max(1, round(steps * stretch))

    accumulate = images // at_once if images > at_once and images % at_once == 0 else 1
    decay_steps = tuple(map(stretched, train.decay_steps))
    train = replace(train, images_per_device=images, accumulate=accumulate)
    return replace(experiment, train=replace(train, steps=stretched(train.steps), decay_steps=decay_steps))
