"""Reads Detectron2's configuration files (YAML)."""

import ast
import math
import reprlib
from pathlib import Path
from typing import Any

import yaml

from mrcnn_jax.config.validation import require
from mrcnn_jax.errors import InputError
from mrcnn_jax.weights.detectron2_settings import ZOO, Settings


def read_settings(path: Path, _parents: tuple[Path, ...] = ()) -> Settings:
    """Reads the settings that matter here from a configuration file and the files that it is based on.

    Returns:
        Values by their full names, such as "MODEL.RPN.NMS_THRESH", as they stand in the file.

    Raises:
        InputError: a file cannot be read, is not a configuration of Detectron2 or is based on itself.
    """
    try:
        here = path.resolve()
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        base_of = f", the _BASE_ of {_parents[-1]}" if _parents else ""
        raise InputError(f"cannot read {path}{base_of}: {error.strerror}") from error
    except Exception as error:  # PyYAML does not document what it raises for damaged files
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    require(here not in _parents, f"{path} is based on itself through its _BASE_")
    settings = _select_known(content, path)
    if "_BASE_" in content:
        base = content["_BASE_"]
        require(isinstance(base, str),
                f"{path}: _BASE_ must be the path of a configuration file, not {reprlib.repr(base)}")
        settings = read_settings(path.parent / base, (*_parents, here)) | settings
    require(bool(settings or _parents),
            f"{path} has none of the settings of Detectron2, such as MODEL.RESNETS.DEPTH")
    return settings


def _select_known(content: Any, path: Path) -> Settings:
    require(isinstance(content, dict),
            f"{path} is not a configuration of Detectron2, which has sections such as MODEL and INPUT")
    settings = {}
    for name in ZOO:
        *sections, key = name.split(".")
        values = content
        for section in sections:
            values = values.get(section, {})
            require(isinstance(values, dict),
                    f"{path}: {section} must be a section of settings, not {reprlib.repr(values)}")
        if key in values:
            settings[name] = values[key]
    return settings


def cast_settings(settings: Settings) -> Settings:
    """Converts all settings to the types of the model zoo's; InputError names one that has another form."""
    return {name: _cast(name, settings[name]) for name in ZOO}


def _cast(name: str, value: Any) -> Any:
    try:
        return _cast_like(ZOO[name], value)
    except (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError) as error:
        raise InputError(f"{name} must look like {to_text(ZOO[name])}, not {reprlib.repr(value)}") from error


def _cast_like(example: Any, value: Any) -> Any:
    """Converts a value to the types of an example; raises what ``_cast`` catches otherwise."""
    if isinstance(value, str) and not isinstance(example, str):  # Detectron2 writes tuples as Python literals
        value = ast.literal_eval(value)
    if isinstance(example, list | tuple):
        wrong_length = isinstance(example, tuple) and len(value) != len(example)
        if not isinstance(value, list | tuple) or not value or wrong_length:
            raise ValueError
        return type(example)(_cast_like(example[0], each) for each in value)
    kind = int | float if isinstance(example, float) else type(example)
    not_finite = isinstance(value, float) and not math.isfinite(value)
    if isinstance(value, bool) != isinstance(example, bool) or not isinstance(value, kind) or not_finite:
        raise ValueError
    return type(example)(value)


def to_text(value: Any) -> str:
    """Formats a value as it is written in a configuration file."""
    return repr(list(value) if isinstance(value, tuple) else value)
