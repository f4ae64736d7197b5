"""Registry of named experiments. A preset's docstring states its purpose and the command that runs it; its first line is the listing."""

import inspect
from collections.abc import Callable
from dataclasses import replace

from mrcnn_jax.config import Experiment
from mrcnn_jax.errors import InputError

PRESETS: dict[str, Callable[[], Experiment]] = {}


def preset(build: Callable[[], Experiment]) -> Callable[[], Experiment]:
    """Registers a function that builds an experiment under its name."""
    PRESETS[build.__name__] = build
    return build


def get(name: str) -> Experiment:
    """Returns the experiment of that name. Raises InputError, listing the names, where there is none."""
    if name not in PRESETS:
        raise InputError(f"there is no experiment {name!r}; choose from {', '.join(PRESETS)}")
    return replace(PRESETS[name](), name=name)


def describe(name: str) -> str:
    """Returns the first line of a preset's docstring."""
    return inspect.getdoc(PRESETS[name]).splitlines()[0]
