"""Reads pickles of arrays that come from the internet, without executing anything in them.

A pickle is a program for a small stack machine. Python's own reader calls what the program names, hashes what
it builds, however its names are restricted, and crashes on deeply nested tuples. The machine here calls
nothing of the program's choice: it knows the instructions that make containers, text and numbers, and the few
names that NumPy arrays are written with. An array is made after its type and shape were found to fit its
bytes. How arrays are written is what ``ndarray.__reduce__`` and ``__reduce_ex__`` return; Python's
pickletools describes the instructions, and decodes them here.
"""

import codecs
import io
import math
import pickletools
from collections.abc import Iterator
from typing import Any

import numpy as np

from mrcnn_jax.errors import InputError

MAX_INSTRUCTIONS = 1_000_000  # files of weights take about 30 per array; each costs some ten bytes of memory
MAX_COPIED = 4  # times the size of the file, in bytes that arrays are made from; files of weights take two
MAX_DEPTH = 32

_DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_PLAIN = str | bytes | int | float | None | np.generic | np.ndarray


def load(data: bytes, name: str) -> Any:
    """Reads a pickle of any protocol that holds arrays and plain values only.

    Args:
        data: content of the file. Anything after the end of the pickle is ignored.
        name: name of the file, for messages.

    Returns:
        Arrays, NumPy and Python scalars, text, bytes, None, and dicts, lists and tuples of them. Python 2's
        text, which may be bytes, is read as Latin-1. Arrays may be read-only and in a foreign byte order.

    Raises:
        InputError: the pickle holds anything else, or contradicts itself.
    """
    try:
        return _finish(_run(data), {})
    except Exception as error:  # not a ValueError: an empty stack, wrong types, ...
        reason = " ".join(str(error).split())[:200]
        if not isinstance(error, ValueError):
            reason = f"its instructions do not fit together ({type(error).__name__})"
        raise InputError(f"{name} cannot be read as a pickle of arrays: {reason}") from error


class _Refused(ValueError):
    """The pickle holds something that is not read."""


class _DType:
    """A dtype that is being read: its byte order follows after it was made."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True):
        if code not in _DTYPES:
            raise _Refused(f"a dtype is {_to_text(code)}, which is none of {', '.join(_DTYPES)}")
        self.value = np.dtype(code)

    def build(self, state: Any) -> None:
        # version, byte order; then parts, fields, size and alignment of dtypes that are not plain, and flags
        version, byte_order, *rest = _expect(state, tuple)
        if version != 3 or byte_order not in ("<", ">", "|", "=") or rest != [None, None, None, -1, -1, 0]:
            raise _Refused("a dtype is not a plain one of numbers")
        self.value = self.value.newbyteorder(byte_order)


class _Array:
    """An array that is being read: its shape, type and bytes follow after it was made."""

    def __init__(self, kind: Any, shape: Any, typecode: Any):
        if kind is not _NDARRAY:
            raise _Refused("an array is not a plain ndarray")
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        version, shape, dtype, fortran, content = _expect(state, tuple)
        if version != 1:
            raise _Refused("an array is not written in version 1")
        self.value = _make_array(content, dtype, shape, "F" if fortran else "C")


def _make_array(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """Makes an array of parts that are checked against each other before anything is allocated."""
    if isinstance(content, str):  # bytes, as Python 2 wrote them
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, _DType):
        raise _Refused("an array has no dtype or no bytes")
    if not _are_sizes(shape):
        raise _Refused("an array's shape is not made of non-negative integers")
    if math.prod(shape) * dtype.value.itemsize != len(content):
        raise _Refused(f"an array of shape {shape} and dtype {dtype.value} has {len(content)} bytes")
    known_axes = axes is None or (_are_sizes(axes) and sorted(axes) == list(range(len(shape))))
    if order not in ("C", "F", "K") or not known_axes:
        raise _Refused("an array's axes are in an unknown order")
    array = np.frombuffer(content, dtype.value).reshape(shape, order="F" if order == "F" else "C")
    return array if axes is None else array.transpose(axes)


def _are_sizes(value: Any) -> bool:
    short = isinstance(value, tuple) and len(value) <= 32
    return short and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _encode(text: Any, encoding: Any) -> bytes:
    """Makes bytes as protocols 0 to 2 write them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("bytes are not written in latin1")
    return text.encode("latin1")


def _make_dict(*arguments: Any) -> dict:
    """Makes a dict of the pairs of an OrderedDict, and empties their list: each pair is used once."""
    made: dict = {}
    (pairs,) = arguments or ([],)
    for key, value in _expect(pairs, list):
        _set_item(made, key, value)
    pairs.clear()
    return made


_NDARRAY = object()
# Names that are read, and what is called in their place. BUILD acts on what the file made only, not on these.
_ADMITTED = {
    "numpy ndarray": _NDARRAY,
    "numpy dtype": _DType,
    "_codecs encode": _encode,
    "__builtin__ bytes": lambda: b"",  # how empty bytes are written
    "builtins bytes": lambda: b"",
    "collections OrderedDict": _make_dict,
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _ADMITTED[f"{_core}.multiarray _reconstruct"] = _Array
    _ADMITTED[f"{_core}.multiarray scalar"] = lambda dtype, data: _make_array(data, dtype, (), "C")[()]
    _ADMITTED[f"{_core}.numeric _frombuffer"] = _make_array


def _admit(name: str) -> Any:
    if name not in _ADMITTED:
        raise _Refused(f"it names {_to_text(name.replace(' ', '.'))}, which arrays are not made of")
    return _ADMITTED[name]


# Instructions whose argument is their value. pickletools decodes it, and raises if it exceeds the end of the
# file.
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}


