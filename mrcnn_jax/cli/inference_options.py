"""Options of `mrcnn predict` and `mrcnn evaluate` that change settings of the trained detector."""

import dataclasses
from collections.abc import Sequence
from functools import reduce
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro

from mrcnn_jax.cli.first_options import field_descriptions
from mrcnn_jax.cli.terminal import parse
from mrcnn_jax.config import Experiment
from mrcnn_jax.inference.settings import SETTINGS

Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """The checkpoint that is loaded."""

    checkpoint: Literal["best", "newest"] = "best"
    """Checkpoint of a run that keeps its best one: that, or the newest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorOptions(CheckpointOptions):
    """Options of tiles, and the checkpoint that is loaded."""

    tile: int = 0
    """Side in pixels of the tiles in which images are seen, for small objects in large images; objects that
    several tiles see are joined. 0 takes images whole."""
    tile_overlap: float = 0.25
    """Share of its side that a tile has in common with the next; small objects should fit into it."""


_ALIASES = {
    "model.box.max_detections": ("--model.box.detections",), "evaluation.tta_scales": ("--tta-scales",),
    "evaluation.tta_flip": ("--tta-flip",),
}  # fmt: skip


def parse_with_settings(
    options: type[Options], command: str, arguments: Sequence[str], names: Sequence[str] = SETTINGS
) -> Options:
    """Parses a subcommand's arguments like ``parse``, among which settings may be.

    Args:
        options: the dataclass.
        command: name of the subcommand.
        arguments: the rest of the command line.
        names: settings that the command takes.
    """
    own = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options)}
    given = {word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("-")}
    # without others, time is saved: the descriptions of settings are read from the source
    return parse(options if given <= own else with_settings(options, names), command, arguments)


def with_settings(options: type[Options], names: Sequence[str] = SETTINGS) -> type[Options]:
    """Returns a dataclass of options with one more for each of some settings, None unless it is given."""
    fields = [(_attribute(name), _annotation(name), dataclasses.field(default=None)) for name in names]
    extended = dataclasses.make_dataclass(options.__name__, fields, bases=(options,), frozen=True)
    extended.__doc__ = options.__doc__
    return extended


def given_settings(options: Any) -> dict[str, Any]:
    """Returns the settings that were given, by dotted name."""
    values = {name: getattr(options, _attribute(name), None) for name in SETTINGS}
    return {name: value for name, value in values.items() if value is not None}


def _attribute(name: str) -> str:
    return name.replace(".", "_")


def _annotation(name: str) -> Any:
    *parents, field = name.split(".")
    config = type(reduce(getattr, parents, Experiment()))
    kind = get_type_hints(config)[field]
    option = tyro.conf.arg(
        name=name.replace("_", "-"), help=f"{field_descriptions(config)[field]} By default as trained.",
        aliases=_ALIASES.get(name), help_behavior_hint="",
    )  # fmt: skip
    return Annotated[kind | None, option]  # ty: ignore[invalid-type-form]
