"""Experiments by name. Each one's docstring says what it is for and the command that runs it; the first line is its entry in the list."""

import inspect
from collections.abc import Callable
from dataclasses import replace

from mrcnn_jax.config import Experiment
from mrcnn_jax.errors import InputError

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {}


def named(build: Callable[[], Experiment]) -> Callable[[], Experiment]:
    """Enters an experiment under its function's name."""
    EXPERIMENTS[build.__name__] = build
    return build


def get(name: str) -> Experiment:
    """The experiment of that name; InputError lists the names there are."""
    if name not in EXPERIMENTS:
        raise InputError(f"there is no experiment {name!r}; choose from {', '.join(EXPERIMENTS)}")
    return replace(EXPERIMENTS[name](), name=name)


def describe(name: str) -> str:
    """The first line of an experiment's docstring."""
    return inspect.getdoc(EXPERIMENTS[name]).splitlines()[0]
