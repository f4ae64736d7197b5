"""Configuration of the detector."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from mrcnn_jax.config.conventions import Conventions
from mrcnn_jax.config.fcis import FCISConfig
from mrcnn_jax.config.heads import (
    BoxHeadConfig,
    BranchPoolConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    Norm,
    PoolConfig,
    RoIConfig,
    RoIPooling,
)
from mrcnn_jax.config.mnc import MNCConfig
from mrcnn_jax.config.validation import (
    BoxCount,
    Channels,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SampleCount,
    at_most,
    check_fields,
    require,
)

STRIDES = {"fpn": (4, 8, 16, 32, 64), "c4": (16,), "c5": (32,), "dc5": (16,)}
"""Image pixels per cell of each feature map, by backbone.features."""
ROI_LEVELS = {"fpn": (2, 5), "c4": (4, 4), "c5": (5, 5), "dc5": (5, 5)}
"""Finest and coarsest level that RoIs can be pooled from; level l is the output of stage res(l)."""
BASIC = ("resnet18", "resnet34")
"""Networks of basic blocks (two 3x3 convolutions); the others have bottlenecks."""


@dataclass(frozen=True)
class BackboneConfig:
    """ResNet or ResNeXt, and the features of it that the detector uses."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet50"
    """Network."""
    groups: Channels = 1
    """Groups of the 3x3 convolution of a bottleneck; more than 1 is a ResNeXt."""
    group_width: Channels = 64
    """Channels of a group in res2: ResNeXt-101 32x8d is resnet101 with 32 groups of 8, 64x4d with 64 groups
    of 4."""
    width: Channels = 64
    """Channels of the stem: 64 is the published network, less a narrow one for small machines."""
    features: Literal["fpn", "c4", "c5", "dc5"] = "fpn"
    """Feature maps: fpn is a pyramid of strides 4 to 64; c4 is res4 (stride 16), with res5 applied to each
    RoI; c5 is res5 (stride 32); dc5 is a dilated res5 (stride 16)."""
    norm: Literal["frozen", "batch", "group"] = "frozen"
    """Normalisation: frozen batch norm (needs pretrained weights), batch norm over all devices, or group norm
    of 32 groups."""
    norm_epsilon: NonNegativeFloat = 1e-5
    """Added to the variance in every norm of the detector; 0 where frozen batch norm is only an affine map
    (torchvision's first generation, MSRA's weights)."""
    freeze_stages: int = 2
    """Stages that are not trained: 0 none, 1 the stem, 2 the stem and res2 (the paper), up to 5."""
    stride_in_1x1: bool = True
    """Bottlenecks have their stride in the first 1x1 convolution (MSRA's weights, the paper), or else in the
    3x3 (torchvision)."""
    non_local: bool = False
    """Insert a non-local block before the last block of res4 (Wang et al., 2018)."""
    pyramid_channels: Channels = 256
    """Channels of the feature pyramid."""
    pyramid_norm: Norm = "none"
    """Normalisation of the feature pyramid's convolutions."""

    def __post_init__(self):
        check_fields("backbone", self)
        grouped = (self.groups, self.group_width) != (1, 64)
        require(not (grouped and self.name in BASIC),
                f"backbone.groups and group_width must be 1 and 64 with {self.name}, which has no "
                "bottlenecks to divide")
        require(self.group_width * self.width % 64 == 0,
                f"backbone.group_width x width must be a multiple of 64, not {self.group_width} x "
                f"{self.width}")
        stages = 4 if self.features == "c4" else 5
        require(0 <= self.freeze_stages <= stages,
                f"backbone.freeze_stages must be 0 to {stages} with features {self.features}, not "
                f"{self.freeze_stages}")


