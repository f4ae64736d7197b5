"""The help of `mrcnn train EXPERIMENT`: the options that people need first."""

import ast
import dataclasses
import inspect
import textwrap
from functools import reduce
from typing import Any

from mrcnn_jax.config import Experiment

FIRST = (
    "data.dataset", "train.steps", "train.images_per_device", "train.learning_rate", "train.init_from",
    "data.short_edge", "data.short_edge_test", "data.long_edge", "data.max_objects", "data.threads",
    "model.tasks", "train.dtype", "train.evaluate_every", "train.checkpoint_minutes", "train.seed",
)  # fmt: skip


def field_descriptions(config: type) -> dict[str, str]:
    """Returns the description of each field of a dataclass: the string that follows it in the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0].body  # ty: ignore[missing-attribute]
    described = {}
    for statement, following in zip(body, body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            described[statement.target.id] = " ".join(ast.literal_eval(following.value).split())
    return described


def first_options(name: str, experiment: Experiment, directory: str) -> str:
    """Returns the help, with the values of an experiment as defaults.

    Args:
        name: of the experiment, or the directory given in its place.
        experiment: the defaults.
        directory: default of the run directory.
    """
    rows = [("directory", "Directory of the run (also gs://...). A run that is there is resumed.", directory)]
    for option in FIRST:
        *parents, field = option.split(".")
        config = reduce(getattr, parents, experiment)
        rows.append((option, field_descriptions(type(config))[field], getattr(config, field)))
    lines = [f"usage: mrcnn train {name} [OPTIONS]", "", "What is needed first, with its defaults:"]
    for option, text, value in rows:
        words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        lines.append(f"  --{option.replace('_', '-')} {words}".rstrip())
        lines += textwrap.wrap(text, 88, initial_indent="      ", subsequent_indent="      ")
    everything = 1 + _count(experiment)
    return "\n".join([*lines, "", f"`mrcnn train {name} --help-all` shows all {everything} options."])


def _count(config: Any) -> int:
    values = (getattr(config, field.name) for field in dataclasses.fields(config))
    return sum(_count(value) if dataclasses.is_dataclass(value) else 1 for value in values)
