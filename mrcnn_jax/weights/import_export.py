"""Imports weights of other libraries into a directory, for detection and training; exports weights."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from mrcnn_jax.atomic_io import require_writable, write_json
from mrcnn_jax.checkpoint import CheckpointStore, run_directory
from mrcnn_jax.config import Experiment, ModelConfig, to_dict
from mrcnn_jax.config.model import BASIC
from mrcnn_jax.data import coco_classes
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import load, require_weights
from mrcnn_jax.models.systems import init_variables, make_model
from mrcnn_jax.paths import require_local
from mrcnn_jax.weights import own_file, torchvision
from mrcnn_jax.weights.class_names import dataset_info
from mrcnn_jax.weights.folder import EXPORTED, TENSORS, Weights
from mrcnn_jax.weights.identify import SourceModel, identify_model
from mrcnn_jax.weights.locate import find_file, locate
from mrcnn_jax.weights.param_map import check_tensors, collect_unused_rows, to_jax, to_source
from mrcnn_jax.weights.readers import read_weights, require_suffix, write_tensors
from mrcnn_jax.weights.summary import describe_assumptions

TARGETS = ("torchvision", "safetensors")
"""Kinds of files that weights are exported to."""
UNUSED_FILE = "unused.npz"
"""Tensors and rows beside imported weights that no prediction depends on; an export restores them."""
RECORD_FILE = "import.json"
"""Origin of imported weights, the tensors that were missing, and what was assumed."""


def import_weights(
    file: str | Path,
    out: str | Path,
    *,
    source: str | None = None,
    key: str | None = None,
    config: str | Path | None = None,
    classes: Sequence[str] = (),
    partial: bool = False,
    change: Callable[[Experiment], Experiment] = lambda experiment: experiment,
) -> list[str]:
    """Imports weights of another library, or an own file of weights, into a directory.

    ``load(out)`` then detects as the library does, and training can start from it (``train.init_from``).

        import_weights("maskrcnn_resnet50_fpn_coco.pth", "weights/tv")
        import_weights("model_final_f10217.pkl", "weights/d2")
        detections = mrcnn_jax.load("weights/tv")(image)

    Args:
        file: of PyTorch (.pth, .pt, .ckpt, ...), .safetensors, .npz or .pkl, its address, or a name of
            published weights (`mrcnn zoo` lists them); or what ``export_weights("safetensors", ...)`` wrote.
            Nothing in it is executed.
        out: directory for experiment.json, with the source's conventions, a checkpoint, and import.json,
            which records what was assumed.
        source: "torchvision" or "detectron2" (also for the original Detectron and MSRA's backbones), to
            refuse files of another library; by default it is recognised.
        key: path of the weights in a checkpoint that holds several, such as "model_ema".
        config: Detectron2's configuration file (YAML), for models that are not in its model zoo.
        classes: names of the classes, if they are not COCO's.
        partial: initialise missing tensors randomly instead of refusing the file; training can start from the
            rest.
        change: changes the experiment, for what a file does not specify.

    Returns:
        Names of the missing tensors.

    Raises:
        InputError: the file cannot be read, is not a supported model, or does not fit it; nothing is written
            then.
    """
    require_local(out, "the output")  # also against an empty name, which Path makes the working directory
    check_out(Path(out))
    found = read_source(file, source=source, key=key, config=Path(config) if config else None)
    experiment = change(found.model.experiment)
    classes = classes or found.classes
    return save_imported(found.model, experiment, Path(out), classes, partial, found.provenance)


class Source(NamedTuple):
    """A file of weights, read and identified."""

    model: SourceModel
    notes: list[str]
    """Sentences on what else the file holds."""
    classes: tuple[str, ...] = ()
    """Names of the classes, where the catalogue of published weights knows them."""
    provenance: Mapping[str, str] = MappingProxyType({})
    """Address and digest of a file that was downloaded."""


def read_source(
    file: str | Path, *, source: str | None = None, key: str | None = None, config: Path | None = None
) -> Source:
    """Reads a file of weights, which is downloaded if need be, and identifies its model.

    The arguments are those of ``import_weights``.
    """
    path, entry = find_file(file)
    own = own_file.read_description(path)
    weights = read_weights(path, key)
    if own is not None:
        if source or config:
            given = f"of {source}" if source else "to be configured by a file"
            raise InputError(f"{file} holds a detector of mrcnn_jax, not one {given}: leave that out")
        maker, known = own_file.make_param_map, ("model", "data")
        model = SourceModel(weights.tensors, {}, own.experiment, maker, str(file), known, own.info)
        return Source(model, weights.notes)
    settings = config or (entry.settings if entry else None)
    model = identify_model(source, weights.tensors, str(file), settings)
    if entry is None:
        return Source(model, weights.notes)
    if not entry.inferred:  # nothing is assumed
        model = replace(model, known=("model", "data"))
    digest = path.with_name(f"{path.name}.sha256").read_text().strip()
    return Source(model, weights.notes, entry.classes, {"url": entry.url, "sha256": digest})


def check_out(out: Path) -> None:
    """Checks that weights can be written to a directory."""
    require_local(out, "the output")
    if (out / "checkpoints").exists():
        raise InputError(f"{out} already holds checkpoints: choose another directory")
    if (out / TENSORS).exists() or (out / EXPORTED).exists():
        raise InputError(f"{out} already holds a shared or exported model: choose another directory")
    require_writable(out)


def save_imported(
    model: SourceModel, experiment: Experiment, out: Path, classes: Sequence[str] = (), partial: bool = False,
    provenance: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:  # fmt: skip
    """Writes identified weights as the given experiment; see ``import_weights``."""
    check_out(out)
    param_map = model.make_param_map(experiment.model)
    template = jax.eval_shape(lambda: init_variables(make_model(experiment.model), jax.random.key(0)))
    missing = check_tensors(model.tensors, param_map, template, model.origin, partial)
    info = coco_classes.unknown(0)
    if not model.is_backbone:
        info = dataset_info(experiment.model, classes, model.info)
    variables = to_jax(model.tensors, param_map)
    unused = model.unused | collect_unused_rows(model.tensors, param_map)

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "experiment.json", to_dict(experiment))
    record = {"file": Path(model.origin).name, "tensors": len(model.tensors), "missing": missing} | provenance
    if assumed := describe_assumptions(model, experiment):
        record["note"] = assumed
    write_json(out / RECORD_FILE, record)
    (out / UNUSED_FILE).unlink(missing_ok=True)  # of another file, whose import has failed
    if unused:
        np.savez(out / UNUSED_FILE, **unused)
    state = {"params": variables.pop("params"), "model_state": variables}
    partial_checkpoints = out / ".checkpoints.part"
    shutil.rmtree(partial_checkpoints, ignore_errors=True)  # of a process that was killed
    try:
        partial_checkpoints.mkdir()
        with CheckpointStore(partial_checkpoints) as checkpoints:
            checkpoints.save(0, state, 0, experiment, info)
            checkpoints.wait()
        partial_checkpoints.rename(out / "checkpoints")
    finally:
        shutil.rmtree(partial_checkpoints, ignore_errors=True)
    return missing


def export_weights(target: str, directory: str | Path, file: str | Path) -> list[str]:
    """Exports the weights of a detector, for torchvision or as an own file that holds any detector.

        differences = export_weights("torchvision", "runs/mine", "mine.pth")
        export_weights("safetensors", "runs/mine", "mine.safetensors")

    Args:
        target: "torchvision", or "safetensors" with our names (``weights.own_file``), which
            ``import_weights`` takes.
        directory: of a training run, perhaps in a bucket, or another model that ``load`` accepts.
        file: new, .pth, .pt, .safetensors or .npz; .safetensors for the target of that name.

    Returns:
        Fields of the experiment that differ from what torchvision's constructor assumes, as "field: value
        here, value there". Its arguments can change some of them; others torchvision cannot do. None for an
        own file.

    Raises:
        InputError: torchvision has no such model, or the file exists or cannot be written.
    """
    return export_model(target, directory, file)[1]


def export_model(target: str, directory: str | Path, file: str | Path) -> tuple[ModelConfig, list[str]]:
    """Does what ``export_weights`` does; returns the configuration of the model, and the differences."""
    if target not in TARGETS:
        raise InputError(f"weights can be exported to {' or '.join(TARGETS)}, not to {target!r}")
    _check_file(file, target)
    directory, file = locate(directory), Path(file)
    detector = load(require_weights(directory))
    if target == "safetensors":
        weights = Weights(detector.experiment, detector.info, jax.device_get(detector.variables))
        own_file.write_own_file(file, weights)
        return detector.experiment.model, []
    model = detector.experiment.model
    if unsupported := _unsupported_by_torchvision(model):
        raise InputError(
            f"torchvision has no model like that of {directory}: {', '.join(unsupported)}; the target "
            "safetensors takes any"
        )
    unused, beside = {}, run_directory(directory) / UNUSED_FILE
    if beside.exists():
        with beside.open("rb") as stream, np.load(stream) as arrays:
            unused = dict(arrays)
    param_map = torchvision.make_param_map(model)
    tensors = to_source(jax.tree.map(np.asarray, detector.variables), param_map, unused)
    for name, spec in param_map.items():
        if spec.path.startswith("batch_stats") and name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            tensors[counter] = unused.get(counter, np.zeros((), np.int64))
    write_tensors(file, tensors)
    trained_norm = any(name.endswith("num_batches_tracked") for name in tensors)
    weights = torchvision.normalize_state_dict(tensors)
    theirs = torchvision.infer_experiment(weights, str(file), trained_norm=trained_norm).model
    return model, list(_differences(_comparable(theirs), _comparable(model)))


def _check_file(file: str | Path, target: str) -> None:
    """Checks that weights can be written to a new file."""
    require_local(file, "the output")
    path = Path(file).absolute()
    if path.exists() or path.is_symlink():
        raise InputError(f"{file} exists already: name a new file, or move that one away")
    require_suffix(Path(file))
    if target == "safetensors" and Path(file).suffix != own_file.SUFFIX:
        raise InputError(f"{file}: a file of the target safetensors must end in {own_file.SUFFIX}")
    require_writable(path.parent)


def _unsupported_by_torchvision(model: ModelConfig) -> list[str]:
    backbone, box, mask, has_masks = model.backbone, model.box, model.mask, "masks" in model.tasks
    fully_connected = 1 if box.convolutions else 2
    unsupported = {
        "backbone.features is not fpn": backbone.features != "fpn",
        "a norm is group": "group" in (backbone.norm, backbone.pyramid_norm, box.norm, mask.norm),
        "backbone.non_local": backbone.non_local,
        "backbone.stride_in_1x1": backbone.stride_in_1x1 and backbone.name not in BASIC,
        "box.fully_connected is not 2, or 1 after convolutions": box.fully_connected != fully_connected,
        "mask.head is mlp": has_masks and mask.head == "mlp",
        "mask.class_agnostic": has_masks and mask.class_agnostic,
        "mask.loss is softmax": has_masks and mask.loss == "softmax",
        "model.tasks is empty": not model.tasks,
        "rpn.proposals_from is given": bool(model.rpn.proposals_from),
    }
    return [name for name, applies in unsupported.items() if applies]


def _comparable(model: ModelConfig) -> dict[str, Any]:
    """Returns the model's fields without those of absent tasks, and with pooling resolved for each branch."""
    fields = to_dict(Experiment(model=model))["model"]
    del fields["pool"]
    for branch in ("box", "mask", "keypoint"):
        fields[branch]["pool"] = model.pool_of(branch)._replace(half_pixel=None)._asdict()
    for task, branch in (("masks", "mask"), ("keypoints", "keypoint")):
        if task not in model.tasks:
            del fields[branch]
            conventions = fields["conventions"]
            fields["conventions"] = {name: value for name, value in conventions.items() if branch not in name}
    return fields


def _differences(theirs: dict[str, Any], ours: dict[str, Any], path: str = "model") -> Iterator[str]:
    for name, value in theirs.items():
        if isinstance(value, dict):
            yield from _differences(value, ours[name], f"{path}.{name}")
        elif value != ours[name]:
            yield f"{path}.{name}: {ours[name]} here, {value} there"
