"""Reads and writes PyTorch's files of tensors without PyTorch.

Since PyTorch 1.6 a file is a zip archive: a pickle ``data.pkl``, whose persistent ids name storages, and the
storages' bytes as ``data/KEY``. Before, four pickles (a magic number, a version, the machine, the content)
preceded the keys of the storages, and for each its number of elements and its bytes.
"""

import io
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from mrcnn_jax.weights import pickled_arrays
from mrcnn_jax.weights.pickled_arrays import LazyArray, are_sizes
from mrcnn_jax.weights.safe_pickle import Stub, UnsafePickleError, expect, load

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "Float": "f4", "Double": "f8", "Half": "f2", "Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1",
    "Byte": "u1", "Bool": "?", "Untyped": "u1", "BFloat16": ml_dtypes.bfloat16, "ComplexFloat": "c8",
    "ComplexDouble": "c16", "QInt8": "V1", "QUInt8": "V1", "QInt32": "V4",
}  # fmt: skip
"""Types of storages; the last, of quantised numbers, are void."""


@dataclass(eq=False)
class _Storage:
    """A run of numbers that tensors are views of."""

    dtype: np.dtype
    size: int
    read_bytes: Callable[[], bytes] | None = None
    little_endian: bool = True

    @cached_property
    def numbers(self) -> np.ndarray:
        if self.read_bytes is None:
            raise UnsafePickleError("the bytes of a tensor are missing")
        data = self.read_bytes()
        if len(data) != self.size * self.dtype.itemsize:
            given = f"{len(data)} bytes instead of {self.size} numbers"
            raise UnsafePickleError(f"a tensor's storage has {given}")
        if not self.little_endian and self.dtype.itemsize > 1:
            data = np.frombuffer(data, f">u{self.dtype.itemsize}").astype(f"u{self.dtype.itemsize}").tobytes()
        return np.frombuffer(data, self.dtype)


