"""What is settled before the first step: what the experiment takes from its data set, and the weights that do not start at random."""

from dataclasses import replace
from typing import Any

from mrcnn_jax.config import Experiment, ModelConfig
from mrcnn_jax.data.records import RecordSource
from mrcnn_jax.detector import load
from mrcnn_jax.errors import InputError


def fit_to_dataset(experiment: Experiment, source: RecordSource) -> Experiment:
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


def adopt_proposer(variables: dict[str, Any], experiment: Experiment) -> dict[str, Any]:
    """The variables, with backbone and RPN of the run train.rpn_from in place of the proposer's random ones; InputError where they do not fit."""
    run = experiment.train.rpn_from
    trained = load(run)
    theirs = {name: {part: values[part] for part in ("backbone", "fpn", "rpn") if part in values} for name, values in trained.variables.items()}
    if "rpn" not in theirs["params"]:
        raise InputError(f"train.rpn_from {run} has no RPN of its own: name the run that trained one")
    if _architecture(trained.experiment.model) != _architecture(experiment.model):
        raise InputError(f"train.rpn_from {run} has another backbone, pixel_mean, pixel_std or anchors: its model must see images as this experiment's does")
    return {name: values | ({"proposer": theirs[name]} if "proposer" in values else {}) for name, values in variables.items()}


def _architecture(model: ModelConfig):
    """What makes the proposer's network and what it is fed; how many proposals it keeps is free."""
    rpn = model.rpn.anchor_sizes, model.rpn.aspect_ratios, model.rpn.convolutions
    return replace(model.backbone, freeze_stages=0), rpn, model.pixel_mean, model.pixel_std
