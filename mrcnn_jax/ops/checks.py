"""Checks of argument shapes, which numbers computed from wrong shapes would hide."""

from mrcnn_jax.typing import Array


def check_shape(name: str, array: Array, *shape: int | str, note: str = "") -> None:
    """Raises ValueError, naming the argument, unless an array has the given shape.

    Args:
        name: of the argument.
        array: the argument.
        shape: the length of each axis, or a letter for any length; a leading "..." stands for any number of
            axes.
        note: appended to the message.
    """
    axes = shape[1:] if shape[0] == "..." else shape
    actual = tuple(array.shape)
    compared = actual[len(actual) - len(axes) :] if shape[0] == "..." and len(actual) >= len(axes) else actual
    matches = len(compared) == len(axes) and all(
        isinstance(wanted, str) or wanted == length for wanted, length in zip(axes, compared, strict=True)
    )
    if not matches:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{name} must have shape [{expected}], not {list(actual)}{note and f'; {note}'}")
