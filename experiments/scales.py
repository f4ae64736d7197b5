"""At which size the systems of the tables are run: as the paper has them, or small, trained from scratch on two CPU cores.

A small scale changes images, width and schedule, for all rows of a table alike: smaller images, and with them anchors, proposals and sampled RoIs; narrow networks, in which fewer layers
stand in for more, with group norm in place of frozen batch norm; steps, batch and optimiser. What a row is about stays as it is. As nothing is pretrained, a detector's backbone starts
from that of the RPN that proposes for it, which all rows of a table share, and stays apart from it as in the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from experiments.rows import System
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
"""What stands in for a network of the paper in a small scale. ResNeXt has bottlenecks, which ResNet-18 and 34 do not."""

NARROW = {
    "model.num_classes": 0, "model.keypoint.num_keypoints": 0,
    "model.backbone.width": 16, "model.backbone.norm": "group", "model.backbone.freeze_stages": 0, "model.backbone.pyramid_channels": 64,
    "model.box.channels": 256, "model.mask.channels": 64, "model.keypoint.layers": 4, "model.keypoint.channels": 64,
    "model.rpn.samples_per_image": 64, "model.rpn.pre_nms_train": 150, "model.rpn.post_nms_train": 150,
    "model.rpn.pre_nms_test": 100, "model.rpn.post_nms_test": 100,
    "model.roi.samples_per_image": 32, "model.box.max_candidates": 200, "model.box.max_detections": 30,
    "train.optimizer": "adamw", "train.weight_decay": 0.01, "train.warmup_steps": 50, "train.clip_norm": 5.0, "train.checkpoint_every": 100,
    "train.log_every": 10, "evaluation.images_per_device": 8, "data.threads": 2,
}  # fmt: skip
ONE_MAP = {"model.rpn.pre_nms_train": 400, "model.rpn.pre_nms_test": 300, "model.roi.samples_per_image": 16}
"""C4 and C5, besides: all anchors are on one map, and the paper samples fewer RoIs."""
COARSEST = 2
"""Times as large are the images of C5, whose stride is twice that of C4, so that objects are of as many cells."""
MLP_CHANNELS = 256


@dataclass(frozen=True)
class Scale:
    """How systems are run."""

    name: str
    about: str
    data: Mapping[str, str]
    """By the paper's data set; those that are not there cannot be run."""
    images: int = 0
    """Of a step, over all devices; 0 takes the paper's, who had eight."""
    schedule: tuple[int, ...] = ()
    """Steps, and those after which the learning rate falls, in place of the base's."""
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def small(self) -> bool:
        return bool(self.schedule)


SHAPES = Scale(
    "shapes", "The embedded data set, 2,000 images of 128 to 160 pixels (of twice that for C5) to train on and 200 to be scored on; for persons, puppets alone.",
    {COCO: "shapes", PERSONS: "puppets"}, images=8, schedule=(1200, 880, 1080),
    changes=NARROW | {
        "train.learning_rate": 0.006, "model.rpn.anchor_sizes": (16, 32, 64, 128, 256), "model.roi.canonical_size": 64.0,
        "data.short_edge_test": 128, "data.long_edge": 160, "data.max_objects": 8, "data.mask_size": 56,
    },
)  # fmt: skip

SCALES = {
    scale.name: scale
    for scale in (
        Scale("paper", "As in the paper, on COCO and Cityscapes.", {name: name for name in (COCO, PERSONS, CITYSCAPES)}),
        SHAPES,
        replace(SHAPES, name="shapes-long", about="As `shapes`, at three times the steps: whether these were too few.", schedule=(3600, 2640, 3240)),
        Scale(
            "nuclei", "Nuclei in microscopy images (BBBC038), 504 to train on and 80 to be scored on, of 192 pixels.",
            {COCO: "data/nuclei"}, images=4, schedule=(800, 600, 730),
            changes=NARROW | {
                "train.learning_rate": 0.004, "model.rpn.anchor_sizes": (8, 16, 32, 64, 128), "model.roi.canonical_size": 96.0,
                "model.rpn.pre_nms_train": 400, "model.rpn.post_nms_train": 400, "model.rpn.pre_nms_test": 400, "model.rpn.post_nms_test": 400,
                "model.roi.samples_per_image": 64, "model.box.max_candidates": 600, "model.box.max_detections": 200, "evaluation.max_detections": (1, 100, 200),
                "data.short_edge_test": 192, "data.long_edge": 256, "data.max_objects": 128, "data.mask_size": 28,
            },
        ),
        Scale(
            "coco-small", "A few hundred photos of COCO, of 256 pixels.",
            {COCO: "data/coco_instances", PERSONS: "data/coco_person"}, images=4, schedule=(800, 600, 730),
            changes=NARROW | {
                "train.learning_rate": 0.004, "model.rpn.anchor_sizes": (16, 32, 64, 128, 256), "model.roi.canonical_size": 96.0,
                "model.rpn.pre_nms_train": 300, "model.rpn.post_nms_train": 300, "model.rpn.pre_nms_test": 300, "model.rpn.post_nms_test": 300,
                "model.roi.samples_per_image": 64, "model.box.max_candidates": 600, "model.box.max_detections": 100,
                "data.short_edge_test": 256, "data.long_edge": 352, "data.max_objects": 64, "data.mask_size": 56,
            },
        ),
    )
}  # fmt: skip


