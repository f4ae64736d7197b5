"""Reads and writes files of weights: named arrays, in the formats of other libraries.

Such files come from the internet. Nothing in them is executed, and sizes that they state are checked against
the bytes that they hold before memory is allocated.
"""

import contextlib
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights import safe_pickle

_WRAPPERS = ("model", "state_dict", "blobs")  # keys of the weights in checkpoints
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_MAX_DEFLATE = 1032  # the largest factor by which the compression of a zip file makes anything smaller


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a file, by name.

    Args:
        path: .pth or .pt of PyTorch (which must be installed), .safetensors, .npz, or .pkl of Detectron2 or
            the original Detectron. Of a checkpoint the dict "model", "state_dict" or "blobs" is read.

    Returns:
        Floating-point arrays as float32, integers and booleans as they are, in the machine's byte order;
        single numbers have the shape (). They may be read-only. Caffe2's momentum ("..._momentum") and its
        list "weight_order" are left out.

    Raises:
        InputError: the file is missing, damaged, of an unknown format, holds other things than weights, or
            weights that are not finite.
    """
    path = Path(path)
    read = _get_function(path, "read")
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty")
    try:
        content = _unwrap(path, read(path))
        # One small array under many names, or broadcast along an axis, must not fill the memory. _read_npz,
        # whose files may be compressed, checks its own sizes.
        size = sum(getattr(value, "nbytes", 0) for value in content.values())
        if path.suffix.lower() != ".npz" and size > 2 * path.stat().st_size:
            raise InputError(f"{path} holds tensors that are larger than the file")
        tensors = {name: value for name, value in content.items() if not _is_caffe2_state(name, value)}
        return _check_and_convert(path, {name: _from_torch(value) for name, value in tensors.items()})
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # the libraries do not document what they raise for damaged files
        reason = _one_line(error) or type(error).__name__
        raise InputError(f"{path} is damaged, or not a {path.suffix} file of weights: {reason}") from error


def write_tensors(path: str | os.PathLike, tensors: dict[str, np.ndarray]) -> None:
    """Writes tensors, with the dtypes that ``read_tensors`` returns, to a .pth, .pt, .safetensors or .npz
    file.

    The file replaces an older one when it is complete. Its folder is created.

    Raises:
        InputError: an unknown format, a folder that cannot be written to, values that are not finite numbers.
    """
    path = Path(path)
    write = _get_function(path, "write")
    tensors = _check_and_convert(path, tensors)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part, tensors)
        part.replace(path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or _one_line(error)
        raise InputError(f"{path} cannot be written: {reason}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


def _unwrap(path: Path, content: Any) -> dict:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a dict of tensors, not a {type(content).__name__}")
    return content


def _is_caffe2_state(name: Any, value: Any) -> bool:
    if name == "weight_order":
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    return isinstance(name, str) and name.endswith("_momentum")


def _check_and_convert(path: Path, tensors: dict) -> dict[str, np.ndarray]:
    """Converts tensors to arrays of float32, integers or booleans in the machine's byte order."""
    if not tensors:
        raise InputError(f"{path} has no tensors")
    wrong = [name for name, value in tensors.items() if not isinstance(name, str) or not _is_real(value)]
    if wrong:
        raise InputError(f"{path}: weights must be named arrays of real numbers, unlike {_list(wrong)}")
    with np.errstate(over="ignore"):  # of float64 beyond float32, which is reported below
        arrays = {name: _to_array(value) for name, value in tensors.items()}
    wrong = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if wrong:
        raise InputError(f"{path}: weights must be finite in float32, unlike {_list(wrong)}")
    return arrays


def _is_real(value: Any) -> bool:
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biu" or value.dtype.name in _FLOATS
    return isinstance(value, bool | float) or (isinstance(value, int) and -(2**63) <= value < 2**63)


def _to_array(value: Any) -> np.ndarray:
    array = np.asarray(value)
    dtype = array.dtype.newbyteorder("=") if array.dtype.kind in "biu" else np.float32
    return np.asarray(array, dtype, order="C")


def _list(names: list) -> str:
    """Lists names, which may be anything, for a message."""
    def show(name):
        return ascii(name[:80])[1:-1] if isinstance(name, str) else f"a name of type {type(name).__name__}"

    return ", ".join(map(show, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        advice = 'pip install "mrcnn_jax[torch]"; .safetensors and .npz do not need it'
        raise InputError(f"{path}: {path.suffix} files need PyTorch: {advice}") from None
    return torch


def _read_torch(path: Path) -> Any:
    try:
        return _import_torch(path).load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to load the file unsafely
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it names {named[1]}" if named else "its pickle is damaged or holds other objects"
        raise InputError(f"{path} cannot be read as tensors alone: {reason}") from None


def _from_torch(value: Any) -> Any:
    """Converts a tensor of PyTorch to an array, and returns anything else as it is."""
    if not hasattr(value, "is_floating_point"):
        return value
    return (value.detach().float() if value.is_floating_point() else value.detach()).numpy()


def _write_torch(path: Path, tensors: dict[str, np.ndarray]) -> None:
    torch = _import_torch(path)
    torch.save({name: torch.from_numpy(array.copy()) for name, array in tensors.items()}, path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        stored = sum(member.compress_size for member in members)
        if len(set(archive.namelist())) < len(members) or stored > path.stat().st_size:
            raise ValueError("its members share names or bytes")
        for member in members:
            _check_npz_member(archive, member)
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _check_npz_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Checks that a member is an array of numbers whose shape fits its size; ValueError otherwise."""
    name = _list([member.filename])
    with archive.open(member) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):  # later versions are for structured arrays
            raise ValueError(f"{name} is not an array of numbers")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.kind not in "biuf" or min(shape, default=0) < 0:
            raise ValueError(f"{name} is not an array of numbers")
        size = stream.tell() + math.prod(shape) * dtype.itemsize
        if size != member.file_size or size > _MAX_DEFLATE * member.compress_size:
            raise ValueError(f"{name} is not as large as its shape")


def _write_npz(path: Path, tensors: dict[str, np.ndarray]) -> None:
    with zipfile.ZipFile(path, "w") as archive:  # np.savez takes some names for its own arguments
        for name, array in tensors.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


class _Format(NamedTuple):
    read: Callable[[Path], Any]
    write: Callable[[Path, dict[str, np.ndarray]], None] | None


_FORMATS = {
    ".pth": _Format(_read_torch, _write_torch),
    ".pt": _Format(_read_torch, _write_torch),
    ".safetensors": _Format(
        safetensors.numpy.load_file, lambda path, tensors: safetensors.numpy.save_file(tensors, path)
    ),
    ".npz": _Format(_read_npz, _write_npz),
    ".pkl": _Format(lambda path: safe_pickle.load(path.read_bytes(), str(path)), None),
}


def _get_function(path: Path, purpose: str) -> Callable:
    """Returns the function that reads or writes files with this suffix. ``purpose`` is a field of _Format."""
    functions = {suffix: getattr(entry, purpose) for suffix, entry in _FORMATS.items()}
    allowed = [suffix for suffix, function in functions.items() if function]
    if path.suffix.lower() not in allowed:
        raise InputError(f"{path}: the suffix of weights to {purpose} must be one of {', '.join(allowed)}")
    return functions[path.suffix.lower()]
