"""Configuration of the detector."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mrcnn_jax.config.conventions import Conventions
from mrcnn_jax.config.validation import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_fields,
    require,
)

STRIDES = {"fpn": (4, 8, 16, 32, 64), "c4": (16,), "c5": (32,), "dc5": (16,)}
"""Image pixels per cell of each feature map, by backbone.features."""
ROI_LEVELS = {"fpn": (2, 5), "c4": (4, 4), "c5": (5, 5), "dc5": (5, 5)}
"""Finest and coarsest level that RoIs can be pooled from; level l is the output of stage res(l)."""
BASIC = ("resnet18", "resnet34")
"""Networks of basic blocks (two 3x3 convolutions); the others have bottlenecks."""

Norm = Literal["none", "batch", "group"]
PoolOperation = Literal["roi_align", "roi_align_max", "roi_pool", "roi_warp", "roi_warp_max"]


@dataclass(frozen=True)
class BackboneConfig:
    """ResNet or ResNeXt, and the features of it that the detector uses."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet50"
    """Network."""
    groups: PositiveInt = 1
    """Groups of the 3x3 convolution of a bottleneck; more than 1 is a ResNeXt."""
    group_width: PositiveInt = 64
    """Channels of a group in res2: ResNeXt-101 32x8d is resnet101 with 32 groups of 8, 64x4d with 64 groups of 4."""
    width: PositiveInt = 64
    """Channels of the stem: 64 is the published network, less a narrow one for small machines."""
    features: Literal["fpn", "c4", "c5", "dc5"] = "fpn"
    """Feature maps: fpn is a pyramid of strides 4 to 64; c4 is res4 (stride 16), with res5 applied to each RoI; c5 is res5 (stride 32); dc5
    is a dilated res5 (stride 16)."""
    norm: Literal["frozen", "batch", "group"] = "frozen"
    """Normalisation: frozen batch norm (needs pretrained weights), batch norm over all devices, or group norm of 32 groups."""
    norm_epsilon: NonNegativeFloat = 1e-5
    """Added to the variance in every norm of the detector; 0 where frozen batch norm is only an affine map (torchvision's first
    generation, MSRA's weights)."""
    freeze_stages: int = 2
    """Stages that are not trained: 0 none, 1 the stem, 2 the stem and res2 (the paper), up to 5."""
    stride_in_1x1: bool = True
    """Bottlenecks have their stride in the first 1x1 convolution (MSRA's weights, the paper), or else in the 3x3 (torchvision)."""
    non_local: bool = False
    """Insert a non-local block before the last block of res4 (Wang et al., 2018)."""
    pyramid_channels: PositiveInt = 256
    """Channels of the feature pyramid."""
    pyramid_norm: Norm = "none"
    """Normalisation of the feature pyramid's convolutions."""

    def __post_init__(self):
        check_fields("backbone", self)
        grouped = (self.groups, self.group_width) != (1, 64)
        require(not (grouped and self.name in BASIC),
                f"backbone.groups and group_width divide a bottleneck, which {self.name} does not have: leave them 1 and 64")  # fmt: skip
        require(self.group_width * self.width % 64 == 0,
                f"backbone.group_width x width must be a multiple of 64, not {self.group_width} x {self.width}")  # fmt: skip
        stages = 4 if self.features == "c4" else 5
        require(0 <= self.freeze_stages <= stages,
                f"backbone.freeze_stages must be 0 to {stages} with features {self.features}, not {self.freeze_stages}")  # fmt: skip


@dataclass(frozen=True)
class RPNConfig:
    """Region proposal network: anchors, their matching and sampling, and the selection of proposals."""

    proposals_from: str = ""
    """Run directory of a separately trained RPN: its backbone and RPN, frozen, make the proposals (the paper's ablations). Empty trains the
    RPN jointly with the detector, on shared features."""
    anchor_sizes: tuple[PositiveFloat, ...] = (32, 64, 128, 256, 512)
    """Sides of the square anchors, in pixels: one for each level of a pyramid, P2 to P6, or all of them on a single feature map."""
    aspect_ratios: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)
    """Aspect ratios of the anchors, height / width."""
    convolutions: PositiveInt = 1
    """3x3 convolutions before the logits."""
    foreground_iou: Fraction = 0.7
    """Minimum IoU of a foreground anchor with an object."""
    background_iou: Fraction = 0.3
    """Anchors with a smaller IoU with every object are background."""
    samples_per_image: PositiveInt = 256
    """Anchors sampled per image."""
    positive_fraction: Fraction = 0.5
    """Maximum fraction of foreground anchors among them."""
    smooth_l1_beta: NonNegativeFloat = 1 / 9
    """Transition point of the smooth L1 loss; 0 is L1."""
    pre_nms_train: PositiveInt = 2000
    """Best anchors per level that enter NMS, in training."""
    pre_nms_test: PositiveInt = 1000
    """Best anchors per level that enter NMS, at inference."""
    post_nms_train: PositiveInt = 2000
    """Proposals per image, over all levels, in training."""
    post_nms_test: PositiveInt = 1000
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
                f"rpn.background_iou must not be greater than rpn.foreground_iou {self.foreground_iou}, not {self.background_iou}")  # fmt: skip


