"""Weights of other libraries in: a directory that ``load`` detects with and training starts from. And out again, to torchvision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.checkpoint import Checkpoints
from mrcnn_jax.config import Experiment, ModelConfig, to_dict
from mrcnn_jax.config.model import BASIC
from mrcnn_jax.data import coco_classes
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import load
from mrcnn_jax.models.mask_rcnn import MaskRCNN, initialise
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.weights import caffe2 as detectron1
from mrcnn_jax.weights import detectron2, detectron2_settings, torchvision
from mrcnn_jax.weights.param_map import Table, Tensors, check, to_ours, to_theirs, unused_rows
from mrcnn_jax.weights.readers import read_tensors, write_tensors

SOURCES = ("torchvision", "detectron2")
UNUSED = "unused.npz"
"""Beside imported weights: what no prediction depends on, so that an export gives the very file back."""
ORIGIN = "import.json"
"""Beside imported weights: where they come from, and what was missing."""


@dataclass(frozen=True)
class Recognised:
    """A file's tensors under names of today, and the model that they are of."""

    tensors: Tensors
    unused: Tensors
    experiment: Experiment
    table: Callable[[ModelConfig], Table]
    origin: str

    @property
    def backbone_alone(self) -> bool:
        return not self.experiment.model.tasks


def recognise(source: str, tensors: Tensors, origin: str, settings: Path | None = None) -> Recognised:
    """Says what model tensors are of.

    Args:
        source: "torchvision" or "detectron2"; the latter also for the original Detectron and for MSRA's backbones.
        tensors: of a file (``read_tensors``).
        origin: what to call it.
        settings: Detectron2's configuration file; without it the model zoo's settings for such a model are taken.
    Raises InputError, in one sentence, where they are of no known model.
    """
    if source not in SOURCES:
        raise InputError(f"there is no source {source!r} of weights: choose from {', '.join(SOURCES)}")
    if settings and source != "detectron2":
        raise InputError(f"a configuration file belongs to detectron2: {source} has none")
    try:
        return _of_torchvision(tensors, origin) if source == "torchvision" else _of_detectron2(tensors, origin, settings)
    except IndexError as error:  # a tensor of too few axes, under the name of another
        raise InputError(f"{origin} holds tensors of other shapes than their names promise") from error


def _of_torchvision(tensors, origin):
    current = torchvision.modern(tensors)
    counters = {name.removeprefix("module."): tensor for name, tensor in tensors.items() if name.endswith("num_batches_tracked")}
    experiment = torchvision.describe(current, origin, folded="conv1.bias" in tensors, counted=bool(counters))
    return Recognised(current, counters, experiment, torchvision.table, origin)


def _of_detectron2(tensors, origin, settings):
    original = detectron1.is_detectron1(tensors)
    try:
        tensors = detectron1.to_detectron2(tensors) if original else detectron2.known(tensors)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error
    if "stem.conv1.weight" in tensors:
        if settings:
            raise InputError(f"{origin} holds a backbone alone, to which the configuration of a detector, {settings}, says nothing")
        experiment = detectron2_settings.backbone_experiment(tensors, original, origin)
    else:
        zoo = detectron2_settings.settings_of(tensors, original, origin)
        given = detectron2_settings.read_settings(settings) if settings else {}
        experiment = detectron2_settings.experiment_of(zoo | given, original, str(settings or origin))
    return Recognised(tensors, {}, experiment, detectron2.table, origin)


def import_weights(
    source: str,
    file: str | Path,
    out: str | Path,
    *,
    settings: str | Path | None = None,
    classes: Sequence[str] = (),
    partial: bool = False,
    change: Callable[[Experiment], Experiment] = lambda experiment: experiment,
) -> list[str]:
    """Imports weights of another library into a directory.

    Args:
        source, settings: see ``recognise``.
        file: .pth, .safetensors, .npz or .pkl; nothing in it is executed.
        out: gets experiment.json with the source's conventions, and a checkpoint. ``load(out)`` then detects as the library would; training
            starts from it (``train.weights_from``).
        classes: names of the classes, where they are not COCO's.
        partial: leave tensors that are missing to chance, instead of refusing the file; training can start from the rest.
        change: of the experiment that was recognised, for what a file does not say.
    Returns the names of the tensors that were missing.
    """
    found = recognise(source, read_tensors(Path(file)), str(file), Path(settings) if settings else None)
    return save(found, change(found.experiment), Path(out), classes, partial)


