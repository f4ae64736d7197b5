"""Preparation of a run from other sources: fields taken from the data set, and pretrained weights."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mrcnn_jax.config import Experiment, ModelConfig
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.data.mixture import Mixture
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import Weights, read_weights
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.training.data_checks import split_statistics, untaught_tasks


def resolve_dataset_fields(experiment: Experiment, source: DatasetSplit | Mixture) -> Experiment:
    """Fills in classes and keypoints of the data set, and drops tasks that no training object teaches.

    Raises:
        InputError: classes or keypoints of the experiment differ from those of the data set.
    """
    info, model, dataset = source.info, experiment.model, source.directory
    if model.num_classes not in (0, info.num_classes):
        raise InputError(
            f"model.num_classes is {model.num_classes}, but {dataset} has {info.num_classes} classes; "
            "0 takes the number from the data set"
        )
    model = replace(model, num_classes=info.num_classes)
    if "keypoints" in model.tasks:
        number, classes = len(info.keypoint_names), info.keypoint_classes
        if not classes or not number:
            raise InputError(
                f"model.tasks has keypoints, but no class of {dataset} has any: leave keypoints out, or "
                "prepare the data set with them"
            )
        given = model.keypoint.num_keypoints
        if given and (given, model.keypoint.classes) != (number, classes):
            raise InputError(
                f"model.keypoint has {given} keypoints of the classes {model.keypoint.classes}, but "
                f"{dataset} has {number} of {classes}; model.keypoint.num_keypoints 0 takes both from it"
            )
        model = replace(model, keypoint=replace(model.keypoint, num_keypoints=number, classes=classes))
    untaught = set.intersection(
        *(set(untaught_tasks(model.tasks, split_statistics(part))) for part in source.parts)
    )
    model = replace(model, tasks=tuple(task for task in model.tasks if task not in untaught))
    return replace(experiment, model=model)


def check_backbone(model: ModelConfig, weights: ModelConfig, origin: str) -> None:
    """Raises InputError if the weights' backbone is another network."""
    differing = [
        f"backbone.{name} is {theirs} there and {ours} here"
        for name in ("name", "width", "groups", "group_width")
        if (theirs := getattr(weights.backbone, name)) != (ours := getattr(model.backbone, name))
    ]
    if differing:
        raise InputError(f"train.init_from {origin} has another backbone: {', '.join(differing)}")


def match_preprocessing(model: ModelConfig, weights: ModelConfig) -> ModelConfig:
    """Returns the model with the preprocessing and strides of its pretrained weights.

    Frozen norms take the weights' epsilon too; others measure new statistics and keep their own.
    """
    epsilon = (weights if model.backbone.norm == "frozen" else model).backbone.norm_epsilon
    stride_in_1x1 = weights.backbone.stride_in_1x1
    return replace(
        model,
        backbone=replace(model.backbone, norm_epsilon=epsilon, stride_in_1x1=stride_in_1x1),
        channel_order=weights.channel_order,
        pixel_mean=weights.pixel_mean,
        pixel_std=weights.pixel_std,
    )


class Pretrained(NamedTuple):
    """Variables with pretrained arrays, and the names of the layers, or whole modules, that were left out."""

    variables: dict[str, Any]
    randomly_initialised: list[str]  # in the model, not in the weights
    unused: list[str]  # in the weights, not in the model


