"""Conversion of experiments to JSON and back."""

import dataclasses
import json
import re
from collections.abc import Mapping
from functools import cache
from os import PathLike
from typing import Any, TypeVar

from mrcnn_jax.config.experiment import Experiment
from mrcnn_jax.config.validation import check_type, require
from mrcnn_jax.errors import InputError
from mrcnn_jax.paths import read_bytes

T = TypeVar("T")


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Returns the experiment as plain containers, as JSON has them."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def from_dict(values: Any, origin: str = "experiment") -> Experiment:
    """Returns the experiment that ``to_dict`` converted; absent fields take their defaults.

    Args:
        values: nested dictionaries.
        origin: what the message says the values came from, such as a file.

    Raises:
        InputError: unknown fields, or values that are not allowed. The message names all of them.
    """
    require(isinstance(values, dict),
            f"{origin} does not describe an experiment: it must be an object with named fields, not "
            f"{values!r:.50}")
    return structure(values, Experiment, origin)


def structure(values: Any, kind: type[T], origin: str) -> T:
    """Returns plain containers as a dataclass or named tuple, of which an experiment may be a part.

    Raises:
        InputError: a dataclass has unknown fields, or values are missing or not allowed.
    """
    try:
        return _structure(values, kind)
    except _Flaws as flaws:
        reasons = "; ".join(flaws.args[0])
        raise InputError(f"{origin} does not describe an experiment of this version: {reasons}") from flaws


class _Flaws(Exception):
    """All flaws of plain containers, each with its place: "must be float, not 'a' @ experiment.model.x"."""


def _structure(values: Any, kind: type[T]) -> T:
    import cattrs  # here, so that a bare accelerator machine can do without

    def reason(error: BaseException, kind: type | None) -> str:
        if isinstance(error, TypeError | KeyError):
            return cattrs.v.format_exception(error, kind)
        return str(error)

    try:
        return _converter().structure(values, kind)
    except cattrs.BaseValidationError as error:
        raise _Flaws(cattrs.transform_error(error, kind.__name__.lower(), reason)) from error


def with_changes(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """Returns the experiment with several fields changed at once.

    Args:
        experiment: the experiment to start from, which is left as it is.
        changes: new values by dotted name, as on the command line: ``{"model.mask.loss": "softmax"}``.

    Raises:
        InputError: a field does not exist, or the values contradict each other.
    """
    values = to_dict(experiment)
    for field, value in changes.items():
        *parents, name = field.split(".")
        place: Any = values
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        require(isinstance(place, dict) and name in place, f"an experiment has no field {field}")
        place[name] = value
    try:
        return _structure(json.loads(json.dumps(values, default=_plain_number)), Experiment)
    except _Flaws as flaws:
        raise InputError("; ".join(map(_name_field, flaws.args[0]))) from flaws


def _plain_number(value: Any) -> Any:
    """Returns a number of NumPy or JAX as Python's; of anything else a text, which no field takes."""
    return value.item() if hasattr(value, "item") and getattr(value, "size", 0) == 1 else repr(value)


def _name_field(flaw: str) -> str:
    """Returns a flaw as a sentence that begins with the full name of the field."""
    text, _, place = flaw.rpartition(" @ ")
    place = place.removeprefix("experiment").lstrip(".")
    parents, dot, owner = place.rpartition(".")
    if text.startswith(f"{owner}."):
        return f"{parents}{dot}{text}"
    return text if re.match(r"[a-z_]+\.\w", text) or not place else f"{place} {text}"


def read_experiment(path: str | PathLike) -> Experiment:
    """Reads an experiment.json, on disk or in a bucket.

    Raises:
        InputError: the file cannot be read, or is not an experiment.
    """
    try:
        values = json.loads(read_bytes(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    return from_dict(values, str(path))


@cache
def _converter():
    import cattrs
    from cattrs.cols import is_namedtuple, namedtuple_dict_structure_factory

    def exactly(value: Any, kind: type) -> Any:
        # cattrs alone would convert 2.7 to the integer 2, and "false" to True
        check_type("", value, kind)
        return kind(value)

    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook_factory(
        is_namedtuple, lambda kind: namedtuple_dict_structure_factory(kind, converter, True)
    )
    for kind in (int, float, bool, str):
        converter.register_structure_hook(kind, exactly)
    return converter
