"""What the detector is made of. What cannot go together is refused where it is put together."""

from dataclasses import dataclass, field
from typing import Literal

from mrcnn_jax.config.checks import choices, fraction, natural, positive, require

STRIDES = {"fpn": (4, 8, 16, 32, 64), "c4": (16,), "c5": (32,), "dc5": (16,)}
"""Image pixels per cell of each feature map, by backbone.features."""
ROI_LEVELS = {"fpn": (2, 5), "c4": (4, 4), "c5": (5, 5), "dc5": (5, 5)}
"""Finest and coarsest level that RoIs can be read from; level l is the output of stage res(l)."""
BASIC = ("resnet18", "resnet34")
"""The networks whose blocks are two 3x3 convolutions; the others have bottlenecks."""


@dataclass(frozen=True)
class BackboneConfig:
    """ResNet or ResNeXt, and which of its features the detector reads."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet50"
    groups: int = 1
    """Of the 3x3 convolution of a bottleneck: more than 1 makes it a ResNeXt."""
    group_width: int = 64
    """Channels of a group in res2: ResNeXt-101 32x8d is resnet101 with 32 groups of 8, 64x4d with 64 groups of 4."""
    width: int = 64
    """Channels of the stem; 64 is the published network, less is a narrow one for small machines."""
    features: Literal["fpn", "c4", "c5", "dc5"] = "fpn"
    """fpn: a pyramid of strides 4 to 64; c4: res4, stride 16, and res5 is applied to each RoI; c5: res5, stride 32; dc5: res5, dilated, stride 16."""
    norm: Literal["frozen", "batch", "group"] = "frozen"
    """frozen: affine batch norm that never changes (needs pretrained weights); batch: over all devices; group: 32 groups."""
    norm_epsilon: float = 1e-5
    """Added to the variance, in every norm of the detector; 0 where frozen batch norm is only an affine map (torchvision's first weights, MSRA's)."""
    freeze_stages: int = 2
    """How many stages keep their weights: 0 none, 1 the stem, 2 the stem and res2 (the paper), up to 5."""
    stride_in_1x1: bool = True
    """Bottlenecks reduce the resolution in the first 1x1 convolution (the paper's MSRA weights) or in the 3x3 (torchvision's)."""
    non_local: bool = False
    """A non-local block before the last block of res4 (Wang et al., 2018)."""
    pyramid_channels: int = 256
    pyramid_norm: Literal["none", "batch", "group"] = "none"

    def __post_init__(self):
        choices("backbone", self)
        positive("backbone", width=self.width, groups=self.groups, group_width=self.group_width, pyramid_channels=self.pyramid_channels)
        natural("backbone", norm_epsilon=self.norm_epsilon)
        grouped = (self.groups, self.group_width) != (1, 64)
        require(not (grouped and self.name in BASIC), f"backbone.groups and group_width divide a bottleneck, which {self.name} does not have: leave them 1 and 64")
        require(self.group_width * self.width % 64 == 0, f"backbone.group_width x width must be a multiple of 64, not {self.group_width} x {self.width}")
        stages = 4 if self.features == "c4" else 5
        require(0 <= self.freeze_stages <= stages, f"backbone.freeze_stages must be 0 to {stages} with features {self.features}, not {self.freeze_stages}")


@dataclass(frozen=True)
class RPNConfig:
    """Region proposal network: anchors, how they are matched and sampled, how proposals are chosen."""

    training: Literal["joint", "separate"] = "joint"
    """joint: with the detector, on its features; separate: a trained RPN with a backbone of its own, frozen, makes the proposals (the ablations)."""
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    """Side in pixels of the square anchor: one for each level of a pyramid, P2 to P6, or all of them on a single feature map."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width."""
    anchor_rounding: Literal["none", "corners", "sides"] = "none"
    """none: Detectron2; corners: to whole pixels, around the origin (torchvision); sides: of the anchor as large as a cell, before it is scaled (Detectron)."""
    anchor_offset: float = 0.0
    """Of an anchor's centre from the corner of its cell, in cells: 0 in torchvision and Detectron2, 0.5 in Detectron."""
    anchor_strides: Literal["level", "grid"] = "level"
    """level: those of the feature maps; grid: sides of the padded image over those of the map, in whole pixels (torchvision: less on a P6 that was rounded up)."""
    convolutions: int = 1
    """3x3 convolutions before the logits."""
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    samples_per_image: int = 256
    positive_fraction: float = 0.5
    smooth_l1_beta: float = 1 / 9
    loss_normalizer: Literal["asked", "sampled"] = "asked"
    """What the losses are divided by: samples_per_image (Detectron2), or the samples that there were (torchvision)."""
    pre_nms_train: int = 2000
    """Best anchors of each level that enter NMS."""
    pre_nms_test: int = 1000
    post_nms_train: int = 2000
    """Proposals of an image, over all levels."""
    post_nms_test: int = 1000
    nms_iou: float = 0.7
    min_size: float = 0.0
    """Proposals with a shorter side, in pixels, are dropped; those without area always are."""

    def __post_init__(self):
        choices("rpn", self)
        require(bool(self.anchor_sizes) and min(self.anchor_sizes) > 0, f"rpn.anchor_sizes must be greater than 0, not {self.anchor_sizes}")
        require(bool(self.aspect_ratios) and min(self.aspect_ratios) > 0, f"rpn.aspect_ratios must be greater than 0, not {self.aspect_ratios}")
        fraction("rpn", foreground_iou=self.foreground_iou, background_iou=self.background_iou, nms_iou=self.nms_iou,
                 positive_fraction=self.positive_fraction)  # fmt: skip
        require(self.background_iou <= self.foreground_iou, "rpn.background_iou must not exceed rpn.foreground_iou")
        positive("rpn", samples_per_image=self.samples_per_image, pre_nms_train=self.pre_nms_train, pre_nms_test=self.pre_nms_test,
                 post_nms_train=self.post_nms_train, post_nms_test=self.post_nms_test, convolutions=self.convolutions)  # fmt: skip
        natural("rpn", min_size=self.min_size, smooth_l1_beta=self.smooth_l1_beta)


