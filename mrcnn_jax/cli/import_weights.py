"""`mrcnn import-weights`: imports weights of other libraries."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from mrcnn_jax.cli import PROGRAM
from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.terminal import folder_name, parse, parse_known
from mrcnn_jax.errors import InputError

SOURCES = ("torchvision", "detectron2")


@dataclass(frozen=True)
class Options:
    """Convert weights of torchvision, Detectron2 or the original Detectron to a directory that `predict`,
    `evaluate` and `train` accept.

    The library and its conventions (channel order, resizing, anchors, RoI pooling, ...) are recognised and
    become configuration. Any field of the experiment can be given after the file and replaces the recognised
    value, as in `--model.box.score-threshold 0.3` or `--data.short-edge-test 320`; `mrcnn train
    mask_rcnn_r50_fpn --help-all` lists the fields.

    A file does not determine everything. Anchors of 32 to 512 pixels with three aspect ratios are assumed:
    models trained with others need `--model.rpn.anchor-sizes 16 32 64 128 256` or
    `--model.rpn.aspect-ratios`. The published COCO models of torchvision's first generation
    (maskrcnn_resnet50_fpn, ...) have batch norm without epsilon, which is assumed; models trained from
    ImageNet weights with an unchanged FrozenBatchNorm2d need `--model.backbone.norm-epsilon 1e-5`.
    """

    file: tyro.conf.Positional[str]
    """State dict or checkpoint of PyTorch, .safetensors, .npz, or .pkl of a model zoo, recognised by its
    content; its address; or a name of published weights (`mrcnn zoo`). No code in it is executed. The name of
    the library may precede it."""
    out: Path
    """New directory of the imported weights."""
    source: Literal["torchvision", "detectron2"] | None = None
    """Library of the weights, to refuse files of another; recognised by default."""
    key: str | None = None
    """Path of the weights in a checkpoint that holds several, such as `model_ema`."""
    config: Path | None = None
    """Detectron2's configuration file (YAML), for models outside its model zoo."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the weights, without background, if they are not COCO's."""
    partial: bool = False
    """Initialise missing tensors randomly instead of failing, to train from the rest."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn import-weights`; returns the exit status."""
    if len(arguments) > 1 and not any(word.startswith("-") for word in arguments[:2]):  # a library and a file
        if arguments[0] not in SOURCES:
            known = ", ".join(SOURCES)
            raise InputError(f"there is no library {arguments[0]!r}: it must be one of {known}, or left out")
        arguments = [*arguments[1:], "--source", arguments[0]]
    options, fields = parse_known(Options, "import-weights", arguments)
    from mrcnn_jax.config import Experiment
    from mrcnn_jax.weights.import_export import check_out, read_source, save_imported
    from mrcnn_jax.weights.summary import describe_assumptions, describe_conventions, summarize_model

    check_out(options.out)
    found = read_source(options.file, source=options.source, key=options.key, config=options.config)
    source, classes = found.model, options.classes or found.classes
    experiment = parse(Experiment, "import-weights", fields, source.experiment)
    missing = save_imported(source, experiment, options.out, classes, options.partial, found.provenance)
    lines = [summarize_model(source, experiment.model)]
    lines += [f"  {line}" for line in describe_conventions(experiment.model, experiment.data)]
    notes = [describe_assumptions(source, experiment), *found.notes]
    lines += [f"{note[:1].upper()}{note[1:]}." for note in notes if note]
    if missing:
        lines.append(f"Missing, {len(missing)} tensors: {', '.join(missing)}")
    out = shlex.quote(str(options.out))
    tune = f"{PROGRAM} train {out} --data.dataset data/mine --directory runs/mine"
    if source.is_backbone:
        commands = [_train_with_backbone(experiment.model.backbone, out)]
    else:
        commands = [tune] if missing else [f"{PROGRAM} predict {out} photo.jpg", tune]
    place = folder_name(options.out)
    lines += [f"The weights are in {place}. Next:", *(f"  {command}" for command in commands)]
    Console().print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return OK


def _train_with_backbone(backbone, out: str) -> str:
    """Returns a command that trains a detector with a backbone."""
    command = f"{PROGRAM} train mask_rcnn_r50_fpn --data.dataset data/mine --train.init-from {out}"
    for field in ("name", "width", "groups", "group_width"):
        value = getattr(backbone, field)
        if value != getattr(type(backbone), field):  # the preset has the defaults
            command += f" --model.backbone.{field.replace('_', '-')} {value}"
    return command