def save(found: Recognised, experiment: Experiment, out: Path, classes: Sequence[str] = (), partial: bool = False) -> list[str]:
    """Writes what was recognised, as the given experiment; see ``import_weights``. Nothing is written where it does not fit."""
    if (out / "checkpoints").exists():
        raise InputError(f"{out} holds checkpoints already: choose another directory")
    table = found.table(experiment.model)
    template = jax.eval_shape(lambda: initialise(MaskRCNN(experiment.model), jax.random.key(0)))
    missing = check(found.tensors, table, template, found.origin, partial)
    info = coco_classes.unknown(0) if found.backbone_alone else _classes(experiment.model, classes)
    variables = to_ours(found.tensors, table)
    unused = found.unused | unused_rows(found.tensors, table)

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "experiment.json", to_dict(experiment))
    write_json(out / ORIGIN, {"file": Path(found.origin).name, "tensors": len(found.tensors), "missing": missing})
    if unused:
        np.savez(out / UNUSED, **unused)
    checkpoints = Checkpoints(out / "checkpoints")
    state = {"params": variables.pop("params"), "model_state": variables}
    checkpoints.save(0, state, 0, experiment, info)
    checkpoints.wait()
    checkpoints.close()
    return missing


def _classes(model: ModelConfig, names: Sequence[str]) -> DatasetInfo:
    count, joints = model.num_classes, model.keypoint.num_keypoints
    if names and len(names) != count:
        raise InputError(f"--classes gives {len(names)} names, but the model has {count} classes")
    known = {80: coco_classes.COCO, 90: coco_classes.COCO_WITH_GAPS}.get(count, coco_classes.unknown(count))
    if "keypoints" in model.tasks:
        person = count == 1 and joints == len(coco_classes.COCO_PERSON.keypoint_names)
        numbered = known._replace(keypoint_names=tuple(f"keypoint {index}" for index in range(1, joints + 1)), keypoint_flip=tuple(range(joints)))
        known = coco_classes.COCO_PERSON if person else numbered._replace(keypoint_classes=model.keypoint.classes)
    return known._replace(category_names=tuple(names)) if names else known


def export_weights(target: str, directory: str | Path, file: str | Path) -> list[str]:
    """Writes the detector of a directory as a state dict that torchvision loads: .pth, .safetensors or .npz.

    Returns the fields of the model in which it differs from what torchvision takes such a state dict to be: some are arguments of its
    constructors, others it does not have. InputError where torchvision has no place for the model at all.
    """
    if target != "torchvision":
        raise InputError(f"weights can be exported to torchvision, not to {target!r}")
    directory, file = Path(directory), Path(file)
    detector = load(directory)
    model = detector.experiment.model
    foreign = {
        "backbone.features is not fpn": model.backbone.features != "fpn",
        "backbone.norm or another is group": "group" in (model.backbone.norm, model.backbone.pyramid_norm, model.box.norm, model.mask.norm),
        "backbone.non_local": model.backbone.non_local,
        "backbone.stride_in_1x1": model.backbone.stride_in_1x1 and model.backbone.name not in BASIC,
        "box.fully_connected is not 2, or 1 after convolutions": model.box.fully_connected != (1 if model.box.convolutions else 2),
        "mask.head is mlp": "masks" in model.tasks and model.mask.head == "mlp",
        "mask.class_agnostic or mask.loss softmax": "masks" in model.tasks and (model.mask.class_agnostic or model.mask.loss == "softmax"),
        "model.tasks is empty": not model.tasks,
        "rpn.training is separate": model.rpn.training == "separate",
    }
    if any(foreign.values()):
        raise InputError(f"torchvision has no model like that of {directory}: {', '.join(name for name, holds in foreign.items() if holds)}")
    unused = {}
    if (directory / UNUSED).exists():
        with np.load(directory / UNUSED) as arrays:
            unused = dict(arrays)
    table = torchvision.table(model)
    tensors = to_theirs(jax.tree.map(np.asarray, detector.variables), table, unused)
    for name, entry in table.items():
        if entry.path.startswith("batch_stats") and name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            tensors[counter] = unused.get(counter, np.zeros((), np.int64))
    write_tensors(file, tensors)
    counted = any(name.endswith("num_batches_tracked") for name in tensors)
    theirs = torchvision.describe(torchvision.modern(tensors), str(file), folded=False, counted=counted).model
    absent = tuple(f"model.{branch}" for task, branch in (("masks", "mask."), ("keypoints", "keypoint.")) if task not in model.tasks)
    differences = _differences(*(to_dict(Experiment(model=each))["model"] for each in (theirs, model)))
    return [f"{path}: {ours} here, {value} there" for path, value, ours in differences if not path.startswith(absent)]


def _differences(theirs, ours, path="model"):
    for name, value in theirs.items():
        if isinstance(value, dict):
            yield from _differences(value, ours[name], f"{path}.{name}")
        elif value != ours[name]:
            yield f"{path}.{name}", value, ours[name]