@dataclass(frozen=True)
class PoolConfig:
    """How the features of a RoI are read: the operations that section 4.2 of the paper compares."""

    size: int = 7
    """Bins along each side."""
    operation: Literal["align", "pool", "warp"] = "align"
    """align: nothing is rounded; pool: RoI and bins are rounded to cells (Fast R-CNN); warp: the RoI is, its bins are not (MNC)."""
    reduction: Literal["average", "max"] = "average"
    """Of the samples of a bin; pool has max alone."""
    sampling_ratio: int = 2
    """Bilinear samples per bin and axis: 2 gives the paper's four, 0 takes as many as the bin has cells. Not of pool."""
    aligned: bool = True
    """Align subtracts half a pixel, so that features are read where they are; False is the released code's reading."""

    def __post_init__(self):
        choices("pool", self)
        positive("pool", size=self.size)
        natural("pool", sampling_ratio=self.sampling_ratio)
        require(self.operation != "pool" or self.reduction == "max", "pool.reduction must be max where pool.operation is pool: RoIPool takes the maximum of a bin")


@dataclass(frozen=True)
class RoIConfig:
    """Where RoIs are read, and how training RoIs are sampled."""

    levels: tuple[int, int] = (2, 5)
    """Finest and coarsest level that RoIs are read from, by their size; 4 4 with c4, 5 5 with c5 and dc5."""
    canonical_size: float = 224.0
    """A box of this side is read from canonical_level (FPN, equation 1)."""
    canonical_level: int = 4
    level_epsilon: float = 1e-6
    """Added to the level before it is rounded down: 1e-6 in torchvision, 0 in Detectron2; it tells on boxes just below a border."""
    inclusive: bool = False
    """RoIs are read up to the middle of their last pixel, one pixel less than their boxes (Detectron, whose boxes count their last pixel)."""
    res5_stride: int = 2
    """Of c4: stride of res5 over the bins of a RoI, 2 with 14 x 14 of them (released code) or 1 with 7 x 7 (the paper's figure 4)."""
    samples_per_image: int = 512
    positive_fraction: float = 0.25
    foreground_iou: float = 0.5

    def __post_init__(self):
        positive("roi", canonical_size=self.canonical_size, samples_per_image=self.samples_per_image)
        natural("roi", level_epsilon=self.level_epsilon)
        require(2 <= self.levels[0] <= self.levels[1] <= 5, f"roi.levels must be two numbers from 2 to 5, the finest level first, not {self.levels}")
        require(2 <= self.canonical_level <= 5, f"roi.canonical_level must be 2 to 5, not {self.canonical_level}")
        require(self.res5_stride in (1, 2), f"roi.res5_stride must be 1 or 2, not {self.res5_stride}")
        fraction("roi", positive_fraction=self.positive_fraction, foreground_iou=self.foreground_iou)


