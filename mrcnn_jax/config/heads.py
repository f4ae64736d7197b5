"""Configuration of RoI pooling and of the branches that follow it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

from mrcnn_jax.config.validation import (
    BoxCount,
    Channels,
    Fraction,
    Layers,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SampleCount,
    at_most,
    check_fields,
    require,
)

SamplingRatio = Annotated[NonNegativeInt, at_most(256)]
Norm = Literal["none", "batch", "group"]
PoolOperation = Literal["roi_align", "roi_align_max", "roi_pool", "roi_warp", "roi_warp_max"]


@dataclass(frozen=True)
class PoolConfig:
    """RoI pooling of all branches that do not choose their own."""

    operation: PoolOperation = "roi_align"
    """RoI operation (section 4.2): roi_align quantises nothing; roi_pool rounds RoI and bins (Fast R-CNN);
    roi_warp rounds the RoI only (MNC). They average bilinear samples, with _max take their maximum; roi_pool
    takes the maximum of whole cells."""
    sampling_ratio: SamplingRatio = 2
    """Bilinear samples per bin and axis: 2 gives the paper's four per bin, 0 takes as many as the bin has
    cells. Not used by roi_pool."""

    def __post_init__(self):
        check_fields("pool", self)


@dataclass(frozen=True)
class BranchPoolConfig:
    """RoI pooling of one branch."""

    size: Annotated[PositiveInt, at_most(512)] = 7
    """Bins along each side."""
    operation: Literal["inherit", PoolOperation] = "inherit"
    """RoI operation of this branch; inherit takes that of model.pool."""
    sampling_ratio: SamplingRatio | None = None
    """Sampling ratio of this branch; None takes that of model.pool."""

    def __post_init__(self):
        check_fields("pool", self)


class RoIPooling(NamedTuple):
    """The resolved RoI pooling of a branch, as ``ops.pool_rois`` takes it; hashable, so that branches can
    share equal ones."""

    size: int
    operation: Literal["align", "pool", "warp"]
    reduction: Literal["average", "max"]
    sampling_ratio: int
    half_pixel: bool


@dataclass(frozen=True)
class RoIConfig:
    """Pyramid levels of RoIs, and the sampling of training RoIs."""

    levels: tuple[int, int] = (2, 5)
    """Finest and coarsest level that RoIs are pooled from, by their size; 4 4 with c4, 5 5 with c5 and
    dc5."""
    canonical_size: PositiveFloat = 224.0
    """Side of a RoI that is pooled from canonical_level, in pixels (FPN, equation 1)."""
    canonical_level: int = 4
    """Pyramid level of a RoI of canonical_size."""
    res5_stride: int = 2
    """Stride of res5 over the bins of a RoI, with c4: 2 with 14 x 14 bins (released code), or 1 with 7 x 7
    (the paper's figure 4)."""
    samples_per_image: SampleCount = 512
    """RoIs sampled per training image."""
    positive_fraction: Fraction = 0.25
    """Maximum fraction of positive RoIs among them."""
    foreground_iou: Fraction = 0.5
    """Minimum IoU of a positive RoI with an object."""

    def __post_init__(self):
        check_fields("roi", self)
        require(2 <= self.levels[0] <= self.levels[1] <= 5,
                f"roi.levels must be two numbers from 2 to 5, the finest level first, not {self.levels}")
        require(2 <= self.canonical_level <= 5,
                f"roi.canonical_level must be 2 to 5, not {self.canonical_level}")
        require(self.res5_stride in (1, 2), f"roi.res5_stride must be 1 or 2, not {self.res5_stride}")


@dataclass(frozen=True)
class BoxHeadConfig:
    """Box branch: layers over the features of each RoI, then class scores and class-specific box deltas."""

    pool: BranchPoolConfig = field(default_factory=BranchPoolConfig)
    convolutions: Layers = 0
    """3x3 convolutions before the fully connected layers (4 in Wu & He, 2018)."""
    convolution_channels: Channels = 256
    """Channels of the convolutions."""
    norm: Norm = "none"
    """Normalisation of the convolutions."""
    fully_connected: Layers = 2
    """Fully connected layers; with none the features are averaged over their positions, as c4 does."""
    channels: Channels = 1024
    """Channels of the fully connected layers."""
    delta_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (10.0, 10.0, 5.0, 5.0)
    """Weights of the box deltas dx, dy, dw, dh."""
    smooth_l1_beta: NonNegativeFloat = 1.0
    """Transition point of the smooth L1 loss; 0 is L1."""
    score_threshold: Fraction = 0.05
    """Minimum score of a detection."""
    nms_iou: Fraction = 0.5
    """IoU threshold of NMS."""
    class_agnostic_nms: bool = False
    """NMS over all classes at once, instead of within each: one detection for each object."""
    soft_nms: Literal["none", "linear", "gaussian"] = "none"
    """Soft-NMS (Bodla et al., 2017) lowers the scores of overlapping detections instead of dropping them:
    linear by IoUs above nms_iou, gaussian by all."""
    soft_nms_sigma: PositiveFloat = 0.5
    """Sigma of gaussian Soft-NMS: scores are multiplied by exp(-IoU^2 / sigma)."""
    min_size: NonNegativeFloat = 0.0
    """Minimum side of a detection, in pixels of the resized image; detections without area are always
    dropped."""
    max_candidates: BoxCount = 2000
    """Best (box, class) pairs of an image that enter NMS."""
    max_detections: BoxCount = 100
    """Maximum detections of an image."""

    def __post_init__(self):
        check_fields("box", self)


@dataclass(frozen=True)
class MaskHeadConfig:
    """Mask branch; its masks have twice the resolution of the RoI features."""

    pool: BranchPoolConfig = field(default_factory=lambda: BranchPoolConfig(size=14))
    head: Literal["fcn", "mlp"] = "fcn"
    """Kind of head: fcn is convolutions and a 2x2 transposed convolution; mlp is fully connected layers
    (table 2e)."""
    layers: Layers = 4
    """3x3 convolutions of fcn, or hidden fully connected layers of mlp."""
    channels: Channels = 256
    """Channels of these layers; 1024 in the paper's mlp."""
    norm: Norm = "none"
    """Normalisation of the convolutions."""
    class_agnostic: bool = False
    """Predict one mask per RoI, whatever its class, instead of one per class."""
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    """Loss: sigmoid treats each class's mask on its own; softmax lets classes and background compete in every
    pixel (table 2b)."""
    threshold: Fraction = 0.5
    """Value from which a pixel is part of the object, in targets and in results: 0.5 in the paper, 0.4 in
    MNC and FCIS."""

    def __post_init__(self):
        check_fields("mask", self)
        require(not (self.loss == "softmax" and self.class_agnostic),
                "mask.loss softmax lets classes compete in every pixel, so mask.class_agnostic must be false "
                "with it")
        require(self.head == "fcn" or self.norm == "none",
                "mask.norm is for the convolutions of mask.head fcn; it must be none with mlp, not "
                f"{self.norm}")
        require(self.head == "fcn" or self.layers > 0,
                "mask.layers must be greater than 0 with mask.head mlp")


@dataclass(frozen=True)
class KeypointHeadConfig:
    """Keypoint branch (section 5): for each keypoint a softmax over the positions of a map four times as fine
    as the RoI features."""

    pool: BranchPoolConfig = field(default_factory=lambda: BranchPoolConfig(size=14))
    num_keypoints: Annotated[NonNegativeInt, at_most(10_000)] = 17
    """Keypoints of an object; 0 takes their number, and the classes that have them, from the data set."""
    classes: tuple[NonNegativeInt, ...] = (0,)
    """Classes whose objects have keypoints."""
    layers: Layers = 8
    """3x3 convolutions."""
    channels: Channels = 512
    """Channels of the convolutions."""

    def __post_init__(self):
        check_fields("keypoint", self)
