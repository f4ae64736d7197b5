"""Models on the Hugging Face Hub, hf://owner/name: loads and pushes them, with a model card."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
from etils import epath

from mrcnn_jax.atomic_io import new_folder, require_new_folder, write_text
from mrcnn_jax.errors import InputError, first_line, printable
from mrcnn_jax.evaluation.coco_values import is_finite
from mrcnn_jax.inference.detector import Detector, load, require_weights
from mrcnn_jax.messages import listed
from mrcnn_jax.weights import folder
from mrcnn_jax.weights.locate import HUB, is_local

_NAME = rf"{HUB}(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?"
_PIPELINES = {"keypoints": "keypoint-detection", "masks": "image-segmentation", "boxes": "object-detection"}
"""The Hub's name of what a model with a task does; the first task counts."""


def parse_name(model: str) -> tuple[str, str | None]:
    """Returns the repository, "owner/name", and the revision of hf://owner/name[@revision]."""
    match = re.fullmatch(_NAME, model)
    if not match:
        raise InputError(f"a model on the Hub is named hf://owner/name[@revision], not {model!r}")
    return match["repository"], match["revision"]


def load_snapshot(model: str) -> Path:
    """Returns the folder of a model on the Hub, which is downloaded to the Hub's own cache once.

    Raises:
        InputError: the package or the model is missing, or it is another library's.
    """
    repository, revision = parse_name(model)
    with _explaining(model) as library:
        path = library.snapshot_download(
            repository, revision=revision, allow_patterns=[folder.TENSORS, folder.EXPERIMENT, folder.DATASET]
        )
    missing = [name for name in (folder.TENSORS, folder.EXPERIMENT, folder.DATASET)
               if not (Path(path) / name).exists()]  # fmt: skip
    if missing:
        raise InputError(f"{model} is no model that `mrcnn push` has written: it has no {missing[0]}")
    return Path(path)


@contextmanager
def _explaining(model: str) -> Iterator[Any]:
    """Yields the package of the Hub, and turns what it raises into an InputError."""
    try:
        library = import_module("huggingface_hub")
    except ImportError as error:
        package = 'pip install "mrcnn_jax[hub]"'
        raise InputError(f"{model} is on the Hugging Face Hub, which needs a package: {package}") from error
    try:
        yield library
    except (OSError, ValueError) as error:  # among them its own, and those of the network
        reason = first_line(error)
        raise InputError(f"{model}: {printable(reason)}") from error


def write_shared_model(directory: str, out: Path, licence: str = "", model: str = "") -> None:
    """Writes a detector and its model card to a folder, which ``load`` accepts.

    Paths of this machine are left out.

    Args:
        directory: of the run, or another model that ``load`` accepts.
        out: new or empty folder.
        licence: identifier for the card, such as "apache-2.0"; without one the card has none.
        model: name on the Hub, for the card's example; by default the folder's name.

    Raises:
        InputError: the licence is no identifier, the directory holds no detector or damaged metrics, or the
            folder is not empty or cannot be written.
    """
    _check_shared(out, licence)
    metrics = _read_metrics(directory)
    _write_shared(load(require_weights(directory)), metrics, out, licence, model or out.absolute().name)


def _check_shared(out: Path, licence: str) -> None:
    """Checks the arguments of ``write_shared_model`` before long work."""
    if not re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)?", licence):
        raise InputError(
            "the licence must be an identifier of letters, digits, dots, hyphens and underscores, such as "
            f"apache-2.0, not {licence!r}"
        )
    require_new_folder(out)


def _write_shared(
    detector: Detector, metrics: dict[str, dict[str, Any]], out: Path, licence: str, model: str
) -> None:
    """Writes a detector and its model card."""
    experiment = folder.without_paths(detector.experiment)
    variables = jax.device_get(detector.variables)
    with new_folder(out) as partial:
        folder.write_model_folder(partial, folder.Weights(experiment, detector.info, variables))
        write_text(partial / "README.md", _model_card(detector, metrics, licence, model))


