"""Parameters of a model by part, and its configuration beside its preset's."""

from collections.abc import Mapping
from functools import reduce
from math import prod
from typing import Any

from mrcnn_jax import presets
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.inspection.report import Section
from mrcnn_jax.models.resnet import frozen_modules
from mrcnn_jax.run_description import differing_fields
from mrcnn_jax.training.optimizer import is_frozen

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of arrays by path, "params.backbone.stem.kernel"."""


def count_parameters(shapes: Shapes, experiment: Experiment) -> dict[str, dict[str, int]]:
    """Counts parameters, and those that are trained, of each part of a model."""
    parts: dict[str, dict[str, int]] = {}
    frozen_stages = frozen_modules(experiment.model.backbone)
    for name, shape in shapes.items():
        kind, *path = name.split(".")
        if kind == "params":
            counts = parts.setdefault(path[0], {"arrays": 0, "parameters": 0, "trained": 0})
            counts["arrays"] += 1
            counts["parameters"] += prod(shape)
            counts["trained"] += 0 if is_frozen(path, frozen_stages) else prod(shape)
    return parts


def parameter_section(parts: Mapping[str, Mapping[str, int]]) -> Section:
    """Returns the table of ``count_parameters``, with the sum."""
    rows: list[tuple[Any, ...]] = [(part, *counts.values()) for part, counts in parts.items()]
    rows.append(("all", *(sum(counts[key] for counts in parts.values())
                          for key in ("arrays", "parameters", "trained"))))  # fmt: skip
    note = "Statistics and frozen scales of batch norm are no parameters."
    return Section("Parameters", ("part", "arrays", "parameters", "trained"), rows, note)


def compare_with_preset(experiment: Experiment) -> tuple[str, dict[str, list[Any]]]:
    """Compares an experiment with the preset of its name, or else with the default experiment.

    Returns:
        Name of what it is compared with, and by dotted name of each field that differs the two values.
    """
    known = experiment.name in presets.PRESETS
    base = presets.get(experiment.name) if known else Experiment()
    values = to_dict(base), to_dict(experiment)
    names = [name for name in differing_fields(*values) if name != "name"]

    def value(nested: Any, name: str) -> Any:
        return reduce(lambda part, key: part[key], name.split("."), nested)

    return base.name, {name: [value(nested, name) for nested in values] for name in names}


def configuration_section(base: str, changed: Mapping[str, list[Any]]) -> Section:
    """Returns the table of ``compare_with_preset``."""
    rows = [(name, *map(_words, values)) for name, values in changed.items()]
    note = "" if rows else f"All fields are those of {base}."
    heading = f"Configuration, where it differs from {base}"
    return Section(heading, ("field", base, "here"), rows, note, left=(0, 1, 2))


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
