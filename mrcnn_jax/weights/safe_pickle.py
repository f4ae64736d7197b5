"""Reads pickles that come from the internet, without executing anything in them.

A pickle is a program for a small stack machine. Python's own reader calls what the program names, hashes what
it builds, however its names are restricted, and crashes on deeply nested tuples. The machine here makes
containers, text and numbers. It calls the few functions that a caller admits by name, and leaves a ``Stub``
in place of every other class, function or object: training scripts store their settings beside the weights.
Python's pickletools describes the instructions, and decodes them here.
"""

import codecs
import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from mrcnn_jax.errors import InputError

MAX_INSTRUCTIONS = 1_000_000  # files of weights take about 60 per array; each costs some ten bytes of memory
MAX_COPIED = 4  # times the size of the file, in bytes that calls are given; files of weights take two


class UnsafePickleError(ValueError):
    """The pickle holds something that cannot be read."""


class Stub:
    """A class, a function or an object that is not made: its name, state and entries.

    Compared by identity, so that anything can be the key of a dict.
    """

    def __init__(self, name: str):
        self.name = name
        """Module and name, separated by a space as in instructions."""
        self.state: Any = None
        self.entries: dict = {}


def load(
    stream: BinaryIO,
    name: str,
    calls: Mapping[str, Callable],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle of any protocol.

    Args:
        stream: the file, or anything with its methods; it is left at the end of the pickle.
        name: name of the file, for messages.
        calls: functions that may be called, by "module name" in the pickle.
        persistent: maps the persistent ids of a pickle to values; without it they are refused.

    Returns:
        Python's numbers, text, bytes, None, lists (also for sets), tuples, dicts, results of ``calls`` and
        stubs; possibly nested without limit, or cyclic. Python 2's text, which may be bytes, is read as
        Latin-1.

    Raises:
        InputError: the pickle is damaged or contradicts itself.
    """
    try:
        return _run(stream, calls, persistent)
    except Exception as error:  # not a ValueError: an empty stack, wrong types, ...
        reason = " ".join(str(error).split())[:200]
        if not isinstance(error, ValueError):
            reason = f"its instructions do not fit together ({type(error).__name__})"
        raise InputError(f"{name} cannot be read as a pickle: {reason}") from error


def _run(stream: BinaryIO, calls: Mapping[str, Callable], persistent: Callable | None) -> Any:
    """Returns the value that the program leaves on the stack when it stops."""
    start = stream.tell()
    limit = MAX_COPIED * (stream.seek(0, 2) or stream.tell())  # a mapped file's seek returns None
    stream.seek(start)
    machine = _Machine(calls, persistent)
    for name, argument in _instructions(stream):
        if name in _LITERALS:
            machine.stack.append(argument)
        elif name in _CONSTANTS:
            machine.stack.append(_CONSTANTS[name])
        elif name == "STOP":
            return machine.stack.pop()
        else:
            machine.execute(name, argument)
            if machine.copied > limit:
                raise UnsafePickleError("it makes many arrays of the same bytes")


# Instructions whose argument is their value. pickletools decodes it, and raises if it exceeds the end of the
# file.
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}


def _instructions(stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Yields names and arguments, like pickletools.genops, which refuses Python 2's text beyond ASCII."""
    for _ in range(MAX_INSTRUCTIONS):
        code = stream.read(1)
        if code not in _OPCODES:
            where = stream.tell() - 1
            raise UnsafePickleError(f"it has no instruction at byte {where}" if code else "it is truncated")
        opcode = _OPCODES[code]
        if opcode.name == "STRING":
            quoted = pickletools.read_stringnl(stream, decode=False)
            yield opcode.name, codecs.escape_decode(quoted)[0].decode("latin1")
        else:
            yield opcode.name, opcode.arg.reader(stream) if opcode.arg else None
    raise UnsafePickleError(f"it has more than {MAX_INSTRUCTIONS} instructions")


class _Machine:
    """Stack, marks and memo of a program that is being run."""

    def __init__(self, calls: Mapping[str, Callable], persistent: Callable | None):
        self.calls, self.persistent = calls, persistent
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

    def call(self, function: Any, arguments: Any) -> Any:
        """Returns the result of an admitted function, or a stub."""
        name = expect(function, Stub).name
        if name not in self.calls:
            return Stub(name)
        self.copied += sum(len(part) for part in arguments if isinstance(part, str | bytes | bytearray))
        return self.calls[name](*expect(arguments, tuple))

    def execute(self, name: str, argument: Any) -> None:
        """Executes one instruction that is neither a literal nor a constant."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(stack))
            case "POP" if self.marks and self.marks[-1] == len(stack):
                self.marks.pop()
            case "POP" | "POP_MARK":
                self.take(1 if name == "POP" else None)
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.take(int(name[-1]) if name[-1].isdigit() else None)))
            case "EMPTY_LIST" | "EMPTY_SET" | "EMPTY_DICT":
                stack.append({} if name == "EMPTY_DICT" else [])
            case "LIST" | "FROZENSET":
                stack.append(self.take())
            case "APPEND" | "APPENDS" | "ADDITEMS":
                values = self.take(1 if name == "APPEND" else None)
                expect(stack[-1], list | Stub)
                if isinstance(stack[-1], list):
                    stack[-1].extend(values)
            case "DICT" | "SETITEM" | "SETITEMS":
                values = self.take(2 if name == "SETITEM" else None)
                stack.extend([{}] if name == "DICT" else [])
                target = expect(stack[-1], dict | Stub)
                entries = target.entries if isinstance(target, Stub) else target
                set_items(entries, zip(values[::2], values[1::2], strict=True))
            case "GLOBAL":
                stack.append(Stub(argument))
            case "STACK_GLOBAL":
                module, attribute = self.take(2)
                stack.append(Stub(f"{expect(module, str)} {expect(attribute, str)}"))
            case "REDUCE":
                stack.append(self.call(*self.take(2)))
            case "NEWOBJ" | "NEWOBJ_EX":
                kind, *_ = self.take(2 if name == "NEWOBJ" else 3)
                stack.append(Stub(expect(kind, Stub).name))
            case "INST" | "OBJ":
                arguments = self.take()
                stack.append(Stub(argument or expect(arguments[0], Stub).name))
            case "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], dict | list):  # their attributes are not weights
                    expect(stack[-1], Stub).state = state
            case "PERSID" | "BINPERSID" if self.persistent:
                stack.append(self.persistent(stack.pop() if argument is None else argument))
            case _:
                raise UnsafePickleError(f"it has the instruction {name}, which arrays are not made with")


def set_items(target: dict, pairs: Iterator[tuple[Any, Any]]) -> None:
    """Sets the items of a dict; a key that is neither text nor a number becomes a stub."""
    for key, value in pairs:  # to hash deeply nested tuples overflows
        target[key if isinstance(key, str | bytes | int | float | None) else Stub("key")] = value


def expect(value: Any, kind: Any) -> Any:
    """Returns a value of the given kind; refuses any other."""
    if not isinstance(value, kind):
        raise UnsafePickleError("an instruction meets a value of another kind than it needs")
    return value
