"""Settings of a trained detector that may change without new parameters."""

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from mrcnn_jax.config import Experiment, with_changes
from mrcnn_jax.errors import InputError

SETTINGS = (
    "model.box.score_threshold", "model.box.nms_iou", "model.box.max_detections", "model.box.max_candidates",
    "model.box.min_size", "model.box.class_agnostic_nms", "model.box.soft_nms", "model.box.soft_nms_sigma",
    "model.mask.threshold", "model.rpn.pre_nms_test", "model.rpn.post_nms_test", "model.rpn.nms_iou",
    "model.rpn.min_size", "data.short_edge_test", "data.long_edge", "data.padding_divisor", "data.threads",
    "evaluation.images_per_device", "evaluation.max_detections", "evaluation.pictures",
    "evaluation.picture_score", "evaluation.tta_scales", "evaluation.tta_flip", "train.dtype",
    "model.channel_order", "model.pixel_mean", "model.pixel_std", "model.max_box_scale",
    "model.fcis.pooling", "model.fcis.passes", "model.fcis.voting_iou", "model.fcis.binarize_votes",
    "model.mnc.voting_iou", "model.mnc.binarize_votes",
    "model.pool.operation", "model.pool.sampling_ratio", "model.roi.canonical_size",
    "model.roi.canonical_level", "model.conventions.resize", "model.conventions.size_rounding",
    "model.conventions.anchor_rounding", "model.conventions.anchor_offset",
    "model.conventions.anchor_strides", "model.conventions.roi_half_pixel", "model.conventions.roi_inclusive",
    "model.conventions.level_epsilon", "model.conventions.mask_paste", "model.conventions.keypoint_score",
)  # fmt: skip
"""Fields of an experiment, by dotted name."""
SHORT_NAMES = MappingProxyType({
    "score_threshold": "model.box.score_threshold", "max_detections": "model.box.max_detections",
    "nms_iou": "model.box.nms_iou", "class_agnostic_nms": "model.box.class_agnostic_nms",
    "soft_nms": "model.box.soft_nms", "short_edge": "data.short_edge_test", "long_edge": "data.long_edge",
    "tta_scales": "evaluation.tta_scales", "tta_flip": "evaluation.tta_flip", "dtype": "train.dtype",
})  # fmt: skip
"""Settings of ``Detector.with_settings`` and their fields."""


def full_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings given by short name by dotted name; InputError for other names."""
    for name in settings:
        if name not in SHORT_NAMES:
            raise InputError(f"a detector has no setting {name!r}: choose from {', '.join(SHORT_NAMES)}")
    return {SHORT_NAMES[name]: value for name, value in settings.items()}


def with_settings(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """Returns the experiment of a trained detector with other settings.

    Args:
        experiment: as it was trained.
        settings: values by name in ``SETTINGS``, such as ``{"model.box.score_threshold": 0.3}``.

    Raises:
        InputError: a field does not exist or belongs to what was trained, or a value is not allowed.
    """
    for name in settings:
        if name not in SETTINGS:
            close = get_close_matches(name, SETTINGS, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            allowed = f"{hint}allowed are {', '.join(SETTINGS)}"
            raise InputError(f"{name} cannot be set for a trained detector: {allowed}")
    changes = dict(settings)
    if {"data.short_edge_test", "data.long_edge"} & changes.keys():  # images are padded to the edges of both
        changes["data.short_edge"] = [changes.get("data.short_edge_test", experiment.data.short_edge_test)]
    return with_changes(experiment, changes)