@dataclass(frozen=True)
class BoxHeadConfig:
    """Layers over the features of each RoI, then class scores and class-specific box deltas."""

    pool: PoolConfig = field(default_factory=PoolConfig)
    convolutions: int = 0
    """3x3 convolutions before the fully connected layers (4 in Wu & He, 2018)."""
    convolution_channels: int = 256
    norm: Literal["none", "batch", "group"] = "none"
    """Of the convolutions."""
    fully_connected: int = 2
    """Layers; none leaves the spatial mean of the features, the form of c4."""
    channels: int = 1024
    """Of the fully connected layers."""
    delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: float = 1.0
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    min_size: float = 0.0
    """Detections with a shorter side, in pixels of the resized image, are dropped; those without area always are."""
    candidates: int = 2000
    """Best (box, class) pairs of an image that enter NMS."""
    detections: int = 100
    """Detections kept for an image."""

    def __post_init__(self):
        choices("box", self)
        positive("box", convolution_channels=self.convolution_channels, channels=self.channels, candidates=self.candidates, detections=self.detections)
        natural("box", convolutions=self.convolutions, fully_connected=self.fully_connected, smooth_l1_beta=self.smooth_l1_beta, min_size=self.min_size)
        require(min(self.delta_weights) > 0, f"box.delta_weights must be greater than 0, not {self.delta_weights}")
        fraction("box", score_threshold=self.score_threshold, nms_iou=self.nms_iou)


@dataclass(frozen=True)
class MaskHeadConfig:
    """The mask branch; its masks have twice the resolution of the RoI features."""

    pool: PoolConfig = field(default_factory=lambda: PoolConfig(size=14))
    head: Literal["fcn", "mlp"] = "fcn"
    """fcn: convolutions, then a 2x2 transposed one; mlp: fully connected layers (table 2e)."""
    layers: int = 4
    """3x3 convolutions of fcn, hidden fully connected layers of mlp."""
    channels: int = 256
    """Of these layers; 1024 in the paper's mlp."""
    norm: Literal["none", "batch", "group"] = "none"
    """Of the convolutions."""
    class_agnostic: bool = False
    """One mask for a RoI, whatever its class, instead of one for each class."""
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    """sigmoid: each class's mask for itself; softmax: in every pixel the classes and background compete (table 2b)."""
    target_sampling_ratio: int = 2
    """Samples per bin and axis with which a RoI's target is read out of its object's mask; 0 takes as many as the bin has cells (the libraries)."""
    target_aligned: bool = True
    """Targets lie where the mask does; False reads them half a cell further (torchvision)."""
    soft_targets: bool = False
    """Targets are shares of their bins (torchvision) and not rounded to 0 or 1."""
    paste: Literal["exact", "integer"] = "exact"
    """A mask is stretched over its real-valued box (Detectron2), or over whole pixels (Detectron, torchvision)."""

    def __post_init__(self):
        choices("mask", self)
        positive("mask", channels=self.channels)
        natural("mask", layers=self.layers, target_sampling_ratio=self.target_sampling_ratio)
        require(not (self.loss == "softmax" and self.soft_targets), "mask.soft_targets has no meaning with mask.loss softmax, where a pixel has one class")
        require(not (self.loss == "softmax" and self.class_agnostic),
                "mask.loss softmax lets classes compete in every pixel, but mask.class_agnostic masks have no classes: choose one of the two")  # fmt: skip
        require(self.head == "fcn" or self.norm == "none", f"mask.norm belongs to the convolutions of mask.head fcn; it must be none with mlp, not {self.norm}")
        require(self.head == "fcn" or self.layers > 0, "mask.layers must be greater than 0 with mask.head mlp")


