"""Numbers of annotation files as tools write them: 1, 1.0, "1", "1.0"."""

import json
import re
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float

MAX_COORDINATE = 1e6  # in pixels
MAX_WHOLE = 2**53  # floats are exact whole numbers below
MAX_ID = 2**63  # data sets store ids in 64 bits
_FLAGS = {"": False, "false": False, "no": False, "true": True, "yes": True}
_ID_TEXT = re.compile(r"(-?(?:0|[1-9][0-9]{0,18}))(?:\.0+)?")


def to_number(value: Any, largest: float = MAX_COORDINATE) -> float | None:
    """Returns a number or a text that is one; None for anything else, NaN, and what exceeds ``largest``."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return value if usable and -largest <= value <= largest else None


def to_whole(value: Any) -> int | None:
    """Returns a whole number, given as such, as float or as text; None for anything else."""
    number = to_number(value, MAX_WHOLE - 1)
    return int(number) if number is not None and number == int(number) else None


def to_id(value: Any) -> int | None:
    """Returns an id that is a whole number; None for anything else.

    Ids are not only counted but told apart, so that a text is a number in its plain spelling alone ("10",
    "10.0"): "010", "1_0", "1e1" and " 10" are names.
    """
    if isinstance(value, str):
        match = _ID_TEXT.fullmatch(value)
        value = int(match[1]) if match else None
    if type(value) is int:
        return value if -MAX_ID <= value < MAX_ID else None
    return to_whole(value)


def to_vector(values: Any) -> tuple[Float[np.ndarray, "N"], float] | None:
    """Returns a list of numbers, and the largest of their absolute values; None for anything else."""
    try:
        array = np.array(values)
    except (ValueError, OverflowError):  # lists of unequal lengths; whole numbers beyond float64
        return None
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        return None
    array = array.astype(np.float64, copy=False)
    largest = np.abs(array).max(initial=0)
    return (array, largest) if largest <= MAX_COORDINATE else None


def to_numbers(values: Any) -> tuple[list[float], bool] | None:
    """Returns a list of numbers, and whether any was a text; None if any is neither."""
    if not isinstance(values, list):
        return None
    numbers = [to_number(value) for value in values]
    texts = any(isinstance(value, str) for value in values)
    return None if None in numbers else (numbers, texts)


def to_flag(value: Any) -> bool | None:
    """Returns a flag: a boolean, 0, 1, a text of these, or nothing for false; None for anything else."""
    if is_empty(value):
        return False
    if isinstance(value, str):
        word = value.strip().lower()
        value = _FLAGS[word] if word in _FLAGS else to_number(word)
    return bool(value) if isinstance(value, Real) and value in (0, 1) else None


def parse_text(value: Any) -> Any:
    """Returns what a text holds, if it is JSON or numbers between commas or spaces; else the value itself."""
    if not isinstance(value, str):
        return value
    for text in (value, f"[{','.join(value.replace(',', ' ').split())}]"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            continue
    return value


def is_empty(value: Any, depth: int = 4) -> bool:
    """Returns whether a value is null, false, an empty text, or a list or an object of nothing but such."""
    if isinstance(value, list | dict) and depth:
        items = value if isinstance(value, list) else value.values()
        return all(is_empty(item, depth - 1) for item in items)
    return value is None or value is False or value == ""


def annotated_size(image: dict) -> tuple[int | None, int | None]:
    """Returns the annotated height and width; None for one that is missing or no size."""
    numbers = [to_whole(image.get(side)) for side in ("height", "width")]
    height, width = (number if number is not None and number > 0 else None for number in numbers)
    return height, width
