"""Generates the configuration reference, a page of Markdown, from the configuration's dataclasses."""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mrcnn_jax.config import Experiment
from mrcnn_jax.config.validation import FRACTION, NON_NEGATIVE, POSITIVE, Bound

BOUNDS = {POSITIVE: "> 0", NON_NEGATIVE: "≥ 0", FRACTION: "from 0 to 1"}
INTRODUCTION = """\
# Configuration

An experiment is a frozen dataclass, `mrcnn_jax.Experiment`. Its defaults are Mask R-CNN with ResNet-50-FPN on
COCO as the paper trains it; presets (`mrcnn train`) change it. Fields are set on the command line by the
names below, as in `mrcnn train demo --train.steps 300`, and in Python with `dataclasses.replace`. Values are
checked when a dataclass is built; the message names the field and what is allowed.
"""


def field_descriptions(config: type) -> dict[str, str]:
    """Returns the description of each field of a dataclass: the string that follows it in the source."""
    body = ast.parse(inspect.getsource(config)).body[0].body
    described = {}
    for statement, following in zip(body, body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            described[statement.target.id] = " ".join(ast.literal_eval(following.value).split())
    return described


def sections(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields a configuration and the configurations inside it with their dotted names."""
    yield name, config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from sections(value, f"{name}.{field.name}".lstrip("."))


def allowed_values(hint: Any) -> str:
    """Returns the type of a field in words, with its choices or bounds."""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        number = "any number" if kinds[-1] is Ellipsis else len(kinds)
        return f"{number} of {allowed_values(kinds[0])}"
    if type(None) in get_args(hint):
        return f"{allowed_values(get_args(hint)[0])}, or none"
    kind = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    bounds = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Bound)]
    words = (BOUNDS.get(bound, f"≤ {bound.high:,}") for bound in bounds)
    return " ".join([kind.__name__, " and ".join(words)]).rstrip()


def default_text(value: Any) -> str:
    """Returns a default value as it is written on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(default_text, value)) or "none at all"
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)


def configuration_reference() -> str:
    """Returns the reference page: a table of fields for each part of the configuration."""
    lines = [INTRODUCTION]
    for name, config in sections(Experiment()):
        kind = type(config)
        hints, descriptions = get_type_hints(kind, include_extras=True), field_descriptions(kind)
        lines += [f"## {name or 'experiment'}", "", inspect.getdoc(kind) or "", ""]
        lines += ["| Option | Allowed | Default | |", "| --- | --- | --- | --- |"]
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if not dataclasses.is_dataclass(value):
                option = f"--{name}.{field.name}".replace("--.", "--").replace("_", "-")
                default = f"`{text}`" if (text := default_text(value)) else ""
                cells = (f"`{option}`", allowed_values(hints[field.name]), default, descriptions[field.name])
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(configuration_reference())
