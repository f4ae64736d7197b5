"""Cases of the model's benchmark: the models, also in torchvision, and their interleaved measurements."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from benchmarks import _torchvision
from benchmarks._program import rounded
from benchmarks.model._programs import Inference, Timed, Training
from benchmarks.model._synthetic import make_objects, make_photos, standalone
from mrcnn_jax import presets
from mrcnn_jax.config import Experiment
from mrcnn_jax.errors import first_line
from mrcnn_jax.inference.detector import load
from mrcnn_jax.models.systems import init_variables, make_model
from mrcnn_jax.weights.import_export import import_weights

BACKBONES = {
    "mask_rcnn_r50_fpn": "resnet50", "mask_rcnn_r101_fpn": "resnet101",
    "mask_rcnn_x101_fpn": "resnext101_64x4d",
}  # fmt: skip
"""Presets that torchvision has the model of, and its name of the backbone."""
CLASSES = 80
STAGE_ROUNDS = 3
"""Rounds of the stages at most."""
Row = dict[str, Any]
"""Results of a case: its fields, figures of the compiler, and seconds of every round."""


@dataclass(frozen=True)
class Case:
    """A model at work on batches of a size."""

    batch: int
    dtype: str
    model: str
    work: str  # "inference" or "training"


class Models:
    """Makes experiments with their variables, the same in torchvision where it is measured.

    Args:
        images: number of photos.
        size: height and width of the photos.
        torchvision: its process, or None.
    """

    def __init__(self, images: int, size: tuple[int, int], torchvision: _torchvision.Torchvision | None):
        self.photos, self.torchvision = make_photos(images, *size), torchvision
        self._size, self._made = size, {}

    def has_torchvision(self, name: str) -> bool:
        """Returns whether torchvision is measured with a model."""
        return self.torchvision is not None and name in BACKBONES

    def get(self, name: str) -> tuple[Experiment, Any]:
        """Returns the experiment of a preset and its variables, of which one model's stay in memory."""
        if name not in self._made:
            make = self._import if self.has_torchvision(name) else self._initialise
            self._made = {name: make(name)}
        return self._made[name]

    def _import(self, name: str) -> tuple[Experiment, Any]:
        height, width = self._size
        with tempfile.TemporaryDirectory() as folder:
            file, out = Path(folder, "model.pth"), Path(folder, "ours")
            made = {"backbone": BACKBONES[name], "size": self._size, "out": str(file)}
            threshold = self.torchvision("make_model", {"images": self.photos}, **made)
            import_weights(file, out)
            settings = {"data.short_edge_test": height, "data.long_edge": width}
            detector = load(out, settings | {"model.box.score_threshold": threshold})
        return detector.experiment, detector.variables

    def _initialise(self, name: str) -> tuple[Experiment, Any]:
        (height, width), experiment = self._size, standalone(presets.get(name), CLASSES)
        data = replace(experiment.data, short_edge=(height,), short_edge_test=height, long_edge=width)
        model = replace(experiment.model, box=replace(experiment.model.box, score_threshold=0.0))
        experiment = replace(experiment, data=data, model=model)
        return experiment, init_variables(make_model(model), jax.random.key(0))


class MatrixProduct:
    """A large matrix product, whose speed counts as the peak."""

    def __init__(self, dtype: str):
        side = 2048 if jax.default_backend() == "cpu" else 8192
        self.flops, matrix = 2 * side**3, jax.random.normal(jax.random.key(0), (side, side), dtype)
        self._run = Timed(jax.jit(lambda matrix: matrix @ matrix), matrix)

    def __call__(self) -> float:
        """Returns the seconds of the faster of two runs."""
        return min(self._run(), self._run())


def variants(dtype: str) -> list[str]:
    """Returns the variants of torchvision that are measured, as its process names them."""
    kinds = ["eager", "channels-last"]
    if dtype == "float32":
        return kinds
    compiled = ["channels-last compiled"] if jax.default_backend() == "gpu" else []  # takes a minute or more
    return [f"{kind} autocast" for kind in (*kinds, *compiled)]


def new_row(case: Case) -> Row:
    """Returns the row of a case without results."""
    return vars(case) | {"seconds": {}, "stages": {}, "torchvision": {}}


def is_complete(row: Row, rounds: int, stages: bool) -> bool:
    """Returns whether a row has all rounds."""
    whole, parts = (len(row[each].get("ours", [])) for each in ("seconds", "stages"))
    return "unavailable" in row or whole >= rounds and (not stages or parts >= min(STAGE_ROUNDS, rounds))


def measure(
    case: Case, row: Row, models: Models, objects: int, rounds: int, stages: bool
) -> Iterator[bool]:
    """Adds to a row, yielding True after each round."""
    photos = models.photos[: case.batch]
    arrays = {"images": photos, "boxes": make_objects(case.batch, objects, *photos.shape[1:3])}
    try:
        ours, peak = _compile(case, models, arrays), MatrixProduct(case.dtype)
        ours(), peak()  # warms up
    except RuntimeError as error:  # such as too little memory
        row["unavailable"] = first_line(error)[:200]
        return
    if "flops" not in row:
        row |= ours.facts() | {"objects": ours.objects, "peak_flops": peak.flops}
    yield True

    runs: dict[str, Callable[[], float]] = {"ours": ours, "matrix product": peak}
    torchvision = models.torchvision if models.has_torchvision(case.model) else None
    names = variants(case.dtype) if torchvision else []
    if len(row["seconds"].get("ours", [])) >= rounds:  # only stages are missing
        names = names[:1]
    for variant in names:
        named = {"work": case.work, "variant": variant}
        try:
            row["torchvision"][variant] = torchvision("prepare", arrays, **named)
            runs[variant] = partial(torchvision, "run", **named)
        except _torchvision.TorchvisionError as error:
            row["torchvision"][variant] = {"unavailable": str(error)}
    yield from _interleave(row["seconds"], runs, rounds)
    if stages:
        parts = {"ours": ours.make_stages()}
        parts["ours"]()  # compiles
        if first := next((name for name in row["torchvision"] if name in runs), None):
            parts[first] = partial(torchvision, "stages", work=case.work, variant=first)
        yield from _interleave(row["stages"], parts, min(STAGE_ROUNDS, rounds))
    if torchvision:
        torchvision("release")


def _compile(case: Case, models: Models, arrays: Mapping[str, Any]) -> Inference | Training:
    experiment, variables = models.get(case.model)
    experiment = replace(experiment, train=replace(experiment.train, dtype=case.dtype))
    if case.work == "inference":
        return Inference(experiment, variables, arrays["images"])
    return Training(experiment, variables, arrays["images"], arrays["boxes"])


def _interleave(taken: dict[str, list[Any]], runs: Mapping[str, Callable[[], Any]], rounds: int):
    """Calls all runs in turn, each round in another order, until there are ``rounds`` results of each."""
    names = list(runs)
    while (turn := len(taken.get(names[0], []))) < rounds:
        start = turn % len(names)
        found = {name: runs[name]() for name in (*names[start:], *names[:start])}
        for name in names:
            taken.setdefault(name, []).append(_rounded(found[name]))
        yield True


def _rounded(result: float | dict[str, float]) -> float | dict[str, float]:
    if isinstance(result, dict):
        return {name: rounded(value) for name, value in result.items()}
    return rounded(result)
