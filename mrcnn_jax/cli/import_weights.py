"""`mrcnn import-weights`: imports weights of other libraries."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.terminal import PROGRAM


@dataclass(frozen=True)
class Options:
    """Convert weights of torchvision, Detectron2 or the original Detectron to a directory that `predict`,
    `evaluate` and `train` accept.

    Conventions of the library (channel order, resizing, anchors, RoI pooling, ...) are recognised and become
    configuration. Any field of the experiment can be given after the file and replaces the recognised value,
    as in `--model.box.score-threshold 0.3` or `--data.short-edge-test 320`; `mrcnn train mask_rcnn_r50_fpn
    --help` lists the fields.

    A file does not determine everything. The published COCO models of torchvision's first generation
    (maskrcnn_resnet50_fpn, ...) have batch norm without epsilon, which is assumed; models trained from
    ImageNet weights with an unchanged FrozenBatchNorm2d need `--model.backbone.norm-epsilon 1e-5`.
    """

    source: tyro.conf.Positional[Literal["torchvision", "detectron2"]]
    """Library of the weights; detectron2 also reads files of the original Detectron, and MSRA's backbones."""
    file: tyro.conf.Positional[Path]
    """State dict, or file of a model zoo: .safetensors, .npz, .pkl; .pth with the extra mrcnn_jax[torch]. No
    code in it is executed."""
    out: Path
    """New directory of the imported weights."""
    config: Path | None = None
    """Detectron2's configuration file (YAML), for models outside its model zoo."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the weights, without background, if they are not COCO's."""
    partial: bool = False
    """Initialise missing tensors randomly instead of failing, to train from the rest."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn import-weights`; returns the exit status."""
    prog = f"{PROGRAM} import-weights"
    options, fields = tyro.cli(Options, prog=prog, args=arguments, return_unknown_args=True)
    from mrcnn_jax.config import Experiment
    from mrcnn_jax.weights.import_export import identify_model, save_imported
    from mrcnn_jax.weights.readers import read_tensors
    from mrcnn_jax.weights.summary import describe_conventions, summarize_model

    source = identify_model(options.source, read_tensors(options.file), str(options.file), options.config)
    experiment = tyro.cli(Experiment, default=source.experiment, prog=prog, args=fields)
    missing = save_imported(source, experiment, options.out, options.classes, options.partial)
    lines = [summarize_model(source, experiment.model)]
    lines += [f"  {line}" for line in describe_conventions(experiment.model, experiment.data)]
    if missing:
        lines.append(f"Missing, {len(missing)} tensors: {', '.join(missing)}")
    tune = f"{PROGRAM} train {options.out} --data.dataset data/mine --directory runs/mine"
    if source.is_backbone:
        commands = [f"{PROGRAM} train EXPERIMENT --train.init-from {options.out}"]
    else:
        commands = [tune] if missing else [f"{PROGRAM} predict {options.out} photo.jpg", tune]
    lines += [f"The weights are in {options.out}. Next:", *(f"  {command}" for command in commands)]
    Console().print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return OK
