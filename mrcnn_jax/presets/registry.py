"""Registry of named experiments, functions whose docstrings give the purpose and the command."""

import inspect
import os
from collections.abc import Callable
from dataclasses import replace

from mrcnn_jax.config import Experiment, read_experiment
from mrcnn_jax.errors import InputError

PRESETS: dict[str, Callable[[], Experiment]] = {}
SMALL_SET = 5_000
"""Number of training images up to which the experiment for small machines is proposed."""


def preset(build: Callable[[], Experiment]) -> Callable[[], Experiment]:
    """Registers a function that builds an experiment under its name."""
    PRESETS[build.__name__] = build  # ty: ignore[missing-attribute]
    return build


def register(name: str, build: Callable[[], Experiment], description: str) -> None:
    """Registers one of several functions that are made alike, with the docstring that ``preset`` expects."""

    def built() -> Experiment:
        return build()

    built.__name__, built.__doc__ = name, f"{description}\n\nmrcnn train {name} --train.dtype bfloat16"
    preset(built)


def get(name: str) -> Experiment:
    """Returns the experiment of a preset.

    Raises:
        InputError: there is no such preset. The message lists the names.
    """
    if name not in PRESETS:
        raise InputError(f"there is no experiment {name!r}; choose from {', '.join(PRESETS)}")
    return replace(PRESETS[name](), name=name)


def describe(name: str) -> str:
    """Returns the first paragraph of a preset's docstring, on one line."""
    return (inspect.getdoc(PRESETS[name]) or "").partition("\n\n")[0].replace("\n", " ")


def suggest(images: int) -> str:
    """Returns the name of the experiment that is proposed for a number of training images."""
    return "small" if images <= SMALL_SET else "mask_rcnn_r50_fpn"


def resolve(name: str) -> tuple[Experiment, str]:
    """Returns an experiment and the default name of its run.

    Args:
        name: a preset, or a directory of imported weights or of a run, or another name of weights that
            ``load`` accepts, which are then fine-tuned (see ``fine_tune``).

    Raises:
        InputError: there is neither a preset nor such a directory.
    """
    if name in PRESETS:
        return get(name), name
    from etils import epath

    from mrcnn_jax.weights.locate import locate, short_name

    directory = epath.Path(locate(name))
    if not directory.exists():
        return get(name), name
    if (directory / "experiment.json").exists():
        return fine_tune(name), f"{short_name(name)}_tuned"
    if (directory / "metadata.json").exists():
        command = f"mrcnn train small --data.dataset {name}"
        raise InputError(f"{name} is a data set, not an experiment: `{command}` trains on it")
    if not directory.is_dir():
        raise InputError(f"{name} is a file; `mrcnn import-weights` makes weights to train from")
    raise InputError(f"{name} holds neither a training run nor imported weights: it has no experiment.json")


def stored_run(directory: str | os.PathLike) -> Experiment | None:
    """Returns the experiment of the training run in a directory; None for other weights or without one.

    It is that of the newest checkpoint; before the first one, that of experiment.json.
    """
    from etils import epath

    from mrcnn_jax.run_description import newest_description
    from mrcnn_jax.weights.folder import is_model_folder
    from mrcnn_jax.weights.locate import is_local

    if not is_local(directory) or is_model_folder(directory):
        return None
    path = epath.Path(directory)
    if newest := newest_description(path):
        step, description = newest
        return description.experiment if step else None
    return read_experiment(path / "experiment.json") if (path / "experiment.json").exists() else None


def fine_tune(directory: str | os.PathLike) -> Experiment:
    """Returns the experiment of a directory, with its weights as the start and the classes left to the data
    set; that of the preset `finetune` for a backbone alone.

    Args:
        directory: imported weights, a training run, or another name of weights that ``load`` accepts.

    Raises:
        InputError: the directory is not readable.
    """
    from etils import epath

    from mrcnn_jax.inference.detector import read_weights
    from mrcnn_jax.weights.locate import locate

    experiment = read_experiment(epath.Path(locate(directory)) / "experiment.json")
    model = experiment.model
    if not model.tasks and "rpn" not in read_weights(directory).variables["params"]:
        experiment = get("finetune")
        model = replace(experiment.model, backbone=model.backbone)
    model = replace(model, num_classes=0, keypoint=replace(model.keypoint, num_keypoints=0))
    # how long the weights were trained, and when that was to end early, is not how long they are tuned
    train = replace(experiment.train, init_from=str(directory), epochs=0.0, patience=0, monitor="ap")
    return replace(experiment, model=model, train=train)
