"""Reads and writes files of weights: named arrays, in the formats of other libraries.

Such files come from the internet. Nothing in them is executed, and sizes that they state are checked against
the bytes that they hold before memory is allocated.
"""

import contextlib
import math
import mmap
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from mrcnn_jax.errors import InputError
from mrcnn_jax.messages import listed
from mrcnn_jax.weights import torch_files
from mrcnn_jax.weights.checkpoints import find_weights
from mrcnn_jax.weights.formats import recognize_format
from mrcnn_jax.weights.pickled_arrays import LazyArray, to_text
from mrcnn_jax.weights.safe_pickle import Stub

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_LARGEST_EXPANSION = 10
"""Times the size of a zip archive that its content may have, beyond ``_EXPANSION_ALLOWED`` bytes."""
_EXPANSION_ALLOWED = 100_000_000


class Weights(NamedTuple):
    """Content of a file of weights."""

    tensors: dict[str, np.ndarray]
    notes: list[str]
    """Sentences on what else the file holds."""


def read_weights(path: str | os.PathLike, key: str | None = None) -> Weights:
    """Reads the tensors of a file, by name.

    Args:
        path: a file of PyTorch, .safetensors, .npz, or .pkl of Detectron2 or the original Detectron,
            recognised by its content. Of a checkpoint of a training script the weights are read.
        key: path of the weights in a checkpoint that holds several.

    Returns:
        Floating-point arrays as float32, integers and booleans as they are, in the machine's byte order;
        single numbers have the shape (). They may be read-only. Caffe2's momentum ("..._momentum") and its
        list "weight_order" are left out.

    Raises:
        InputError: the file is missing, damaged, of another format, holds other things than weights, or
            weights that are not finite.
    """
    path = Path(path)
    try:
        with _READERS[recognize_format(path)](path) as content:
            found, notes = find_weights(content, str(path), key)
            tensors = {name: value for name, value in found.items() if not _is_caffe2_state(name, value)}
            return Weights(_check_and_convert(path, tensors), notes)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # the libraries do not document what they raise for damaged files
        reason = _one_line(error) or type(error).__name__
        raise InputError(f"{path} is damaged, or not a file of weights: {reason}") from error


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a file, by name; see ``read_weights``."""
    return read_weights(path).tensors


def require_suffix(path: Path) -> None:
    """Raises InputError for a file that ``write_tensors`` has no format for."""
    if path.suffix.lower() not in _WRITERS:
        allowed = ", ".join(_WRITERS)
        raise InputError(f"{path}: the suffix of weights to write must be one of {allowed}")


def write_tensors(
    path: str | os.PathLike, tensors: dict[str, np.ndarray],
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Writes tensors, with the dtypes that ``read_tensors`` returns, to a .pth, .pt, .safetensors or .npz
    file.

    The file replaces an older one when it is complete. Its folder is created. Only .safetensors has metadata.

    Raises:
        InputError: an unknown format, a folder that cannot be written to, values that are not finite numbers.
    """
    path = Path(path)
    require_suffix(path)
    tensors = _check_and_convert(path, tensors)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode
        if metadata:
            safetensors.numpy.save_file(tensors, part, dict(metadata))
        else:
            _WRITERS[path.suffix.lower()](part, tensors)
        if part.stat().st_mode != mode:  # safetensors writes files that no other user may read
            part.chmod(mode)
        part.replace(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or _one_line(error)
        raise InputError(f"{path} cannot be written: {reason}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _one_line(error: Exception) -> str:
    return ascii(" ".join(str(error).split())[:200].rstrip("."))[1:-1]


def _is_caffe2_state(name: Any, value: Any) -> bool:
    if name == "weight_order":
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    return isinstance(name, str) and name.endswith("_momentum")


def _check_and_convert(path: Path, tensors: dict) -> dict[str, np.ndarray]:
    """Converts tensors to arrays of float32, integers or booleans in the machine's byte order."""
    if not tensors:
        raise InputError(f"{path} has no tensors")
    wrong = {
        name: value for name, value in tensors.items() if not isinstance(name, str) or not _is_real(value)
    }
    if wrong:
        raise InputError(f"{path}: weights must be named arrays of real numbers, unlike {_list(wrong)}")
    _check_size(path, tensors)
    with np.errstate(over="ignore"):  # of float64 beyond float32, which is reported below
        arrays = {name: _to_array(path, name, value) for name, value in tensors.items()}
    wrong = {name: None for name, array in arrays.items() if not np.isfinite(array).all()}
    if wrong:
        raise InputError(f"{path}: weights must be finite in float32, unlike {_list(wrong)}")
    return arrays


def _check_size(path: Path, tensors: dict) -> None:
    """Refuses one small array under many names, or broadcast along an axis, which would fill the memory."""
    size = 0
    for name, value in tensors.items():
        if isinstance(value, LazyArray):
            with _named(path, name):
                size += value.nbytes()
    if size and size > 2 * path.stat().st_size + 1000:
        raise InputError(f"{path} holds tensors that are larger than the file")


@contextlib.contextmanager
def _named(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError(f"{path}: {_list({name: None})} cannot be read: {_one_line(error)}") from error


def _is_real(value: Any) -> bool:
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biu" or value.dtype.name in _FLOATS
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return False
    return isinstance(value, bool | float | int | LazyArray)


def _to_array(path: Path, name: str, value: Any) -> np.ndarray:
    if isinstance(value, LazyArray):
        with _named(path, name):
            value = value.read()
    array = np.asarray(value)
    dtype = array.dtype.newbyteorder("=") if array.dtype.kind in "biu" else np.float32
    return np.asarray(array, dtype, order="C")


def _list(values: dict) -> str:
    """Lists names, which may be anything, for a message; with the kinds of values that are not made."""
    def show(name, value):
        shown = to_text(name) if isinstance(name, str) else f"a name of type {type(name).__name__}"
        is_object = isinstance(value, Stub) and not isinstance(value, LazyArray)
        return f"{shown} ({to_text(value.name.replace(' ', '.'))})" if is_object else shown

    return listed([show(*item) for item in values.items()], 5, counted=True)


@contextlib.contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Yields a zip archive whose members were found to fit into it."""
    with zipfile.ZipFile(path) as archive:
        members, size = archive.infolist(), path.stat().st_size
        stored = sum(member.compress_size for member in members)
        if len(set(archive.namelist())) < len(members) or stored > size:
            raise ValueError("its members share names or bytes")
        if sum(member.file_size for member in members) > _EXPANSION_ALLOWED + _LARGEST_EXPANSION * size:
            raise ValueError("its members are too large for an archive of its size")
        yield archive


@contextlib.contextmanager
def _read_torch(path: Path) -> Iterator[Any]:
    with _open_archive(path) as archive, torch_files.open_archive(archive, str(path)) as content:
        yield content


@contextlib.contextmanager
def _read_pickle(path: Path) -> Iterator[Any]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        yield torch_files.load_pickles(stream, str(path))


@contextlib.contextmanager
def _read_npz(path: Path) -> Iterator[dict[str, np.ndarray]]:
    with _open_archive(path) as archive:
        for member in archive.infolist():
            _check_npz_member(archive, member)
    with np.load(path, allow_pickle=False) as arrays:
        yield dict(arrays)


def _check_npz_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Checks that a member is an array of numbers whose shape fits its size; ValueError otherwise."""
    name = to_text(member.filename)
    with archive.open(member) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):  # later versions are for structured arrays
            raise ValueError(f"{name} is not an array of numbers")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.kind not in "biuf" or min(shape, default=0) < 0:
            raise ValueError(f"{name} is not an array of numbers")
        if stream.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{name} is not as large as its shape")


def _write_npz(path: Path, tensors: dict[str, np.ndarray]) -> None:
    with zipfile.ZipFile(path, "w") as archive:  # np.savez takes some names for its own arguments
        for name, array in tensors.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


_READERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Any]]] = {
    "torch": _read_torch,
    "pickle": _read_pickle,
    "npz": _read_npz,
    "safetensors": lambda path: contextlib.nullcontext(safetensors.numpy.load_file(path)),
}
_WRITERS: dict[str, Callable[[Path, dict[str, np.ndarray]], None]] = {
    ".pth": torch_files.write,
    ".pt": torch_files.write,
    ".safetensors": lambda path, tensors: safetensors.numpy.save_file(tensors, path),
    ".npz": _write_npz,
}
