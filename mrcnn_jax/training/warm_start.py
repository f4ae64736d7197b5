"""What is settled before the first step: what the experiment takes from its data set, and the weights that do not start at random."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mrcnn_jax.config import Experiment, ModelConfig
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import Weights, load
from mrcnn_jax.structures import DatasetInfo


def resolve_dataset_fields(experiment: Experiment, source: DatasetSplit) -> Experiment:
    """The experiment with the classes and keypoints of its data set filled in where it leaves them open; InputError where they differ."""
    info, model, dataset = source.info, experiment.model, source.directory
    if model.num_classes not in (0, info.num_classes):
        raise InputError(f"model.num_classes is {model.num_classes}, but {dataset} has {info.num_classes} classes; 0 takes the number from the data set")
    model = replace(model, num_classes=info.num_classes)
    if "keypoints" in model.tasks:
        joints, classes = len(info.keypoint_names), info.keypoint_classes
        if not classes or not joints:
            raise InputError(f"model.tasks has keypoints, but no class of {dataset} has any: leave keypoints out, or prepare the set with them")
        wanted = model.keypoint.num_keypoints
        if wanted and (wanted, model.keypoint.classes) != (joints, classes):
            raise InputError(
                f"model.keypoint says {wanted} keypoints of the classes {model.keypoint.classes}, but {dataset} has {joints} of {classes}; "
                "model.keypoint.num_keypoints 0 takes both from the data set"
            )
        model = replace(model, keypoint=replace(model.keypoint, num_keypoints=joints, classes=classes))
    return replace(experiment, model=model)


def check_backbone(model: ModelConfig, weights: ModelConfig, origin: str) -> None:
    """InputError where the weights' backbone is another network."""
    differing = [
        f"backbone.{name} is {theirs} there and {ours} here"
        for name in ("name", "width", "groups", "group_width")
        if (theirs := getattr(weights.backbone, name)) != (ours := getattr(model.backbone, name))
    ]
    if differing:
        raise InputError(f"train.init_from {origin} has another backbone: {', '.join(differing)}")


def match_preprocessing(model: ModelConfig, weights: ModelConfig) -> ModelConfig:
    """The model, taking images as the weights that it starts from do. Norms that are not frozen measure anew, and keep their epsilon."""
    epsilon = (weights if model.backbone.norm == "frozen" else model).backbone.norm_epsilon
    backbone = replace(model.backbone, norm_epsilon=epsilon, stride_in_1x1=weights.backbone.stride_in_1x1)
    return replace(model, backbone=backbone, channel_order=weights.channel_order, pixel_mean=weights.pixel_mean, pixel_std=weights.pixel_std)


class Pretrained(NamedTuple):
    """Variables to start from; and by layer, or by module where all of one is meant, what stayed random in them and what they have no place for."""

    variables: dict[str, Any]
    at_random: list[str]
    left: list[str]


def load_pretrained(variables: dict[str, Any], weights: Weights, model: ModelConfig, info: DatasetInfo, origin: str) -> Pretrained:
    """The variables, with all arrays that the weights have in place of the random ones.

    Layers made for other classes or keypoints than those of the data set (``info``) stay random, even where their shapes agree; so do arrays
    whose shapes do not. The vectors of batch norm go where the model keeps them, frozen or not, and res5 where the model has it. Of a separate
    proposer, which model.rpn.proposals_from fills, nothing is said. InputError where no array fits.
    """
    arrays, given = flatten_dict(variables, sep="/"), flatten_dict(weights.variables, sep="/")
    at_home = {_home(path): array for path, array in given.items()}
    of_others = () if weights.info.category_names == info.category_names else _class_layers(model)
    of_others += () if weights.info.keypoint_names == info.keypoint_names else ("keypoint/logits",)

    def fitting(path):
        home, array = _home(path), at_home.get(_home(path))
        return None if array is None or array.shape != arrays[path].shape or _layer(home) in of_others else np.asarray(array)

    taken = {path: array for path in arrays if (array := fitting(path)) is not None}
    if not taken:
        raise InputError(f"train.init_from {origin} has no layer of this model")
    homes = {_home(path) for path in arrays}
    return Pretrained(
        variables=unflatten_dict({path: taken.get(path, array) for path, array in arrays.items()}, sep="/"),
        at_random=[module for module in _modules(arrays, arrays.keys() - taken.keys()) if not module.startswith("proposer")],
        left=_modules(given, {path for path in given if _home(path) not in homes}),
    )


def _class_layers(model):
    """What is made for the classes of one data set."""
    return ("box/classes", "box/deltas", *(() if model.mask.class_agnostic else ("mask/logits",)))


def _name(path):
    """An array's name, whatever collection it is kept in: module, layer, parameter."""
    return re.sub(r"_(kernel|bias)$", r"/\1", path.partition("/")[2])


def _layer(name):
    return name.rpartition("/")[0]


def _home(path):
    """The name that an array has in all models, whether res5 is part of the backbone or of the head."""
    return re.sub(r"^\w+/(?=res5_)", "", _name(path))


def _modules(paths: Iterable[str], chosen: Iterable[str]) -> list[str]:
    """The chosen arrays, by the name of the largest module or layer in which no other of ``paths`` lies."""

    def enclosing(path):
        parts = _name(path).split("/")
        return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]

    others = {module for path in set(paths) - set(chosen) for module in enclosing(path)}
    return sorted({next(module for module in enclosing(path) if module not in others) for path in chosen})


def load_frozen_rpn(variables: dict[str, Any], experiment: Experiment) -> dict[str, Any]:
    """The variables, with backbone and RPN of the run model.rpn.proposals_from in place of the proposer's random ones; InputError where they do not fit."""
    run = experiment.model.rpn.proposals_from
    trained = load(run)
    theirs = {name: {part: values[part] for part in ("backbone", "fpn", "rpn") if part in values} for name, values in trained.variables.items()}
    if "rpn" not in theirs["params"]:
        raise InputError(f"model.rpn.proposals_from {run} has no RPN of its own: name the run that trained one")
    if _architecture(trained.experiment.model) != _architecture(experiment.model):
        raise InputError(f"model.rpn.proposals_from {run} has another backbone, pixel_mean, pixel_std or anchors: its model must see images as this experiment's does")
    return {name: values | ({"proposer": theirs[name]} if "proposer" in values else {}) for name, values in variables.items()}


def _architecture(model: ModelConfig):
    """What makes the proposer's network and what it is fed; how many proposals it keeps is free."""
    rpn = model.rpn.anchor_sizes, model.rpn.aspect_ratios, model.rpn.convolutions
    return replace(model.backbone, freeze_stages=0), rpn, model.pixel_mean, model.pixel_std