def load_pretrained(
    variables: dict[str, Any], weights: Weights, model: ModelConfig, info: DatasetInfo, origin: str
) -> Pretrained:
    """Replaces the arrays of ``variables`` by those of the weights that have the same layer and shape.

    Layers for classes or keypoints keep their random values unless the weights' data set names the same ones.
    Norm vectors are found whichever collection holds them, and res5 whether it belongs to backbone or head. A
    separate RPN (model.rpn.proposals_from) is left to ``load_frozen_rpn``.

    Args:
        variables: randomly initialised.
        weights: pretrained.
        model: configuration of ``variables``.
        info: of the data set to train on.
        origin: of the weights, for messages.

    Raises:
        InputError: no array of the weights fits the model.
    """
    arrays, given = flatten_dict(variables, sep="/"), flatten_dict(weights.variables, sep="/")
    pretrained = {_canonical_name(path): array for path, array in given.items()}
    pretrained |= {_name(path): array for path, array in given.items()}
    excluded = () if weights.info.category_names == info.category_names else _class_layers(model)
    excluded += () if weights.info.keypoint_names == info.keypoint_names else ("keypoint/logits",)

    def find(path):
        name = _canonical_name(path)
        array = pretrained.get(_name(path), pretrained.get(name))
        usable = array is not None and array.shape == arrays[path].shape and _layer(name) not in excluded
        return np.asarray(array) if usable else None

    loaded = {path: array for path in arrays if (array := find(path)) is not None}
    if not loaded:
        raise InputError(f"train.init_from {origin} has no layer of this model")
    names = {_canonical_name(path) for path in arrays}
    random = _largest_modules(arrays, arrays.keys() - loaded.keys())
    return Pretrained(
        variables=unflatten_dict({path: loaded.get(path, array) for path, array in arrays.items()}, sep="/"),
        randomly_initialised=[module for module in random if not module.startswith("proposer")],
        unused=_largest_modules(given, {path for path in given if _canonical_name(path) not in names}),
    )


def _class_layers(model):
    masks = () if model.mask.class_agnostic else ("mask/logits",)
    cascade = "instance/classes", "instance/box_classes", "instance/deltas"
    return ("box/classes", "box/deltas", "maps/classes", *cascade, *masks)


def _name(path):
    """Returns module, layer and parameter, without the collection."""
    return re.sub(r"_(kernel|bias)$", r"/\1", path.partition("/")[2])


def _layer(name):
    return name.rpartition("/")[0]


def _canonical_name(path):
    """Returns a name that is the same whether res5 is part of the backbone or of the head."""
    return re.sub(r"^\w+/(?=res5_)", "", _name(path))


def _largest_modules(paths: Iterable[str], chosen: Iterable[str]) -> list[str]:
    """Returns the names of the largest modules or layers that hold only chosen arrays."""

    def enclosing(path):
        parts = _name(path).split("/")
        return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]

    others = {module for path in set(paths) - set(chosen) for module in enclosing(path)}
    return sorted({next(module for module in enclosing(path) if module not in others) for path in chosen})


def load_frozen_rpn(variables: dict[str, Any], experiment: Experiment) -> dict[str, Any]:
    """Replaces the separate RPN and its backbone by those of the run model.rpn.proposals_from.

    Raises:
        InputError: that run has no RPN, or another network or preprocessing.
    """
    origin = experiment.model.rpn.proposals_from
    weights = read_weights(origin)
    parts = ("backbone", "fpn", "rpn")
    proposer = {
        collection: {part: modules[part] for part in parts if part in modules}
        for collection, modules in weights.variables.items()
    }
    if "rpn" not in proposer["params"]:
        raise InputError(f"model.rpn.proposals_from {origin} has no RPN of its own: name a run that has")
    if _proposer_settings(weights.experiment.model) != _proposer_settings(experiment.model):
        raise InputError(
            f"model.rpn.proposals_from {origin} has another backbone, pixel_mean, pixel_std, channel_order, "
            "anchors or conventions of these than this experiment"
        )
    return {
        collection: modules | ({"proposer": proposer[collection]} if "proposer" in modules else {})
        for collection, modules in variables.items()
    }


_PROPOSER_CONVENTIONS = "resize", "size_rounding", "anchor_rounding", "anchor_offset", "anchor_strides"


def _proposer_settings(model: ModelConfig):
    """Returns the settings of the proposer's network and input; the number of proposals may differ."""
    rpn = model.rpn.anchor_sizes, model.rpn.aspect_ratios, model.rpn.convolutions
    pixels = model.pixel_mean, model.pixel_std, model.channel_order
    conventions = [getattr(model.conventions, name) for name in _PROPOSER_CONVENTIONS]
    return replace(model.backbone, freeze_stages=0), rpn, pixels, conventions
