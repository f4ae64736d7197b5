"""Pickles of arrays from the internet, read without running anything.

A pickle is a program for a small stack machine. Python's own reader, however its names are restricted, calls what they stand for and hashes what the
program builds, and dies of tuples that are nested deeply enough. The machine here calls nothing of the program's choice: it knows the instructions
that make containers, text and numbers, and of all that can be named the few things that NumPy arrays are written with. An array is made from its
bytes after its type and shape were found to fit them. How arrays are written is what ``ndarray.__reduce__`` and ``__reduce_ex__`` return; the
instructions are described in Python's pickletools, which also decodes them.
"""

import codecs
import io
import math
import pickletools
from collections.abc import Iterator
from typing import Any

import numpy as np

from mrcnn_jax.errors import InputError

MAX_INSTRUCTIONS = 1_000_000  # files of weights take about 30 an array; each costs some ten bytes of memory beyond those of its argument
MAX_COPIES = 4  # of the file's size, in bytes that arrays are made from; files of weights take two
MAX_DEPTH = 32

_DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_PLAIN = str | bytes | int | float | None | np.generic | np.ndarray


def load(data: bytes, name: str) -> Any:
    """What a pickle of any protocol holds, of arrays and plain values alone.

    Args:
        data: the file's content. What follows the end of the pickle is ignored.
        name: the file's name, for messages.

    Returns:
        arrays, NumPy and Python scalars, text, bytes, None, and dicts, lists and tuples of them, at most 32 deep. An OrderedDict becomes a dict, and
        Python 2's text, which may also be bytes, becomes text in Latin-1. Arrays may be read-only and in another byte order than the machine's.

    Raises:
        InputError: for everything else, and everything that contradicts itself. Nothing that the file names is ever called.
    """
    try:
        return _finished(_run(data), {})
    except Exception as error:  # ValueError: of our own, of pickletools, of NumPy; others: an empty stack, a value of the wrong type, no memory
        told = isinstance(error, ValueError)
        reason = " ".join(str(error).split())[:200] if told else f"its instructions do not fit together ({type(error).__name__})"
        raise InputError(f"{name} cannot be read as a pickle of arrays: {reason}.") from error


class _Refused(ValueError):
    """What a file asks for is not made."""


class _DType:
    """A dtype while it is being read: its byte order comes after it was made."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True):
        if code not in _DTYPES:
            raise _Refused(f"a dtype is {_shown(code)}, which is none of {', '.join(_DTYPES)}")
        self.value = np.dtype(code)

    def build(self, state: Any) -> None:
        # version, byte order; then parts, fields, size and alignment of dtypes that are not plain, and flags
        version, byte_order, *rest = _expect(state, tuple)
        if version != 3 or byte_order not in ("<", ">", "|", "=") or rest != [None, None, None, -1, -1, 0]:
            raise _Refused("a dtype is not a plain one of numbers")
        self.value = self.value.newbyteorder(byte_order)


class _Array:
    """An array while it is being read: its shape, type and bytes come after it was made."""

    def __init__(self, kind: Any, shape: Any, typecode: Any):
        if kind is not _NDARRAY:
            raise _Refused("an array is not a plain ndarray")
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        version, shape, dtype, fortran, content = _expect(state, tuple)
        if version != 1:
            raise _Refused("an array is written in an unknown version, not 1")
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """An array of checked parts: nothing is allocated before they fit each other."""
    if isinstance(content, str):  # bytes, as Python 2 wrote them
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, _DType):
        raise _Refused("an array has no dtype or no bytes")
    if not _are_sizes(shape):
        raise _Refused("an array's shape is not made of numbers from 0")
    if math.prod(shape) * dtype.value.itemsize != len(content):
        raise _Refused(f"an array of shape {shape} and dtype {dtype.value} has {len(content)} bytes")
    if order not in ("C", "F", "K") or (axes is not None and not (_are_sizes(axes) and sorted(axes) == list(range(len(shape))))):
        raise _Refused("an array's axes are in no known order")
    array = np.frombuffer(content, dtype.value).reshape(shape, order="F" if order == "F" else "C")
    return array if axes is None else array.transpose(axes)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= 32 and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _scalar(dtype: Any, content: Any) -> np.generic:
    return _array(content, dtype, (), "C")[()]


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("bytes are not written in latin1")
    return text.encode("latin1")


def _dict(*arguments: Any) -> dict:
    """An OrderedDict. Its pairs, as Python 2 wrote them, are a list for this purpose alone: it is emptied, so that it is paid for once."""
    made: dict = {}
    (pairs,) = arguments or ([],)
    for key, value in _expect(pairs, list):
        _set_item(made, key, value)
    pairs.clear()
    return made


_NDARRAY = object()
# What may be named, and what is done in its place. Nothing here can be changed by a file: BUILD acts on what a file has made, alone.
_ADMITTED = {
    "numpy ndarray": _NDARRAY,
    "numpy dtype": _DType,
    "_codecs encode": _encode,
    "__builtin__ bytes": lambda: b"",  # how empty bytes are written
    "builtins bytes": lambda: b"",
    "collections OrderedDict": _dict,
}
for _module in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _ADMITTED[f"{_module}.multiarray _reconstruct"] = _Array
    _ADMITTED[f"{_module}.multiarray scalar"] = _scalar
    _ADMITTED[f"{_module}.numeric _frombuffer"] = _array


def _named(name: str) -> Any:
    if name not in _ADMITTED:
        raise _Refused(f"it names {_shown(name.replace(' ', '.'))}, which is nothing that arrays are made of")
    return _ADMITTED[name]


# Instructions whose argument is their value. pickletools decodes it, and finds it missing where it goes beyond the end of the file.
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}


def _instructions(data: bytes) -> Iterator[tuple[str, Any]]:
    """Names and arguments. Like pickletools.genops, which however refuses Python 2's text where it is not ASCII."""
    stream = io.BytesIO(data)
    for _ in range(MAX_INSTRUCTIONS):
        position = stream.tell()
        code = stream.read(1)
        if code not in _OPCODES:
            raise _Refused(f"it has no instruction at byte {position}" if code else "it is truncated")
        opcode = _OPCODES[code]
        if opcode.name == "STRING":
            yield opcode.name, codecs.escape_decode(pickletools.read_stringnl(stream, decode=False))[0].decode("latin1")
        else:
            yield opcode.name, opcode.arg.reader(stream) if opcode.arg else None
    raise _Refused(f"it has more than {MAX_INSTRUCTIONS} instructions")


