"""The systems that the rows of the paper's tables stand for: presets with a few fields changed.

They follow the recipe of the paper's own experiments, in which an RPN with the same backbone is trained
first and its proposals are given to the detector (section 4).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

RECIPE = "paper"
"""Recorded in result files, to tell these runs from those of another recipe (the later released code)."""


@dataclass(frozen=True)
class System:
    """Something to train: a preset with fields changed. Rows that share a system share its runs."""

    name: str
    """Name of its runs and results."""
    base: str
    """Name of the preset."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Values by dotted field, as on the command line."""
    rpn: "System | None" = None
    """System that makes its proposals; None if it has an RPN of its own."""
    starts_from: "System | None" = None
    """System whose weights it is initialised with."""
    backbone_from: "System | None" = None
    """System whose backbone and RPN it starts from at a small scale, where nothing is pretrained."""
    evaluates: "System | None" = None
    """System whose run is evaluated with the changes of this one, which trains nothing itself."""

    def prerequisites(self) -> Iterator["System"]:
        """Yields the systems that must be trained before this one, in order."""
        for other in (self.starts_from, self.rpn, self.backbone_from, self.evaluates):
            if other:
                yield from other.prerequisites()
                yield other


NMS = {"model.box.nms_iou": 0.3}  # the appendix calls 0.5 new, and 0.3 the value before (unverified)
# the baseline of the appendix, with NMS at 0.5
UPDATED = {"train.steps": 180_000, "train.decay_steps": (120_000, 160_000)}
JITTER = {
    "data.short_edge": tuple(range(640, 801, 32)),
    "train.steps": 260_000, "train.decay_steps": (200_000, 240_000),
}  # fmt: skip

TTA = {"evaluation.tta_scales": tuple(range(400, 1201, 100)), "evaluation.tta_flip": True}
TTA_OF_FCIS = {"evaluation.tta_scales": (480, 576, 688, 864, 1200, 1400), "evaluation.tta_flip": True}


def rpn_of(name: str, base: str, changes: Mapping[str, Any] | None = None) -> System:
    """Returns a backbone with its RPN, without a detector."""
    return System(name, base, {"model.tasks": ()} | (changes or {}))


def detector(name: str, rpn: System, changes: Mapping[str, Any] | None = None, **more: Any) -> System:
    """Returns a detector for the proposals of an RPN of the same preset, with NMS as before the appendix."""
    return System(name, rpn.base, NMS | (changes or {}), rpn, **more)


def with_pool(name: str, rpn: System, operation: str) -> System:
    """Returns a detector with another RoI operation in all branches."""
    return detector(name, rpn, {"model.pool.operation": operation})


def mlp(layers: int) -> System:
    """Returns a detector whose mask branch has fully connected layers."""
    changes = {"model.mask.head": "mlp", "model.mask.channels": 1024, "model.mask.layers": layers}
    return detector(f"r50_fpn_mlp{layers}", RPN_R50, changes)


def person(name: str, *tasks: str) -> System:
    """Returns a detector of persons with the given branches."""
    return System(f"person_{name}", RPN_PERSON.base, {"model.tasks": tasks}, RPN_PERSON)


def rival(name: str, base: str, changes: Mapping[str, Any] | None = None) -> System:
    """Returns FCIS or MNC, which train their RPN with everything else."""
    return System(name, base, changes or {}, backbone_from=RPN_R101_C4)


def with_tta(system: System, views: Mapping[str, Any] = TTA) -> System:
    """Returns a system as it is evaluated with test-time augmentation."""
    changes = dict(system.changes) | views
    return System(f"{system.name}_tta", system.base, changes, system.rpn, evaluates=system)


DEEPER = {"model.backbone.name": "resnet101"}
RPN_R50_C4, RPN_R50_C5 = rpn_of("rpn_r50_c4", "mask_rcnn_r50_c4"), rpn_of("rpn_r50_c5", "mask_rcnn_r50_c5")
RPN_R101_C4 = rpn_of("rpn_r101_c4", "mask_rcnn_r50_c4", DEEPER)
RPN_R50, RPN_R101, RPN_X101 = (
    rpn_of(f"rpn_{name}_fpn", f"mask_rcnn_{name}_fpn") for name in ("r50", "r101", "x101")
)
RPN_PERSON = rpn_of("rpn_person", "keypoint_rcnn_r50_fpn")
RPN_CITY = rpn_of("rpn_cityscapes", "mask_rcnn_r50_fpn_cityscapes")
R50_FPN = detector("r50_fpn", RPN_R50)