class _Tensor(LazyArray):
    """A strided view of a storage."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: str | None = None):
        super().__init__("torch.Tensor")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides
        self.dtype = np.dtype(dtype) if dtype else None  # in place of an untyped storage's

    def nbytes(self) -> int:
        storage, shape, strides = expect(self.storage, _Storage), self.shape, self.strides
        if not (are_sizes(shape) and are_sizes(strides) and len(shape) == len(strides)):
            raise UnsafePickleError("a tensor's shape or strides are not made of non-negative integers")
        dtype = self.dtype or storage.dtype
        if dtype.kind not in "biuf" and dtype != ml_dtypes.bfloat16:
            raise UnsafePickleError("a tensor is quantised" if dtype.kind == "V" else "a tensor is complex")
        last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        count = storage.size * storage.dtype.itemsize // dtype.itemsize
        if not are_sizes((self.offset,)) or (math.prod(shape) and self.offset + last >= count):
            raise UnsafePickleError(f"a tensor of shape {shape} exceeds its storage of {count} numbers")
        return math.prod(shape) * dtype.itemsize

    def read(self) -> np.ndarray:
        size = self.nbytes()
        dtype = self.dtype or self.storage.dtype
        if not size:
            return np.zeros(self.shape, dtype)
        numbers = self.storage.numbers.view(dtype)[self.offset :]
        strides = [stride * dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers, self.shape, strides, writeable=False)


def _rebuild_typed(storage, offset, shape, strides, grad, hooks, dtype, metadata=None) -> Stub:
    name = expect(dtype, Stub).name.removeprefix("torch ")
    known = name in ("uint16", "uint32", "uint64")
    return _Tensor(storage, offset, shape, strides, name) if known else Stub(f"torch.{name}")


def _rebuild_subclass(function: Stub, kind: Any, arguments: tuple, state: Any) -> Any:
    return _CALLS.get(function.name, lambda *_: function)(*arguments)


_CALLS: dict[str, Callable] = {
    **pickled_arrays.CALLS,
    "torch._utils _rebuild_tensor": _Tensor,
    "torch._utils _rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: _Tensor(
        storage, offset, shape, strides
    ),
    "torch._utils _rebuild_tensor_v3": _rebuild_typed,
    "torch._utils _rebuild_parameter": lambda data, *_: data,
    "torch._utils _rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils _rebuild_device_tensor_from_numpy": lambda array, *_: array,
    "torch._tensor _rebuild_from_type_v2": _rebuild_subclass,
    "torch._utils _rebuild_qtensor": lambda *_: Stub("quantised"),
    "torch._utils _rebuild_sparse_tensor": lambda *_: Stub("sparse"),
}


def _storage_type(kind: Any) -> np.dtype:
    """Returns the dtype of a class such as "torch FloatStorage"."""
    name = expect(kind, Stub).name.split()[-1].removesuffix("Storage")
    if name not in _DTYPES:
        raise UnsafePickleError(f"it has a storage of the type {pickled_arrays.to_text(name)}")
    return np.dtype(_DTYPES[name])


@contextmanager
def open_archive(archive: zipfile.ZipFile, name: str) -> Iterator[Any]:
    """Yields the content of a zip archive of PyTorch; its tensors are read while the archive is open."""
    prefix = find_prefix(archive.namelist())
    order = f"{prefix}byteorder"
    little_endian = order not in archive.NameToInfo or archive.read(order) != b"big"
    storages: dict[str, _Storage] = {}

    def find_storage(pid: Any) -> _Storage:
        tag, kind, key, _, size, *_ = expect(pid, tuple)
        if tag != "storage" or not are_sizes((size,)):
            raise UnsafePickleError("it has a persistent id that is no storage's")
        member, dtype = f"{prefix}data/{expect(key, str)}", _storage_type(kind)
        if key not in storages:
            stored = member in archive.NameToInfo
            read = (lambda: archive.read(member)) if stored else None
            storages[key] = _Storage(dtype, size, read, little_endian)
        return storages[key]

    with archive.open(f"{prefix}data.pkl") as file:
        data = file.read()
    yield load(io.BytesIO(data), name, _CALLS, find_storage)


def find_prefix(names: list[str]) -> str | None:
    """Returns the folder of ``data.pkl`` in an archive of PyTorch, or None in any other archive."""
    pickles = [member for member in names if member.rpartition("/")[2] == "data.pkl"]
    return min(pickles, key=len).removesuffix("data.pkl") if pickles else None


def load_pickles(stream: BinaryIO, name: str) -> Any:
    """Returns the content of a pickle of arrays, or of a file of PyTorch before 1.6."""
    content = load(stream, name, _CALLS)
    if content != LEGACY_MAGIC:
        return content
    storages: dict[str, _Storage] = {}

    def find_storage(pid: Any) -> Any:
        if expect(pid, tuple)[0] == "module":  # a class and its source
            return pid[1]
        tag, kind, key, _, size, view = pid
        if tag != "storage" or view is not None or not are_sizes((size,)):
            raise UnsafePickleError("it has a persistent id that is no storage's")
        return storages.setdefault(expect(key, str), _Storage(_storage_type(kind), size))

    _, machine = load(stream, name, _CALLS), load(stream, name, _CALLS)
    content = load(stream, name, _CALLS, find_storage)
    keys = load(stream, name, _CALLS)
    position = stream.tell()
    end = stream.seek(0, 2) or stream.tell()
    for key in expect(keys, list):
        storage = storages[key]
        storage.little_endian = machine.get("little_endian") is not False
        data, size = position + 8, storage.size * storage.dtype.itemsize  # after the number of elements
        position = data + size
        if position > end:
            raise UnsafePickleError("it is truncated")
        storage.read_bytes = lambda data=data, size=size: _read_at(stream, data, size)
    return content


def _read_at(stream: BinaryIO, position: int, size: int) -> bytes:
    stream.seek(position)
    return stream.read(size)


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes tensors as ``torch.save`` does; ``torch.load(weights_only=True)`` reads them."""
    kinds = {np.dtype(code): f"{kind}Storage" for kind, code in _DTYPES.items() if kind != "Untyped"}
    program = [b"\x80\x02}("]
    with zipfile.ZipFile(path, "w") as archive:
        for key, (name, array) in enumerate(tensors.items()):
            if array.dtype not in kinds:
                raise ValueError(f"{name} is of {array.dtype}, which PyTorch's files do not have")
            strides = (stride // array.itemsize for stride in array.strides)
            program += [
                _text(name), b"ctorch._utils\n_rebuild_tensor_v2\n((", _text("storage"),
                b"ctorch\n%s\n" % kinds[array.dtype].encode(), _text(str(key)), _text("cpu"),
                _integers([array.size]), b"tQK\0(", _integers(array.shape), b"t(", _integers(strides), b"t",
                b"\x89ccollections\nOrderedDict\n)RtR",
            ]  # fmt: skip
            with archive.open(f"weights/data/{key}", "w", force_zip64=True) as stream:
                stream.write(array.tobytes())
        archive.writestr("weights/data.pkl", b"".join([*program, b"u."]))
        archive.writestr("weights/byteorder", "little")
        archive.writestr("weights/version", "3\n")


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def _integers(numbers: Iterable[int]) -> bytes:
    return b"".join(b"\x8a\x08" + int(number).to_bytes(8, "little") for number in numbers)