def push(directory: str, model: str, *, out: Path, licence: str = "", private: bool = False) -> str:
    """Uploads a detector with its model card; returns its address.

    Args:
        directory: of the run, or another model that ``load`` accepts.
        model: hf://owner/name, which is made if it does not exist.
        out: folder of what is uploaded.
        licence: as for ``write_shared_model``.
        private: make it a private one.

    Raises:
        InputError: the package is missing, the Hub refuses, or what ``write_shared_model`` raises.
    """
    repository, revision = parse_name(model)
    if revision:
        raise InputError(f"a model is pushed to its newest revision: leave @{revision} out")
    with _explaining(model) as library:  # before long work
        hub = library.HfApi(library_name="mrcnn_jax")
    _check_shared(out, licence)
    metrics = _read_metrics(directory)
    detector = load(require_weights(directory))
    with _explaining(model):  # before anything is written: without a login it fails
        address = str(hub.create_repo(repository, private=private, exist_ok=True))
    _write_shared(detector, metrics, out, licence, model)
    with _explaining(model):
        hub.upload_folder(repo_id=repository, folder_path=out, commit_message="Model of mrcnn_jax")
    return address


def _read_metrics(directory: str) -> dict[str, dict[str, Any]]:
    """Returns the metrics of a run, or of its later evaluation; nothing without any.

    Raises:
        InputError: the file of the metrics is damaged.
    """
    if is_local(directory):
        for file in (epath.Path(directory) / name for name in ("metrics.json", "evaluation/metrics.json")):
            if file.exists():
                metrics = _metrics_by_kind(file)
                return {kind: each for kind, each in metrics.items() if is_finite(each.get("AP"))}
    return {}


def _metrics_by_kind(file: epath.Path) -> dict[str, dict[str, Any]]:
    try:
        kinds = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        reason = first_line(error)
        raise InputError(f"{file} cannot be read ({reason}): evaluate again, or delete it") from error
    if not isinstance(kinds, dict):
        raise InputError(f"{file} must hold a JSON object of metrics: evaluate again, or delete it")
    return {kind: each for kind, each in kinds.items() if isinstance(each, dict)}


def _model_card(detector: Detector, metrics: dict[str, dict[str, Any]], licence: str, model: str) -> str:
    """Returns a model card: the Hub's fields, what the model finds, metrics and an example."""
    experiment, names = detector.experiment, detector.class_names
    pipeline = next((name for task, name in _PIPELINES.items() if task in experiment.model.tasks), "other")
    fields = [f"license: {licence}"] if licence else []
    fields += ["library_name: mrcnn_jax", f"pipeline_tag: {pipeline}", "tags:", "- mask-rcnn", "- jax"]
    shown = listed(names, 20, counted=True)
    size = experiment.data.short_edge_test, experiment.data.long_edge
    lines = [
        "---", *fields, "---", "", f"# {experiment.name}", "",
        f"Finds {', '.join(experiment.model.tasks)} of {len(names)} classes: {shown}.", "",
        f"Backbone {experiment.model.backbone.name} ({experiment.model.backbone.features}); images of "
        f"{size[0]} x {size[1]} pixels; trained on {detector.info.name}.", "",
    ]  # fmt: skip
    if metrics:
        lines += ["| | AP | AP50 | AP75 |", "|---|---|---|---|"]
        for kind, values in metrics.items():
            cells = (f"{values[name]:.1f}" if is_finite(values.get(name)) else "-"
                     for name in ("AP", "AP50", "AP75"))  # fmt: skip
            lines.append(f"| {kind} | {' | '.join(cells)} |")
        lines += ["", "COCO metrics of its evaluation, in percent.", ""]
    code = [
        "import mrcnn_jax", "", f"detector = mrcnn_jax.load({json.dumps(model, ensure_ascii=False)})",
        "detections = detector(image)  # uint8 RGB [H, W, 3]",
    ]  # fmt: skip
    return "\n".join([*lines, "```python", *code, "```", ""])