_, FCIS, _ = OTHERS = tuple(  # table 1
    rival(name, name) for name in ("mnc_r101_c4", "fcis_r101", "fcis_plus_r101")
)
BACKBONES = (  # tables 1 and 2a
    detector("r50_c4", RPN_R50_C4),
    detector("r101_c4", RPN_R101_C4, DEEPER),
    R50_FPN,
    detector("r101_fpn", RPN_R101),
    detector("x101_fpn", RPN_X101),
)
ABLATIONS = (  # tables 2b to 2e, and 3
    detector("r50_c4_softmax", RPN_R50_C4, {"model.mask.loss": "softmax"}),
    detector("r50_c4_agnostic", RPN_R50_C4, {"model.mask.class_agnostic": True}),
    with_pool("r50_c4_roipool", RPN_R50_C4, "roi_pool"),
    with_pool("r50_c4_roiwarp_max", RPN_R50_C4, "roi_warp_max"),
    with_pool("r50_c4_roiwarp", RPN_R50_C4, "roi_warp"),
    with_pool("r50_c4_roialign_max", RPN_R50_C4, "roi_align_max"),
    with_pool("r50_c5_roipool", RPN_R50_C5, "roi_pool"),
    detector("r50_c5", RPN_R50_C5),
    mlp(2),
    mlp(3),
    detector("faster_r101_fpn", RPN_R101, {"model.tasks": ("boxes",)}),
)
PERSONS = (  # tables 4 to 6
    person("boxes", "boxes"),
    person("masks", "boxes", "masks"),
    person("keypoints", "boxes", "keypoints"),
    person("all", "boxes", "masks", "keypoints"),
    System("person_keypoints_roipool", RPN_PERSON.base, {"model.pool.operation": "roi_pool"}, RPN_PERSON),
)
CITYSCAPES = (  # table 7
    detector("cityscapes", RPN_CITY),
    detector("cityscapes_coco", RPN_CITY, {"train.steps": 4_000, "train.decay_steps": (3_000,)},
             starts_from=R50_FPN),
)  # fmt: skip
ENHANCED = (  # table 8
    System("x101_fpn_updated", "mask_rcnn_x101_fpn", UPDATED, RPN_X101),
    System("x101_fpn_joint", "mask_rcnn_x101_fpn", UPDATED),
    System("x101_fpn_jitter", "mask_rcnn_x101_fpn", JITTER),
    System("x152_fpn", "mask_rcnn_x152_fpn", {"model.backbone.non_local": False}),
    System("x152_fpn_non_local", "mask_rcnn_x152_fpn"),
)
RESNEXT = DEEPER | {
    "model.backbone.groups": 64, "model.backbone.group_width": 4, "model.backbone.stride_in_1x1": False,
    "train.images_per_device": 1,
}  # fmt: skip
LONGER = {"train.steps": 130_000, "train.decay_steps": (100_000, 120_000)}
ENHANCED_KEYPOINTS = tuple(  # table 9
    System(f"keypoints_{name}", "keypoint_rcnn_r50_fpn", LONGER | backbone)
    for name, backbone in (("r50", {}), ("r101", DEEPER), ("x101", RESNEXT))
)
RELATED = (
    rival("fcis_r101_random", "fcis_r101", {"model.fcis.sampling": "random"}),
    rival("fcis_r101_separate", "fcis_r101", {"model.fcis.joint_maps": False}),
    rival("fcis_r101_k1", "fcis_r101", {"model.fcis.groups": 1}),
    rival("mnc_r101_c4_3stages", "mnc_r101_c4", {"model.mnc.training_stages": 3}),
)
_TRAINED = (*OTHERS, *BACKBONES, *ABLATIONS, *PERSONS, *CITYSCAPES, *ENHANCED, *ENHANCED_KEYPOINTS,
            *RELATED)  # fmt: skip
_ALL = (*_TRAINED, with_tta(ENHANCED[-1]), with_tta(ENHANCED_KEYPOINTS[-1]), with_tta(FCIS, TTA_OF_FCIS))
SYSTEMS = {system.name: system for system in _ALL}
"""Systems of rows, by name; the RPNs that they need are not among them."""
