"""Validation of configuration fields: bounds that stand beside a field's type, and one-sentence errors."""

from collections.abc import Mapping
from functools import cache
from numbers import Integral
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from mrcnn_jax.errors import InputError


class Bound(NamedTuple):
    """Allowed range of a number, as an annotation: ``Annotated[int, Bound(...)]``."""

    low: float
    high: float
    low_included: bool
    text: str

    def admits(self, value: float) -> bool:
        """Returns whether a number lies in the range; False for NaN."""
        return (value >= self.low if self.low_included else value > self.low) and value <= self.high


_LARGEST = {int: (2**31 - 1, "must fit into 32 bits"), float: (3.4e38, "must be a finite number")}


POSITIVE = Bound(0, float("inf"), False, "must be greater than 0")
NON_NEGATIVE = Bound(0, float("inf"), True, "must not be negative")
FRACTION = Bound(0, 1, True, "must lie between 0 and 1")
BELOW_ONE = Bound(-float("inf"), 1 - 1e-9, True, "must be less than 1")
LARGEST_BATCH, LARGEST_EDGE, MOST_BOXES, MOST_PICTURES = 4_096, 32_768, 100_000, 10_000
"""Upper limits of sizes; larger values are typing errors and would exhaust memory."""


def at_most(largest: int) -> Bound:
    """Returns the bound of numbers up to the largest, which is included."""
    return Bound(-float("inf"), largest, True, f"must be at most {largest:,}")


PositiveInt = Annotated[int, POSITIVE]
PositiveFloat = Annotated[float, POSITIVE]
NonNegativeInt = Annotated[int, NON_NEGATIVE]
NonNegativeFloat = Annotated[float, NON_NEGATIVE]
Fraction = Annotated[float, FRACTION]
PositiveFraction = Annotated[PositiveFloat, FRACTION]
BatchSize = Annotated[PositiveInt, at_most(LARGEST_BATCH)]
ImageEdge = Annotated[PositiveInt, at_most(LARGEST_EDGE)]
BoxCount = Annotated[PositiveInt, at_most(MOST_BOXES)]
SampleCount = Annotated[PositiveInt, at_most(10_000_000)]  # Detectron2 has a million where all RoIs count
Channels = Annotated[PositiveInt, at_most(65_536)]
Layers = Annotated[NonNegativeInt, at_most(1_000)]


def require(condition: bool, message: str) -> None:
    """Raises InputError(message) unless the condition holds."""
    if not condition:
        raise InputError(message)


def require_whole(name: str, value: Any, low: int, high: int) -> None:
    """Raises InputError, which names what was given, unless a value is a whole number from low to high."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    require(whole and low <= value <= high,
            f"{name} must be a whole number from {low:,} to {high:,}, not {value!r:.50}")


def check_type(name: str, value: Any, kind: type) -> None:
    """Raises InputError unless a value is of a type; a whole number is a float too, and True is no number."""
    allowed = (int, float) if kind is float else kind
    fits = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
    require(fits, f"{name} must be {kind.__name__}, not {value!r:.60}".lstrip())


def check_fields(owner: str, config: Any) -> None:
    """Checks every field of a dataclass against its type: its choices (``Literal``), bounds and length.

    Args:
        owner: what the message puts before the field's name, such as "train".
        config: a dataclass instance.

    Raises:
        InputError: a value is not allowed. The message names the field, the value and what is allowed.
    """
    for name, hint in _type_hints(type(config)).items():
        field, given = f"{owner}.{name}", getattr(config, name)
        for value, kind in _values(field, given, hint):
            _check_value(field, value, kind, given)


def _values(field, given, hint):
    """Returns the value of a field, or those of a tuple, each with its type."""
    kinds = get_args(hint)
    if get_origin(hint) is tuple:
        require(isinstance(given, tuple), f"{field} must be a tuple, not {given!r:.60}")
        if kinds[-1] is Ellipsis:
            return [(value, kinds[0]) for value in given]
        require(len(given) == len(kinds), f"{field} must have {len(kinds)} values, not {given!s:.60}")
        return zip(given, kinds, strict=True)
    if type(None) in kinds:  # None inherits the value of another field
        return [] if given is None else [(given, kinds[0])]
    return [(given, hint)]


def _check_value(field, value, kind, given):
    """Raises InputError, which names what was given, unless a value has its type and is within its bounds."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        require(value in choices, f"{field} must be one of {', '.join(choices)}, not {value!r}")
        return
    plain, *extras = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    check_type(field, value, plain)
    for bound in extras:
        if not bound.admits(value):
            raise InputError(f"{field} {bound.text}, not {given!s:.60}")
    limit, words = _LARGEST.get(type(value), (None, ""))
    require(limit is None or abs(value) <= limit, f"{field} {words}")


@cache
def _type_hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind, include_extras=True)