def _run(data: bytes) -> Any:
    """What the program leaves on the stack when it stops."""
    stack: list = []
    marks: list[int] = []
    memo: dict[int, Any] = {}  # a dict, where any index costs the same

    copied = 0

    def since(start: int) -> list:
        if not 0 <= start <= len(stack):
            raise IndexError
        items = stack[start:]
        del stack[start:]
        return items

    for name, argument in _instructions(data):
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        else:
            match name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case "MARK":
                    marks.append(len(stack))
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(since(len(stack) - int(name[-1]))))
                case "TUPLE":
                    stack.append(tuple(since(marks.pop())))
                case "EMPTY_LIST":
                    stack.append([])
                case "LIST":
                    stack.append(since(marks.pop()))
                case "APPEND" | "APPENDS":
                    items = since(marks.pop() if name == "APPENDS" else len(stack) - 1)
                    _expect(stack[-1], list).extend(items)
                case "EMPTY_DICT":
                    stack.append({})
                case "DICT":
                    items = since(marks.pop())
                    stack.append(_dict(list(zip(items[::2], items[1::2], strict=True))))
                case "SETITEM" | "SETITEMS":
                    items = since(marks.pop() if name == "SETITEMS" else len(stack) - 2)
                    for key, value in zip(items[::2], items[1::2], strict=True):
                        _set_item(_expect(stack[-1], dict), key, value)
                case "GLOBAL":
                    stack.append(_named(argument))
                case "STACK_GLOBAL":
                    module, attribute = since(len(stack) - 2)
                    stack.append(_named(f"{_expect(module, str)} {_expect(attribute, str)}"))
                case "REDUCE":
                    function, arguments = since(len(stack) - 2)
                    copied += _size(arguments)
                    stack.append(function(*_expect(arguments, tuple)))  # one of _ADMITTED: nothing else here can be called
                case "BUILD":
                    state = stack.pop()
                    copied += _size(state)
                    if not isinstance(stack[-1], dict):  # an OrderedDict's attributes are no weights
                        _expect(stack[-1], _DType | _Array).build(state)
                case _:
                    shown = "" if argument is None else f" {_shown(str(argument).replace(' ', '.'))}"
                    raise _Refused(f"it has the instruction {name}{shown}, which arrays are not made with")
        if copied > MAX_COPIES * len(data):
            raise _Refused("it makes many arrays of the same bytes")


def _size(parts: Any) -> int:
    """Of the bytes and text that a call may copy."""
    return sum(len(part) for part in parts if isinstance(part, str | bytes | bytearray)) if isinstance(parts, tuple) else 0


def _set_item(target: dict, key: Any, value: Any) -> None:
    if not isinstance(key, str | bytes | int | float | None):  # a tuple in a tuple in ... would overflow the stack where it is hashed
        raise _Refused("a dict has keys that are neither text nor numbers")
    target[key] = value


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise _Refused("an instruction meets a value of another kind than it needs")
    return value


def _finished(value: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """A copy with arrays where they were being read. ``done``: by id, for what is used more than once is finished once, and stays one object."""
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
        finished = {key: _finished(item, done, depth + 1) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        finished = type(value)(_finished(item, done, depth + 1) for item in value)
    else:
        raise _Refused("it holds a part of an array on its own")
    done[id(value)] = finished
    return finished


def _shown(value: Any) -> str:
    """For messages: short, and without what a terminal would obey."""
    return ascii(value[:80])[1:-1] if isinstance(value, str) else f"of type {type(value).__name__}"