def experiment_of(system: System, scale: Scale, seed: int = 0, runs: Mapping[str, str] | None = None) -> Experiment:
    """What a system is at a scale, as one device would train it. ``runs`` names the run directories of what it needs.

    Raises InputError where the scale has no such data.
    """
    base, runs = presets.get(system.base), runs or {}
    if base.data.dataset not in scale.data:
        raise InputError(f"{system.name} is trained on {base.data.dataset}, for which scale {scale.name} has nothing")
    full = with_changes(base, system.changes)
    settings: dict[str, Any] = dict(system.changes) | {"data.dataset": scale.data[base.data.dataset], "train.seed": seed}
    if scale.small:
        settings = dict(scale.changes) | settings | _images(full, scale) | _narrower(full) | _schedule(full, base, scale)
    else:
        settings["train.images_per_device"] = 8 * full.train.images_per_device
        settings["train.accumulate"] = 8  # of which a device has no more at a time than one of the paper's had
    if system.rpn:
        rpn = runs.get(system.rpn.name, system.rpn.name)
        settings |= {"model.rpn.proposals_from": rpn} | ({"train.init_from": rpn} if scale.small else {})
    if system.starts_from:
        settings["train.init_from"] = runs.get(system.starts_from.name, system.starts_from.name)
    return replace(with_changes(base, settings), name=system.name)


def _images(full: Experiment, scale: Scale) -> dict[str, Any]:
    """Sizes of images, with as much variation as the full system's have."""
    times = COARSEST if full.model.backbone.features == "c5" else 1
    test, long = (times * scale.changes[f"data.{edge}"] for edge in ("short_edge_test", "long_edge"))
    return {
        "data.short_edge": tuple(round(test / full.data.short_edge_test * length) for length in full.data.short_edge),
        "data.short_edge_test": test,
        "data.long_edge": long,
    }


def _narrower(full: Experiment) -> dict[str, Any]:
    """What a small scale makes of the full system's own network."""
    backbone, mask = full.model.backbone, full.model.mask
    stand_in = STAND_INS["resnext101" if backbone.groups > 1 and backbone.name == "resnet101" else backbone.name]
    settings = {f"model.backbone.{name}": value for name, value in stand_in.items()}
    if mask.head == "mlp":
        settings["model.mask.channels"] = MLP_CHANNELS
    return settings | (ONE_MAP if backbone.features != "fpn" else {})


def _schedule(full: Experiment, base: Experiment, scale: Scale) -> dict[str, Any]:
    """The scale's schedule; longer where the system's is longer than its base's."""
    steps, *falls = (round(step * full.train.steps / base.train.steps) for step in scale.schedule)
    return {"train.steps": steps, "train.decay_steps": tuple(falls), "train.images_per_device": scale.images}


def fit_to_devices(experiment: Experiment, devices: int) -> Experiment:
    """The experiment of one device for several of them. Where they cannot make the same batch they make a larger one, or a smaller one, and fewer steps or more."""
    train = experiment.train
    images = max(1, train.images_per_device // devices)
    share = train.images_per_device / (images * devices)  # of the steps
    part = train.images_per_device // train.accumulate

    def longer(steps: int) -> int:
        return max(1, round(steps * share))

    return replace(
        experiment,
        train=replace(
            train,
            images_per_device=images,
            accumulate=images // part if images > part and images % part == 0 else 1,
            steps=longer(train.steps),
            decay_steps=tuple(map(longer, train.decay_steps)),
        ),
    )
