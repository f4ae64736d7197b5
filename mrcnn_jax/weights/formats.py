"""Recognises what a file of weights is by its content, and names what is not read."""

import re
import zipfile
from pathlib import Path

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights.torch_files import find_prefix

READ = "files of PyTorch, Detectron and Detectron2 (.pth, .pkl), .safetensors and .npz"
_CONVERT = "save its weights by name as .npz or .safetensors, or load the published .pth or .pkl"
_UNPACK = "unpack it and give the file of weights in it"
_COMPILED = ("constants.pkl", "bytecode.pkl", "serialized_exported_program.json")
_SIGNATURES: tuple[tuple[bytes, str], ...] = (  # regular expressions of the first bytes
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file itself: load that with `git lfs pull`"),
    (rb"\s*(<!doctype html|<html|<\?xml|<head)", "a web page, not weights: the download has failed; load the "
     "file again, from its direct address"),
    (rb"\x89HDF\r\n\x1a\n", f"an HDF5 file, of Keras or MATLAB, which is not read: {_CONVERT}"),
    (rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a\x42]", f"an ONNX model, which is not read: {_CONVERT}"),
    (rb"....TFL3", f"a TensorFlow Lite model, which is not read: {_CONVERT}"),
    (rb"GGUF", f"a GGUF file, of llama.cpp, which is not read: {_CONVERT}"),
    (rb"\x12\x01\0\0\0\0\0\0", f"a file of MXNet, which is not read: {_CONVERT}"),
    (rb"\x93NUMPY", "a single array of NumPy without a name, not weights"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", f"a compressed file: {_UNPACK}"),
    (rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|II\*\0|MM\0\*", "an image, not weights"),
    (rb"\s*[\[{]\s*[\"\]}{]", "JSON text, not weights"),
)  # fmt: skip
_BY_NAME: tuple[tuple[str, str], ...] = (
    (r".*\.data-\d+-of-\d+|.*\.index|.*\.pb|.*\.pbtxt", f"a file of TensorFlow: {_CONVERT}"),
    (r".*\.(h5|hdf5|keras)", f"a file of Keras, which is not read: {_CONVERT}"),
    (r".*\.(onnx|engine|plan|tflite|mlmodel|xml|bin)", f"an exported model, which is not read: {_CONVERT}"),
    (r".*\.weights", f"a file of Darknet (YOLO), which is not read: {_CONVERT}"),
    (r".*\.(caffemodel|prototxt)", f"a file of Caffe, which is not read: {_CONVERT}"),
    (r".*\.(msgpack|orbax)", f"a file of Flax, which is not read: {_CONVERT}"),
    (r".*\.ya?ml", "a configuration, not weights: give it with --config, after the file of weights"),
)


def recognize_format(path: Path) -> str:
    """Returns "torch", "npz", "safetensors" or "pickle".

    Raises:
        InputError: the file is missing or empty, or is named as what it is instead.
    """
    if path.is_dir():
        raise InputError(f"{path} is {_name_folder(path)}")
    if not path.is_file():
        beside = path.with_name(f"{path.name}.index")
        if beside.exists():
            raise InputError(f"{path} is a checkpoint of TensorFlow, which is not read: {_CONVERT}")
        raise InputError(f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(512)
    size = path.stat().st_size
    if not start:
        raise InputError(f"{path} is empty")
    if start.startswith(b"PK"):
        return _recognize_archive(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return "safetensors"
    for pattern, name in _SIGNATURES:
        if re.match(pattern, start, re.IGNORECASE | re.DOTALL):
            raise InputError(f"{path} is {name}")
    if start[257:262] == b"ustar":
        raise InputError(f"{path} is a tar archive, perhaps of PyTorch before 0.2: {_UNPACK}")
    for pattern, name in _BY_NAME:
        if re.fullmatch(pattern, path.name.lower()):
            raise InputError(f"{path} is {name}")
    if re.match(rb"\x80[\x02-\x05]|\(d|\(l|\]|\}|c[a-z_.]+\n|ccopy", start):
        return "pickle"
    if path.suffix.lower() == ".safetensors":
        raise InputError(f"{path} is damaged: it has no header of .safetensors that fits its {size} bytes")
    if re.fullmatch(rb"[\t\n\r -~]+", start):
        raise InputError(f"{path} is text that starts with {start[:30].decode()!r}, not weights")
    raise InputError(f"{path} is damaged, or of an unknown format; {READ} are read")


def _name_folder(path: Path) -> str:
    if (path / "checkpoints").is_dir() and (path / "experiment.json").is_file():
        return "a run or imported weights already: use the folder as it is, as in `mrcnn predict`"
    if (path / "saved_model.pb").exists() or (path / "checkpoint").exists():
        return f"a model of TensorFlow, which is not read: {_CONVERT}"
    if (path / "data.pkl").exists():
        return "an unpacked file of PyTorch: pack its folder into a zip file again"
    candidates = (".pth", ".pt", ".ckpt", ".pkl", ".safetensors", ".npz")
    names = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in candidates)
    return f"a folder: give the file of weights in it{', such as ' + names[0] if names else ''}"


def _recognize_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path} is a zip archive that is truncated or damaged: load it again") from error
    prefix = find_prefix(names)
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if any(name.endswith(_COMPILED) for name in names):
        raise InputError(f"{path} is a compiled model of PyTorch (TorchScript or torch.export), which is not "
                         "read: save its state_dict() with torch.save")  # fmt: skip
    if prefix is not None:
        return "torch"
    if "model.weights.h5" in names:
        raise InputError(f"{path} is a model of Keras, which is not read: {_CONVERT}")
    held = ", ".join(ascii(name[:80])[1:-1] for name in names[:3]) or "nothing"
    raise InputError(f"{path} is a zip archive of {held}, not of tensors: {_UNPACK}")