@dataclass(frozen=True)
class RPNConfig:
    """Region proposal network: anchors, their matching and sampling, and the selection of proposals."""

    proposals_from: str = ""
    """Run directory of a separately trained RPN: its backbone and RPN, frozen, make the proposals (the
    paper's ablations). Empty trains the RPN jointly with the detector, on shared features."""
    anchor_sizes: tuple[PositiveFloat, ...] = (32, 64, 128, 256, 512)
    """Sides of the square anchors, in pixels: one for each level of a pyramid, P2 to P6, or all of them on a
    single feature map."""
    aspect_ratios: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)
    """Aspect ratios of the anchors, height / width."""
    convolutions: Annotated[PositiveInt, at_most(1_000)] = 1
    """3x3 convolutions before the logits."""
    foreground_iou: Fraction = 0.7
    """Minimum IoU of a foreground anchor with an object."""
    background_iou: Fraction = 0.3
    """Anchors with a smaller IoU with every object are background."""
    samples_per_image: SampleCount = 256
    """Anchors sampled per image."""
    positive_fraction: Fraction = 0.5
    """Maximum fraction of foreground anchors among them."""
    smooth_l1_beta: NonNegativeFloat = 1 / 9
    """Transition point of the smooth L1 loss; 0 is L1."""
    pre_nms_train: BoxCount = 2000
    """Best anchors per level that enter NMS, in training."""
    pre_nms_test: BoxCount = 1000
    """Best anchors per level that enter NMS, at inference."""
    post_nms_train: BoxCount = 2000
    """Proposals per image, over all levels, in training."""
    post_nms_test: BoxCount = 1000
    """Proposals per image, over all levels, at inference."""
    nms_iou: Fraction = 0.7
    """IoU threshold of NMS."""
    min_size: NonNegativeFloat = 0.0
    """Minimum side of a proposal, in pixels; proposals without area are always dropped."""

    def __post_init__(self):
        require(bool(self.anchor_sizes), "rpn.anchor_sizes must have at least one size")
        require(bool(self.aspect_ratios), "rpn.aspect_ratios must have at least one ratio")
        check_fields("rpn", self)
        require(self.background_iou <= self.foreground_iou,
                f"rpn.background_iou must be at most rpn.foreground_iou {self.foreground_iou}, not "
                f"{self.background_iou}")


