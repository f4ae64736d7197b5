"""Arrays of NumPy in a pickle: made after their type and shape were found to fit their bytes.

How arrays are written is what ``ndarray.__reduce__`` and ``__reduce_ex__`` return.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mrcnn_jax.weights.safe_pickle import Stub, UnsafePickleError, expect, set_items

_DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class LazyArray(Stub):
    """An array that is checked and made when it is read: it may belong to what is not of interest."""

    def nbytes(self) -> int:
        """Returns the size in bytes that the array will have; ValueError if its parts do not fit."""
        raise NotImplementedError

    def read(self) -> np.ndarray:
        """Returns the array, which may be read-only and in a foreign byte order; ValueError as before."""
        raise NotImplementedError


class _DType(Stub):
    """A dtype; its state follows after it was made."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True):
        super().__init__("numpy dtype")
        self.code = code

    def make(self) -> np.dtype:
        if self.code not in _DTYPES:
            raise UnsafePickleError(f"a dtype is {to_text(self.code)}, which is none of {', '.join(_DTYPES)}")
        # version, byte order; then parts, fields, size and alignment of dtypes that are not plain, and flags
        version, byte_order, *rest = expect(self.state, tuple)
        if version != 3 or byte_order not in ("<", ">", "|", "=") or rest != [None, None, None, -1, -1, 0]:
            raise UnsafePickleError("a dtype is not a plain one of numbers")
        return np.dtype(self.code).newbyteorder(byte_order)


class _Array(LazyArray):
    """An array whose state (version, shape, dtype, Fortran's order, content) follows, or is given."""

    def __init__(self, state: Any = None, axes: Any = None):
        super().__init__("numpy ndarray")
        self.state, self.axes = state, axes

    def nbytes(self) -> int:
        if self.state is None:
            raise UnsafePickleError("a part of an array on its own")
        version, shape, dtype, order, content = expect(self.state, tuple)
        if not isinstance(content, bytes | bytearray | str) or not isinstance(dtype, _DType):
            raise UnsafePickleError("an array has no dtype or no bytes")
        if version != 1 or order not in (True, False, "C", "F", "K"):
            raise UnsafePickleError("an array is written in an unknown version or order")
        if not are_sizes(shape):
            raise UnsafePickleError("an array's shape is not made of non-negative integers")
        kind = dtype.make()
        if math.prod(shape) * kind.itemsize != len(content):
            raise UnsafePickleError(f"an array of shape {shape} and dtype {kind} has {len(content)} bytes")
        if self.axes is not None and not (are_sizes(self.axes) and sorted(self.axes) == [*range(len(shape))]):
            raise UnsafePickleError("an array's axes are in an unknown order")
        return len(content)

    def read(self) -> np.ndarray:
        self.nbytes()
        _, shape, dtype, order, content = self.state
        content = content.encode("latin1") if isinstance(content, str) else content  # bytes, of Python 2
        order = "F" if order in (True, "F") else "C"
        array = np.frombuffer(content, dtype.make()).reshape(shape, order=order)
        return array if self.axes is None else array.transpose(self.axes)


def are_sizes(value: Any) -> bool:
    """Returns whether a value is a shape of at most 32 axes."""
    short = isinstance(value, tuple) and len(value) <= 32
    return short and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _encode(text: Any, encoding: Any) -> bytes:
    """Makes bytes as protocols 0 to 2 write them."""
    if encoding != "latin1":
        raise UnsafePickleError("bytes are not written in latin1")
    return expect(text, str).encode("latin1")


def _make_dict(*arguments: Any) -> dict:
    """Makes a dict of the pairs of an OrderedDict, and empties their list: each pair is used once."""
    made: dict = {}
    (pairs,) = arguments or ([],)
    set_items(made, expect(pairs, list))
    pairs.clear()
    return made


CALLS: dict[str, Callable] = {
    "numpy dtype": _DType,
    "_codecs encode": _encode,
    "__builtin__ bytes": lambda: b"",  # how empty bytes are written
    "builtins bytes": lambda: b"",
    "collections OrderedDict": _make_dict,
    "collections defaultdict": lambda *factory: {},
}
"""Functions that pickles of arrays and plain containers call."""
for _kind in ("set", "frozenset"):
    CALLS |= dict.fromkeys((f"builtins {_kind}", f"__builtin__ {_kind}"), lambda *items: [*items, []][0])
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    CALLS[f"{_core}.multiarray _reconstruct"] = lambda kind, shape, typecode: _Array()
    CALLS[f"{_core}.multiarray scalar"] = lambda dtype, data: _Array((1, (), dtype, False, data))
    CALLS[f"{_core}.numeric _frombuffer"] = lambda data, dtype, shape, order, axes=None: _Array(
        (1, shape, dtype, order, data), axes
    )


def to_text(value: Any) -> str:
    """Formats a value for messages: short, and without control characters."""
    return ascii(value[:80])[1:-1] if isinstance(value, str) else f"of type {type(value).__name__}"
