"""Report on a training run, imported weights, or a model to share."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from mrcnn_jax.checkpoint import BEST, DAMAGED, CheckpointStore, DamagedCheckpointError
from mrcnn_jax.config import Experiment, TrainConfig, read_experiment
from mrcnn_jax.data.catalog import DATA_FOLDER, EMBEDDED
from mrcnn_jax.data.contents import Contents
from mrcnn_jax.data.dataset import is_prepared, read_metadata
from mrcnn_jax.errors import InputError
from mrcnn_jax.inspection.model import (
    Shapes,
    compare_with_preset,
    configuration_section,
    count_parameters,
    parameter_section,
)
from mrcnn_jax.inspection.report import InspectionReport, Section, Shown
from mrcnn_jax.paths import read_bytes
from mrcnn_jax.run_description import Description, edited_experiment, newest_description
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.training.best import BestEvaluation, evaluation_scores
from mrcnn_jax.training.data_identity import changed_contents, recorded_contents
from mrcnn_jax.training.history import History, evaluations, losses, parse_history, read_metrics
from mrcnn_jax.visualize.analysis_plots import encode_png
from mrcnn_jax.visualize.plots import curves
from mrcnn_jax.weights.folder import EXPORTED, is_model_folder, read_description, read_shapes

_EVALUATIONS = 20


def is_run(directory: str | os.PathLike) -> bool:
    """Returns whether a directory holds a run, imported weights or a model to share."""
    place = epath.Path(directory)
    return any((place / name).exists() for name in ("checkpoints", "experiment.json", "history.jsonl"))


def report_run(directory: str | os.PathLike, *, pictures: bool = False) -> InspectionReport:
    """Makes the report of a run or of weights, of which no array is read.

    Args:
        directory: on disk or in a bucket.
        pictures: draw the curves.

    Raises:
        InputError: nothing describes the model.
    """
    place = epath.Path(directory)
    exported = (place / EXPORTED).exists()
    if exported or is_model_folder(place):
        experiment, info = read_description(place)
        shapes = read_shapes(place) if is_model_folder(place) else {}  # in a graph of ONNX
        kind = "an exported detector" if exported else "a model to share"
        return _report(place, experiment, info, shapes, [], {}, kind)
    step, described = newest_description(place) or (None, _undescribed(place))
    checkpoints, shapes = _checkpoints(place, step)
    if step == 0:
        data = {"versions": described.versions}
        return _report(place, described.experiment, described.dataset, shapes, [], data, "imported weights")
    history, monitor = _read_history(place), described.experiment.train.monitor
    findings: list[str] = []
    metrics = read_metrics(place / "metrics.json", findings.append)
    data = {"step": step, "checkpoints": checkpoints, "metrics": metrics, "versions": described.versions,
            "history": _summarize(history, monitor)}  # fmt: skip
    findings = [*_run_findings(place, step, described, data, history), *findings]
    kind = f"a run at step {step or 0:,} of {described.experiment.train.steps:,}"
    report = _report(place, described.experiment, described.dataset, shapes, findings, data, kind)
    lines = history.lines if history else []
    report.sections[:0] = [_metrics_section(metrics), *_evaluation_sections(lines, monitor)]
    report.sections.append(_contents_section(described.contents))
    if pictures and lines:
        figure = encode_png(curves(losses(lines), evaluations(lines)))
        report.sections.insert(0, Section("Curves", pictures=[Shown(figure, "png", "Losses, learning rate, "
                                                                    "metrics")], wide=True))  # fmt: skip
    return report


def _undescribed(place: epath.Path) -> Description:
    """Returns what is known of a run without a checkpoint that can be read."""
    if not (place / "experiment.json").exists():
        raise InputError(f"{place} holds neither a checkpoint that can be read nor experiment.json")
    return Description(read_experiment(place / "experiment.json"), DatasetInfo("", (), ()), 0, {})


def _report(
    place: epath.Path, experiment: Experiment, info: DatasetInfo, shapes: Shapes, findings: list[str],
    data: dict[str, Any], kind: str,
) -> InspectionReport:  # fmt: skip
    """Returns what the reports of all kinds of models have."""
    parts = count_parameters(shapes, experiment)
    base, changed = compare_with_preset(experiment)
    model, tasks = experiment.model, ", ".join(experiment.model.tasks) or "proposals"
    total = sum(counts["parameters"] for counts in parts.values()) / 1e6
    known = f", {info.num_classes} classes of {info.name}, {total:.1f} M parameters" if shapes else ""
    subtitle = (f"{place}: {kind}; {experiment.name}, {model.backbone.name} with {model.backbone.features}, "
                f"{tasks}{known}.")  # fmt: skip
    classes = [(str(id_), name) for id_, name in zip(info.category_ids, info.category_names, strict=True)]
    versions = data.get("versions") or {}
    stored = [(one["in"], f"{one['step']:,}", f"{one['bytes'] / 1e6:,.1f}")
              for one in data.get("checkpoints", ())]  # fmt: skip
    sections = [
        *[parameter_section(parts)] * bool(parts), configuration_section(base, changed),
        Section("Checkpoints", ("in", "step", "MB"), stored),
        Section("Versions that saved it", ("", "version"), list(versions.items()), left=(0, 1)),
        Section("Classes", ("id", "class"), classes, left=(1,)),
    ]  # fmt: skip
    found = {
        "path": str(place), "kind": kind, "experiment": experiment.name, "parameters": parts,
        "compared_with": base, "changed": changed, "classes": list(info.category_names),
    }  # fmt: skip
    title = f"Model {place.name or place}"
    return InspectionReport(title, subtitle, findings, sections, {"model": found | data})


def _checkpoints(place: epath.Path, step: int | None) -> tuple[list[dict[str, Any]], Shapes]:
    """Returns place, step and size of the checkpoints, and the shapes of the one of a step."""
    found = []
    for folder in ("checkpoints", BEST):
        names = [path.name for path in (place / folder).iterdir()] if (place / folder).is_dir() else []
        for number in sorted(int(name) for name in names if name.isdecimal()):
            found.append({"in": folder, "step": number, "bytes": _size(place / folder / str(number))})
    if step is None:
        return found, {}
    with CheckpointStore(place / "checkpoints", read_only=True) as store:
        try:
            return found, store.shapes(step)
        except DamagedCheckpointError as error:
            raise InputError(str(error)) from error


def _size(path: epath.Path) -> int:
    """Returns the bytes of the files below a path."""
    return sum(map(_size, path.iterdir())) if path.is_dir() else path.stat().length


def _read_history(place: epath.Path) -> History | None:
    try:
        return parse_history(read_bytes(place / "history.jsonl"))
    except OSError:
        return None


def _summarize(history: History | None, monitor: str) -> dict[str, Any] | None:
    """Returns the last losses, the last evaluation and the best one."""
    if history is None:
        return None
    trained, evaluated = losses(history.lines), evaluations(history.lines)
    return {
        "lines": len(history.lines),
        "damaged": len(history.damaged),
        "last": trained[-1] if trained else None,
        "last_evaluation": evaluated[-1] if evaluated else None,
        "best_evaluation": _best(evaluated, monitor),
    }


def _best(evaluated: Sequence[dict[str, Any]], monitor: str) -> dict[str, Any] | None:
    """Returns the line of the best evaluation, the first of equals; None without a defined one."""
    scores = [score for _, score in evaluation_scores(evaluated, monitor)]
    worst = 0 if monitor == "ap" else -np.finfo(np.float64).max
    return evaluated[int(np.argmax(scores))] if scores and max(scores) >= worst else None


def _run_findings(
    place: epath.Path, step: int | None, described: Description, data: dict[str, Any], history: History | None
) -> Iterator[str]:
    steps = described.experiment.train.steps
    if step is None:
        yield "there is no checkpoint that can be read"
    elif step < steps and not _ended_early(described.experiment.train, history):
        yield f"the run is not finished: {step:,} of {steps:,} steps are saved; its command continues it"
    elif data["metrics"] is None:
        yield "all steps are done, but metrics.json is missing: the same command evaluates"
    if history is None:
        yield "history.jsonl is missing, so that there are no curves"
    elif history.damaged:
        yield f"{len(history.damaged):,} of {history.count:,} lines of history.jsonl are damaged"
    if (place / DAMAGED).is_dir():
        yield f"damaged checkpoints were moved to {DAMAGED}"
    if edited := edited_experiment(place):
        yield edited
    if step and described.versions is None:
        yield "the checkpoint was saved before versions of libraries were recorded"
    yield from _data_findings(described)


def _ended_early(config: TrainConfig, history: History | None) -> bool:
    return BestEvaluation(config, history.lines if history else []).is_exhausted


def _data_findings(described: Description) -> Iterator[str]:
    """Says what is different about the data set now, if it is here at all."""
    name = described.experiment.data.dataset
    directory = DATA_FOLDER / name if name in EMBEDDED else Path(name).expanduser()
    if not is_prepared(directory):
        yield f"the data set {name} is not here"
        return
    now = recorded_contents(read_metadata(directory)[1])
    if changes := changed_contents(described.contents or {}, now):
        yield f"the data set {name} has changed since: {'; '.join(changes)}"


def _metrics_section(metrics: dict[str, dict[str, float | None]] | None) -> Section:
    kinds = metrics or {}
    names = list(dict.fromkeys(name for values in kinds.values() for name in values))
    rows = [(kind, *(_number(values.get(name)) for name in names)) for kind, values in kinds.items()]
    return Section("Final metrics", ("", *names), rows)


def _evaluation_sections(lines: Sequence[dict[str, Any]], monitor: str) -> Iterator[Section]:
    evaluated = evaluations(lines)
    names = list(dict.fromkeys(name for line in evaluated for name in line if name != "step"))
    best = _best(evaluated, monitor)
    rows = [
        (f"{line['step']:,}", *(_number(line.get(name), name) for name in names), "best" * (line is best))
        for line in evaluated[-_EVALUATIONS:]
    ]
    if rows:
        yield Section("Evaluations during training", ("step", *names, ""), rows)
    if trained := losses(lines):
        last = [(name, f"{value:g}" if isinstance(value, int | float) else "–")
                for name, value in trained[-1].items()]  # fmt: skip
        yield Section("Last log entry", ("", "value"), last)


def _number(value: float | None, name: str = "") -> str:
    digits = 3 if name.startswith("validation_") else 1  # losses are small, AP is in percent
    return "–" if value is None else f"{value:.{digits}f}"


def _contents_section(contents: dict[str, Contents] | None) -> Section:
    rows = [(split, *one) for split, one in (contents or {}).items()]
    header = "split", "images", "objects", "digest of images", "digest of objects"
    return Section("Data that it was trained and evaluated on", header, rows, left=(0, 3, 4))
