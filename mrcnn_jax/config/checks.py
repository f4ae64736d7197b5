"""What the configurations are checked with; each failure is one sentence that names the field and what is allowed."""

from typing import Any, Literal, get_args, get_origin, get_type_hints

from mrcnn_jax.errors import InputError


def require(condition: bool, message: str) -> None:
    """Raises InputError(message) unless the condition holds."""
    if not condition:
        raise InputError(message)


def positive(owner: str, **values: float) -> None:
    """Each value, given by its field's name, is greater than 0."""
    for name, value in values.items():
        require(value > 0, f"{owner}.{name} must be greater than 0, not {value}")


def natural(owner: str, **values: float) -> None:
    """Each value, given by its field's name, is 0 or more."""
    for name, value in values.items():
        require(value >= 0, f"{owner}.{name} must not be negative, not {value}")


def fraction(owner: str, **values: float) -> None:
    """Each value, given by its field's name, lies in [0, 1]."""
    for name, value in values.items():
        require(0 <= value <= 1, f"{owner}.{name} must lie between 0 and 1, not {value}")


def choices(owner: str, config: Any) -> None:
    """Every field of type Literal, or tuple of one, holds what its type allows."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        values = (value,)
        if get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is Literal:
            kind, values = get_args(kind)[0], value
        if get_origin(kind) is Literal:
            allowed = get_args(kind)
            for value in values:
                require(value in allowed, f"{owner}.{name} must be one of {', '.join(allowed)}, not {value!r}")