@dataclass(frozen=True)
class KeypointHeadConfig:
    """The keypoint branch (section 5): for each keypoint a softmax over the positions of a map four times as fine as the RoI features."""

    pool: PoolConfig = field(default_factory=lambda: PoolConfig(size=14))
    num_keypoints: int = 17
    """Of an object; 0 takes the number, and the classes that have them, from the data set."""
    classes: tuple[int, ...] = (0,)
    """Classes whose objects have keypoints."""
    layers: int = 8
    """3x3 convolutions."""
    channels: int = 512
    score: Literal["probability", "logit"] = "probability"
    """Of a detected keypoint: its share of the softmax over its map (Detectron2), or the logit (torchvision)."""

    def __post_init__(self):
        choices("keypoint", self)
        positive("keypoint", channels=self.channels)
        natural("keypoint", layers=self.layers, num_keypoints=self.num_keypoints)
        require(all(index >= 0 for index in self.classes), f"keypoint.classes must not be negative, not {self.classes}")


@dataclass(frozen=True)
class ModelConfig:
    """The detector."""

    num_classes: int = 80
    """Foreground classes; 0 takes the number from the data set."""
    tasks: tuple[Literal["boxes", "masks", "keypoints"], ...] = ("boxes", "masks")
    """What is predicted; boxes alone are Faster R-CNN, nothing at all is a region proposal network alone."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    roi: RoIConfig = field(default_factory=RoIConfig)
    box: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    keypoint: KeypointHeadConfig = field(default_factory=KeypointHeadConfig)
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """In which the backbone takes the channels of an image; images themselves are always RGB."""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Levels from 0 to 255, in channel_order."""
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    delta_clip: float = 1000 / 16
    """No box becomes more than this many times as wide or high as its anchor or proposal."""

    def __post_init__(self):
        choices("model", self)
        natural("model", num_classes=self.num_classes)
        positive("model", delta_clip=self.delta_clip)
        require(min(self.pixel_std) > 0, f"model.pixel_std must be greater than 0, not {self.pixel_std}")
        require(len(set(self.tasks)) == len(self.tasks), f"model.tasks must not repeat a task, as {' '.join(self.tasks)} does")
        require(not self.tasks or "boxes" in self.tasks, f"model.tasks has {' and '.join(self.tasks)} without boxes, inside which they are predicted: add boxes")
        require(bool(self.tasks) or self.rpn.training == "joint", "model.tasks is empty and model.rpn.training separate, so nothing would be trained")
        measured = {self.backbone.norm, self.backbone.pyramid_norm, self.box.norm, self.mask.norm} & {"batch", "group"}
        require(not measured or self.backbone.norm_epsilon > 0,
                f"backbone.norm_epsilon must be greater than 0 with {' and '.join(sorted(measured))} norm, whose variance may be 0; 0 is for frozen batch norm")  # fmt: skip
        self._check_levels()
        self._check_keypoints()

    def _check_levels(self):
        features, sizes = self.backbone.features, len(self.rpn.anchor_sizes)
        finest, coarsest = ROI_LEVELS[features]
        if features == "fpn":
            levels = len(STRIDES[features])
            require(sizes == levels, f"rpn.anchor_sizes needs one size for each of the {levels} levels of backbone.features fpn, not {sizes}")
            return
        require(self.roi.levels == (finest, coarsest),
                f"roi.levels {self.roi.levels[0]} {self.roi.levels[1]} reads a pyramid, but backbone.features {features} is level {finest} alone: "
                f"it must be {finest} {coarsest}")  # fmt: skip
        res5 = features != "c4" or (self.box.convolutions, self.box.fully_connected) == (0, 0)
        require(res5, "backbone.features c4 has res5 in place of a head: box.convolutions and box.fully_connected must be 0")

    def _check_keypoints(self):
        keypoint = self.keypoint
        if "keypoints" not in self.tasks or not keypoint.num_keypoints:
            return
        require(bool(keypoint.classes), "model.tasks has keypoints, but model.keypoint.classes names no class that has them")
        known = self.num_classes == 0 or max(keypoint.classes) < self.num_classes
        require(known, f"model.keypoint.classes must be below model.num_classes {self.num_classes}, not {keypoint.classes}")

    @property
    def mask_size(self) -> int:
        """Side of a predicted mask."""
        return 2 * self._feature_size(self.mask.pool)

    @property
    def keypoint_size(self) -> int:
        """Side of a keypoint's map."""
        return 4 * self._feature_size(self.keypoint.pool)

    def _feature_size(self, pool):
        return -(-pool.size // self.roi.res5_stride) if self.backbone.features == "c4" else pool.size