@dataclass(frozen=True)
class PoolConfig:
    """RoI pooling of all branches that do not choose their own."""

    operation: PoolOperation = "roi_align"
    """RoI operation (section 4.2): roi_align quantises nothing; roi_pool rounds RoI and bins (Fast R-CNN); roi_warp rounds the RoI only
    (MNC). They average bilinear samples, with _max take their maximum; roi_pool takes the maximum of whole cells."""
    sampling_ratio: NonNegativeInt = 2
    """Bilinear samples per bin and axis: 2 gives the paper's four per bin, 0 takes as many as the bin has cells. Not used by roi_pool."""

    def __post_init__(self):
        check_fields("pool", self)


@dataclass(frozen=True)
class BranchPoolConfig:
    """RoI pooling of one branch."""

    size: PositiveInt = 7
    """Bins along each side."""
    operation: Literal["inherit", "roi_align", "roi_align_max", "roi_pool", "roi_warp", "roi_warp_max"] = "inherit"
    """RoI operation of this branch; inherit takes that of model.pool."""
    sampling_ratio: NonNegativeInt | None = None
    """Sampling ratio of this branch; None takes that of model.pool."""

    def __post_init__(self):
        check_fields("pool", self)


class RoIPooling(NamedTuple):
    """The resolved RoI pooling of a branch, as ``ops.pool_rois`` takes it; hashable, so that branches can share equal ones."""

    size: int
    operation: Literal["align", "pool", "warp"]
    reduction: Literal["average", "max"]
    sampling_ratio: int
    half_pixel: bool


@dataclass(frozen=True)
class RoIConfig:
    """Pyramid levels of RoIs, and the sampling of training RoIs."""

    levels: tuple[int, int] = (2, 5)
    """Finest and coarsest level that RoIs are pooled from, by their size; 4 4 with c4, 5 5 with c5 and dc5."""
    canonical_size: PositiveFloat = 224.0
    """Side of a RoI that is pooled from canonical_level, in pixels (FPN, equation 1)."""
    canonical_level: int = 4
    """Pyramid level of a RoI of canonical_size."""
    res5_stride: int = 2
    """Stride of res5 over the bins of a RoI, with c4: 2 with 14 x 14 bins (released code), or 1 with 7 x 7 (the paper's figure 4)."""
    samples_per_image: PositiveInt = 512
    """RoIs sampled per training image."""
    positive_fraction: Fraction = 0.25
    """Maximum fraction of positive RoIs among them."""
    foreground_iou: Fraction = 0.5
    """Minimum IoU of a positive RoI with an object."""

    def __post_init__(self):
        check_fields("roi", self)
        require(2 <= self.levels[0] <= self.levels[1] <= 5,
                f"roi.levels must be two numbers from 2 to 5, the finest level first, not {self.levels}")  # fmt: skip
        require(2 <= self.canonical_level <= 5, f"roi.canonical_level must be 2 to 5, not {self.canonical_level}")
        require(self.res5_stride in (1, 2), f"roi.res5_stride must be 1 or 2, not {self.res5_stride}")


@dataclass(frozen=True)
class BoxHeadConfig:
    """Box branch: layers over the features of each RoI, then class scores and class-specific box deltas."""

    pool: BranchPoolConfig = field(default_factory=BranchPoolConfig)
    convolutions: NonNegativeInt = 0
    """3x3 convolutions before the fully connected layers (4 in Wu & He, 2018)."""
    convolution_channels: PositiveInt = 256
    """Channels of the convolutions."""
    norm: Norm = "none"
    """Normalisation of the convolutions."""
    fully_connected: NonNegativeInt = 2
    """Fully connected layers; with none the features are averaged over their positions, as c4 does."""
    channels: PositiveInt = 1024
    """Channels of the fully connected layers."""
    delta_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (10.0, 10.0, 5.0, 5.0)
    """Weights of the box deltas dx, dy, dw, dh."""
    smooth_l1_beta: NonNegativeFloat = 1.0
    """Transition point of the smooth L1 loss; 0 is L1."""
    score_threshold: Fraction = 0.05
    """Minimum score of a detection."""
    nms_iou: Fraction = 0.5
    """IoU threshold of NMS within each class."""
    min_size: NonNegativeFloat = 0.0
    """Minimum side of a detection, in pixels of the resized image; detections without area are always dropped."""
    max_candidates: PositiveInt = 2000
    """Best (box, class) pairs of an image that enter NMS."""
    max_detections: PositiveInt = 100
    """Maximum detections of an image."""

    def __post_init__(self):
        check_fields("box", self)