@dataclass(frozen=True)
class ModelConfig:
    """The detector."""

    system: Literal["mask_rcnn", "fcis", "mnc"] = "mask_rcnn"
    """System: mask_rcnn is Mask R-CNN and, by its tasks, Faster R-CNN and the RPN alone; fcis is fully
    convolutional instance-aware segmentation (model.fcis); mnc is multi-task network cascades (model.mnc)."""
    num_classes: Annotated[NonNegativeInt, at_most(100_000)] = 80
    """Foreground classes; 0 takes their number from the data set."""
    tasks: tuple[Literal["boxes", "masks", "keypoints"], ...] = ("boxes", "masks")
    """Predictions: boxes alone are Faster R-CNN, none at all is a region proposal network alone."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    roi: RoIConfig = field(default_factory=RoIConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    box: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    keypoint: KeypointHeadConfig = field(default_factory=KeypointHeadConfig)
    fcis: FCISConfig = field(default_factory=FCISConfig)
    mnc: MNCConfig = field(default_factory=MNCConfig)
    conventions: Conventions = field(default_factory=Conventions)
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """Order in which the backbone takes the channels; images themselves are always RGB."""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Mean of the pixels, 0 to 255, in channel_order."""
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.12, 57.375)
    """Standard deviation of the pixels, in channel_order."""
    max_box_scale: PositiveFloat = 1000 / 16
    """Maximum factor by which box deltas enlarge an anchor or proposal."""

    def __post_init__(self):
        check_fields("model", self)
        self._check_tasks()
        self._check_levels()
        if self.system != "mask_rcnn":
            self._check_system()
        backbone = self.backbone
        norms = {backbone.norm, backbone.pyramid_norm, self.box.norm, self.mask.norm} & {"batch", "group"}
        require(not norms or backbone.norm_epsilon > 0,
                f"backbone.norm_epsilon must be greater than 0 with {' and '.join(sorted(norms))} norm, "
                "whose variance "
                "may be 0; 0 is for frozen batch norm")
        require(not (self.mask.loss == "softmax" and self.conventions.soft_mask_targets),
                "conventions.soft_mask_targets must be false with mask.loss softmax, where a pixel has one "
                "class")

    def _check_tasks(self):
        tasks, keypoint = self.tasks, self.keypoint
        require(len(set(tasks)) == len(tasks),
                f"model.tasks must not repeat a task, as {' '.join(tasks)} does")
        require(not tasks or "boxes" in tasks,
                f"model.tasks has {' and '.join(tasks)} without boxes, inside which they are predicted: add "
                "boxes")
        require(bool(tasks) or not self.rpn.proposals_from,
                "model.tasks is empty and model.rpn.proposals_from is given, so nothing would be trained")
        if "keypoints" in tasks and keypoint.num_keypoints:
            require(bool(keypoint.classes),
                    "model.keypoint.classes must name a class that has keypoints, as model.tasks has "
                    "keypoints")
            require(self.num_classes == 0 or max(keypoint.classes) < self.num_classes,
                    f"model.keypoint.classes must be below model.num_classes {self.num_classes}, not "
                    f"{keypoint.classes}")

    def _check_levels(self):
        features, sizes, levels = self.backbone.features, len(self.rpn.anchor_sizes), self.roi.levels
        if features == "fpn":
            number = len(STRIDES[features])
            require(sizes == number,
                    f"rpn.anchor_sizes must have one size for each of the {number} levels of "
                    f"backbone.features fpn, not {sizes}")
            return
        (level, _) = ROI_LEVELS[features]
        require(levels == (level, level),
                f"roi.levels must be {level} {level}, the only level of backbone.features {features}, not "
                f"{levels[0]} {levels[1]}")
        require(features != "c4" or (self.box.convolutions, self.box.fully_connected) == (0, 0),
                "box.convolutions and box.fully_connected must be 0 with backbone.features c4, where res5 is "
                "the head")

    def _check_system(self):
        system, features, mask = self.system, {"fcis": "dc5", "mnc": "c4"}[self.system], self.mask
        require(set(self.tasks) in (set(), {"boxes", "masks"}),
                f"model.tasks must be boxes masks, or empty, with model.system {system}, not "
                f"{' '.join(self.tasks)}")
        require(self.backbone.features == features,
                f"backbone.features must be {features} with model.system {system}, not "
                f"{self.backbone.features}")
        require(system != "mnc" or (mask.head, mask.class_agnostic, mask.loss) == ("mlp", True, "sigmoid"),
                "mask.head must be mlp, class_agnostic and with sigmoid loss with model.system mnc")

    def pool_of(self, branch: Literal["box", "mask", "keypoint"]) -> RoIPooling:
        """Returns the RoI pooling of a branch, with the settings that it inherits from ``pool``."""
        own: BranchPoolConfig = getattr(self, branch).pool
        operation = self.pool.operation if own.operation == "inherit" else own.operation
        ratio = self.pool.sampling_ratio if own.sampling_ratio is None else own.sampling_ratio
        reduction = "max" if operation == "roi_pool" or operation.endswith("_max") else "average"
        name = operation.removeprefix("roi_").removesuffix("_max")
        return RoIPooling(own.size, name, reduction, ratio, self.conventions.roi_half_pixel)

    @property
    def mask_size(self) -> int:
        """Side of a predicted mask."""
        if self.system == "fcis":
            return self.fcis.size
        return 2 * (self.mask.pool.size if self.system == "mnc" else self._feature_size(self.mask.pool))

    @property
    def keypoint_size(self) -> int:
        """Side of a keypoint's map."""
        return 4 * self._feature_size(self.keypoint.pool)

    def _feature_size(self, pool):
        return -(-pool.size // self.roi.res5_stride) if self.backbone.features == "c4" else pool.size
