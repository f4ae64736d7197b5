"""Experiments to JSON and back."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cattrs

from mrcnn_jax.config.experiment import Experiment
from mrcnn_jax.config.validation import require
from mrcnn_jax.errors import InputError


def _exactly(value: Any, kind: type) -> Any:
    """The value, if JSON gave it that type; left alone, cattrs would read 2.7 as 2 and "false" as True."""
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    require(fits, f"must be {kind.__name__}, not {value!r}")
    return kind(value)


_converter = cattrs.Converter(forbid_extra_keys=True)
for _kind in (int, float, bool, str):
    _converter.register_structure_hook(_kind, _exactly)


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain JSON-ready containers."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def from_dict(values: dict[str, Any], origin: str = "experiment") -> Experiment:
    """The experiment that to_dict wrote. Raises InputError, naming the origin and the fields, where it does not fit."""
    def reason(error: BaseException, kind: type | None) -> str:
        return cattrs.v.format_exception(error, kind) if isinstance(error, TypeError) else str(error)

    require(isinstance(values, dict), f"{origin} does not describe an experiment: it must be an object with named fields, not {values!r:.50}")
    try:
        return _converter.structure(values, Experiment)
    except cattrs.BaseValidationError as error:
        reasons = "; ".join(cattrs.transform_error(error, "experiment", reason))
        raise InputError(f"{origin} does not describe an experiment of this version: {reasons}") from error


def with_changes(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """Returns the experiment with fields changed, all at once, by dotted name as on the command line: ``{"model.mask.loss": "softmax"}``.

    Raises InputError for a field that there is not, and for what does not go together.
    """
    values = to_dict(experiment)
    for field, value in changes.items():
        *parts, name = field.split(".")
        place = values
        for part in parts:
            place = place.get(part) if isinstance(place, dict) else None
        require(isinstance(place, dict) and name in place, f"an experiment has no field {field}")
        place[name] = value
    return from_dict(json.loads(json.dumps(values)), "the changed experiment")


def read_experiment(path: str | Path) -> Experiment:
    """Reads an experiment.json."""
    try:
        values = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    return from_dict(values, str(path))