@dataclass(frozen=True)
class MaskHeadConfig:
    """Mask branch; its masks have twice the resolution of the RoI features."""

    pool: BranchPoolConfig = field(default_factory=lambda: BranchPoolConfig(size=14))
    head: Literal["fcn", "mlp"] = "fcn"
    """Kind of head: fcn is convolutions and a 2x2 transposed convolution; mlp is fully connected layers (table 2e)."""
    layers: NonNegativeInt = 4
    """3x3 convolutions of fcn, or hidden fully connected layers of mlp."""
    channels: PositiveInt = 256
    """Channels of these layers; 1024 in the paper's mlp."""
    norm: Norm = "none"
    """Normalisation of the convolutions."""
    class_agnostic: bool = False
    """Predict one mask per RoI, whatever its class, instead of one per class."""
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    """Loss: sigmoid treats each class's mask on its own; softmax lets classes and background compete in every pixel (table 2b)."""

    def __post_init__(self):
        check_fields("mask", self)
        require(not (self.loss == "softmax" and self.class_agnostic),
                "mask.loss softmax lets classes compete in every pixel, but mask.class_agnostic masks have no classes: choose one of the two")  # fmt: skip
        require(self.head == "fcn" or self.norm == "none",
                f"mask.norm belongs to the convolutions of mask.head fcn; it must be none with mlp, not {self.norm}")  # fmt: skip
        require(self.head == "fcn" or self.layers > 0, "mask.layers must be greater than 0 with mask.head mlp")


@dataclass(frozen=True)
class KeypointHeadConfig:
    """Keypoint branch (section 5): for each keypoint a softmax over the positions of a map four times as fine as the RoI features."""

    pool: BranchPoolConfig = field(default_factory=lambda: BranchPoolConfig(size=14))
    num_keypoints: NonNegativeInt = 17
    """Keypoints of an object; 0 takes their number, and the classes that have them, from the data set."""
    classes: tuple[NonNegativeInt, ...] = (0,)
    """Classes whose objects have keypoints."""
    layers: NonNegativeInt = 8
    """3x3 convolutions."""
    channels: PositiveInt = 512
    """Channels of the convolutions."""

    def __post_init__(self):
        check_fields("keypoint", self)


@dataclass(frozen=True)
class ModelConfig:
    """The detector."""

    num_classes: NonNegativeInt = 80
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
        require(len(set(self.tasks)) == len(self.tasks), f"model.tasks must not repeat a task, as {' '.join(self.tasks)} does")
        require(not self.tasks or "boxes" in self.tasks,
                f"model.tasks has {' and '.join(self.tasks)} without boxes, inside which they are predicted: add boxes")  # fmt: skip
        require(bool(self.tasks) or not self.rpn.proposals_from,
                "model.tasks is empty and model.rpn.proposals_from is given, so nothing would be trained")  # fmt: skip
        measured = {self.backbone.norm, self.backbone.pyramid_norm, self.box.norm, self.mask.norm} & {"batch", "group"}
        require(not measured or self.backbone.norm_epsilon > 0,
                f"backbone.norm_epsilon must be greater than 0 with {' and '.join(sorted(measured))} norm, whose variance may be 0; "
                "0 is for frozen batch norm")  # fmt: skip
        require(not (self.mask.loss == "softmax" and self.conventions.soft_mask_targets),
                "conventions.soft_mask_targets has no meaning with mask.loss softmax, where a pixel has one class")  # fmt: skip
        self._check_levels()
        self._check_keypoints()

    def _check_levels(self):
        features, sizes = self.backbone.features, len(self.rpn.anchor_sizes)
        finest, coarsest = ROI_LEVELS[features]
        if features == "fpn":
            levels = len(STRIDES[features])
            require(sizes == levels,
                    f"rpn.anchor_sizes needs one size for each of the {levels} levels of backbone.features fpn, not {sizes}")  # fmt: skip
            return
        require(self.roi.levels == (finest, coarsest),
                f"roi.levels {self.roi.levels[0]} {self.roi.levels[1]} is for a pyramid, but backbone.features {features} is level {finest} "
                f"alone: it must be {finest} {coarsest}")  # fmt: skip
        res5 = features != "c4" or (self.box.convolutions, self.box.fully_connected) == (0, 0)
        require(res5, "backbone.features c4 has res5 in place of a head: box.convolutions and box.fully_connected must be 0")

    def _check_keypoints(self):
        keypoint = self.keypoint
        if "keypoints" not in self.tasks or not keypoint.num_keypoints:
            return
        require(bool(keypoint.classes), "model.tasks has keypoints, but model.keypoint.classes names no class that has them")
        known = self.num_classes == 0 or max(keypoint.classes) < self.num_classes
        require(known, f"model.keypoint.classes must be below model.num_classes {self.num_classes}, not {keypoint.classes}")

    def pool_of(self, branch: Literal["box", "mask", "keypoint"]) -> RoIPooling:
        """The RoI pooling of a branch, with what it inherits from ``pool``."""
        own = getattr(self, branch).pool
        operation = self.pool.operation if own.operation == "inherit" else own.operation
        sampling_ratio = self.pool.sampling_ratio if own.sampling_ratio is None else own.sampling_ratio
        name, maximum = operation.removeprefix("roi_").removesuffix("_max"), operation == "roi_pool" or operation.endswith("_max")
        return RoIPooling(own.size, name, "max" if maximum else "average", sampling_ratio, self.conventions.roi_half_pixel)

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
