"""Files of weights, as other libraries publish them: names and arrays.

Such files come from the internet. Nothing in them is executed, and no size that they state is believed before the bytes are found.
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
from mrcnn_jax.weights import pickles

_WRAPPERS = ("model", "state_dict", "blobs")  # where checkpoints keep their weights, beside the optimiser's state and texts
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_DEFLATE = 1032  # no compression in a zip file makes anything smaller than by this factor


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file, by name.

    Args:
        path: a .pth or .pt file of PyTorch (which must be installed), a .safetensors file, an .npz file, or a .pkl file of Detectron2 or the original
            Detectron. In a checkpoint it is the dict "model", "state_dict" or "blobs" that counts.

    Returns:
        float32 for all floating-point types, integers and booleans as they are, in the machine's byte order; single numbers have the shape (). They
        may be read-only. Caffe2's momentum ("..._momentum") and its list "weight_order" are left out.

    Raises:
        InputError: the file is missing, damaged, of another kind or not weights alone; or some of them are not finite.
    """
    path = Path(path)
    read = _function(path, "read")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty.")
    try:
        content = _unwrapped(path, read(path))
        # One small array under many names, or repeated along an axis, is a bomb. An .npz file may be compressed; there it was looked for.
        if path.suffix.lower() != ".npz" and sum(getattr(value, "nbytes", 0) for value in content.values()) > 2 * path.stat().st_size:
            raise InputError(f"{path}: its tensors are larger than the file.")
        return _checked(path, {name: _to_numpy(value) for name, value in content.items() if not _is_caffe2_state(name, value)})
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # of whatever kind: what the libraries raise for damaged files is not documented
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise InputError(f"{path} is damaged, or no {path.suffix} file of weights: {reason}.") from error


def write_tensors(path: str | os.PathLike, tensors: dict[str, np.ndarray]) -> None:
    """Writes tensors, in the types that ``read_tensors`` returns, to a .pth, .pt (with PyTorch), .safetensors or .npz file.

    The file appears under its name when it is complete, and only then replaces an older one. Its folder is created.

    Raises:
        InputError: another kind of file, a folder that cannot be written to, values that are not finite or not numbers.
    """
    path = Path(path)
    write = _function(path, "write")
    tensors = _checked(path, tensors)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part, tensors)
        part.replace(path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(f"{path} cannot be written: {reason}.") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _unwrapped(path: Path, content: Any) -> dict:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no dict of tensors, but a {type(content).__name__}.")
    return content


def _is_caffe2_state(name: Any, value: Any) -> bool:
    if name == "weight_order":
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    return isinstance(name, str) and name.endswith("_momentum")


def _checked(path: Path, tensors: dict) -> dict[str, np.ndarray]:
    """The tensors as arrays of float32, integers or booleans in the machine's byte order."""
    if not tensors:
        raise InputError(f"{path}: there are no tensors.")
    wrong = [name for name, value in tensors.items() if not isinstance(name, str) or not _is_number(value)]
    if wrong:
        raise InputError(f"{path}: weights are named arrays of real numbers, but these are not: {_list(wrong)}.")
    with np.errstate(over="ignore"):  # of float64 beyond float32, which is reported below
        arrays = {name: _array(value) for name, value in tensors.items()}
    wrong = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if wrong:
        raise InputError(f"{path}: weights are finite in float32, but these are not: {_list(wrong)}.")
    return arrays


def _is_number(value: Any) -> bool:
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biu" or value.dtype.name in _FLOATS
    return isinstance(value, bool | float) or (isinstance(value, int) and -(2**63) <= value < 2**63)


def _array(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return np.asarray(array, array.dtype.newbyteorder("=") if array.dtype.kind in "biu" else np.float32, order="C")


def _list(names: list) -> str:
    """Names, which may be anything, for a message."""
    shown = [ascii(name[:80])[1:-1] if isinstance(name, str) else f"a name of type {type(name).__name__}" for name in names[:5]]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(f'{path}: .pth needs pip install "mrcnn_jax[torch]"; .safetensors and .npz do not.') from None
    return torch


def _read_torch(path: Path) -> Any:
    try:
        return _torch(path).load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose text advises to read the file all the same, and so to execute it
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it names {named[1]}, which is no part of tensors" if named else "its pickle is damaged or holds more"
        raise InputError(f"{path} cannot be read as tensors alone: {reason}.") from None


def _to_numpy(value: Any) -> Any:
    """An array for a tensor of PyTorch, anything else as it is."""
    if not hasattr(value, "is_floating_point"):
        return value
    return (value.detach().float() if value.is_floating_point() else value.detach()).numpy()


def _write_torch(path: Path, tensors: dict[str, np.ndarray]) -> None:
    torch = _torch(path)
    torch.save({name: torch.from_numpy(array.copy()) for name, array in tensors.items()}, path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(set(archive.namelist())) < len(members) or sum(member.compress_size for member in members) > path.stat().st_size:
            raise ValueError("its members share names or bytes")
        for member in members:
            with archive.open(member) as stream:
                if np.lib.format.read_magic(stream) != (1, 0):  # later versions are for what is no array of numbers
                    raise ValueError(f"{_list([member.filename])} is no array of numbers")
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
                if dtype.kind not in "biuf" or min(shape, default=0) < 0:
                    raise ValueError(f"{_list([member.filename])} is no array of numbers")
                size = stream.tell() + math.prod(shape) * dtype.itemsize
                if size != member.file_size or size > _DEFLATE * member.compress_size:
                    raise ValueError(f"{_list([member.filename])} is not as large as its shape")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _write_npz(path: Path, tensors: dict[str, np.ndarray]) -> None:
    with zipfile.ZipFile(path, "w") as archive:  # np.savez takes some names for its own arguments
        for name, array in tensors.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def _read_pickle(path: Path) -> Any:
    return pickles.load(path.read_bytes(), str(path))


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(tensors, path)


class _Format(NamedTuple):
    read: Callable[[Path], Any]
    write: Callable[[Path, dict[str, np.ndarray]], None] | None


_FORMATS = {
    ".pth": _Format(_read_torch, _write_torch),
    ".pt": _Format(_read_torch, _write_torch),
    ".safetensors": _Format(safetensors.numpy.load_file, _write_safetensors),
    ".npz": _Format(_read_npz, _write_npz),
    ".pkl": _Format(_read_pickle, None),
}


def _function(path: Path, purpose: str) -> Callable:
    """What reads or writes files with this suffix. ``purpose``: a field of _Format."""
    functions = {suffix: getattr(format_, purpose) for suffix, format_ in _FORMATS.items() if getattr(format_, purpose)}
    if path.suffix.lower() not in functions:
        raise InputError(f"{path}: its suffix is none of {', '.join(functions)}, which are the files of weights to {purpose}.")
    return functions[path.suffix.lower()]