def _instructions(data: bytes) -> Iterator[tuple[str, Any]]:
    """Yields names and arguments, like pickletools.genops, which refuses Python 2's text beyond ASCII."""
    stream = io.BytesIO(data)
    for _ in range(MAX_INSTRUCTIONS):
        position = stream.tell()
        code = stream.read(1)
        if code not in _OPCODES:
            raise _Refused(f"it has no instruction at byte {position}" if code else "it is truncated")
        opcode = _OPCODES[code]
        if opcode.name == "STRING":
            quoted = pickletools.read_stringnl(stream, decode=False)
            yield opcode.name, codecs.escape_decode(quoted)[0].decode("latin1")
        else:
            yield opcode.name, opcode.arg.reader(stream) if opcode.arg else None
    raise _Refused(f"it has more than {MAX_INSTRUCTIONS} instructions")


class _Machine:
    """Stack, marks and memo of a program that is being run."""

    def __init__(self):
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}  # a dict, in which any index costs the same
        self.copied = 0

    def take(self, count: int | None = None) -> list:
        """Takes the last ``count`` values, or those since the last mark, from the stack."""
        start = self.marks.pop() if count is None else len(self.stack) - count
        if not 0 <= start <= len(self.stack):
            raise IndexError
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def execute(self, name: str, argument: Any) -> None:
        """Executes one instruction that is neither a literal nor a constant."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(stack))
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.take(int(name[-1]) if name[-1].isdigit() else None)))
            case "EMPTY_LIST" | "EMPTY_DICT":
                stack.append([] if name == "EMPTY_LIST" else {})
            case "LIST":
                stack.append(self.take())
            case "APPEND" | "APPENDS":
                values = self.take(1 if name == "APPEND" else None)
                _expect(stack[-1], list).extend(values)
            case "DICT":
                values = self.take()
                stack.append(_make_dict(list(zip(values[::2], values[1::2], strict=True))))
            case "SETITEM" | "SETITEMS":
                values = self.take(2 if name == "SETITEM" else None)
                for key, value in zip(values[::2], values[1::2], strict=True):
                    _set_item(_expect(stack[-1], dict), key, value)
            case "GLOBAL":
                stack.append(_admit(argument))
            case "STACK_GLOBAL":
                module, attribute = self.take(2)
                stack.append(_admit(f"{_expect(module, str)} {_expect(attribute, str)}"))
            case "REDUCE":
                function, arguments = self.take(2)
                self.copied += _count_bytes(arguments)
                stack.append(function(*_expect(arguments, tuple)))  # of _ADMITTED: nothing else is callable
            case "BUILD":
                state = stack.pop()
                self.copied += _count_bytes(state)
                if not isinstance(stack[-1], dict):  # attributes of an OrderedDict are not weights
                    _expect(stack[-1], _DType | _Array).build(state)
            case _:
                of = "" if argument is None else f" {_to_text(str(argument).replace(' ', '.'))}"
                raise _Refused(f"it has the instruction {name}{of}, which arrays are not made with")


def _run(data: bytes) -> Any:
    """Returns the value that the program leaves on the stack when it stops."""
    machine = _Machine()
    for name, argument in _instructions(data):
        if name in _LITERALS:
            machine.stack.append(argument)
        elif name in _CONSTANTS:
            machine.stack.append(_CONSTANTS[name])
        elif name == "STOP":
            return machine.stack.pop()
        else:
            machine.execute(name, argument)
            if machine.copied > MAX_COPIED * len(data):
                raise _Refused("it makes many arrays of the same bytes")


def _count_bytes(parts: Any) -> int:
    """Counts the bytes and characters that a call may copy."""
    parts = parts if isinstance(parts, tuple) else ()
    return sum(len(part) for part in parts if isinstance(part, str | bytes | bytearray))


def _set_item(target: dict, key: Any, value: Any) -> None:
    if not isinstance(key, str | bytes | int | float | None):  # to hash deeply nested tuples overflows
        raise _Refused("a dict has keys that are neither text nor numbers")
    target[key] = value


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise _Refused("an instruction meets a value of another kind than it needs")
    return value


def _finish(value: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """Copies a value with the finished arrays in it. ``done`` by id keeps shared values shared."""
    if depth > MAX_DEPTH:
        raise _Refused(f"its containers are nested more than {MAX_DEPTH} deep")
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, _PLAIN):
        finished = value
    elif isinstance(value, bytearray):
        finished = bytes(value)
    elif isinstance(value, _Array) and value.value is not None:
        finished = value.value
    elif isinstance(value, dict):
        finished = {key: _finish(item, done, depth + 1) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        finished = type(value)(_finish(item, done, depth + 1) for item in value)
    else:
        raise _Refused("it holds a part of an array on its own")
    done[id(value)] = finished
    return finished


def _to_text(value: Any) -> str:
    """Formats a value for messages: short, and without control characters."""
    return ascii(value[:80])[1:-1] if isinstance(value, str) else f"of type {type(value).__name__}"
