"""Damaged and hostile weight files are refused without executing anything or using memory."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from memory import peak_bytes
from weight_files import READ, Harmful, assert_refused, pickled, same, tensors, write

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights.readers import read_tensors


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@pytest.mark.parametrize("suffix", READ)
def test_read_tensors_refuses_damaged_files(suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    assert_refused(path, "there is no file")
    path.mkdir()
    assert_refused(path, "is a folder: give the file of weights in it")
    path.rmdir()
    path.write_bytes(b"")
    assert_refused(path, "is empty")
    write(path, tensors())
    whole = path.read_bytes()
    for content in [
        b"\0",
        b"\0" * 1000,
        b"\xff" * 1000,
        b"<html>Not Found</html>\n",
        np.random.default_rng(0).bytes(3000),
        whole[1:],
    ]:
        path.write_bytes(content)
        assert_refused(path)
    for end in np.linspace(1, len(whole) - 1, 23).astype(int):
        path.write_bytes(whole[:end])
        assert_refused(path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_read_tensors_raises_only_input_errors_for_damage(suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    write(path, tensors())
    whole, rng, refusals = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 5):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read_tensors(path)
        except InputError:
            refusals += 1
    assert refusals > 50


def test_reading_a_pickle_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = pickled(tmp_path, {"model": {"a": np.ones(2), "b": Harmful()}})
    assert_refused(path, r"unlike b \((posix|nt)\.system\)")
    assert not Path("ran").exists()
    pickle.loads(path.read_bytes())
    assert Path("ran").exists()


def test_reading_an_npz_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.npz"
    np.savez(path, a=np.ones(2), b=np.array([Harmful()], object))
    assert_refused(path, "b.npy is not an array of numbers")
    assert not Path("ran").exists()
    with np.load(path, allow_pickle=True) as arrays:
        dict(arrays)
    assert Path("ran").exists()


def test_read_tensors_refuses_one_array_under_many_names(tmp_path):
    half = np.ones(100_000, np.float16)
    assert len(read_tensors(pickled(tmp_path, {f"{i}": half for i in range(2)}))) == 2
    path = pickled(tmp_path, {f"{i}": half for i in range(1000)})
    assert peak_bytes(lambda: assert_refused(path, "larger than the file")) < 3_000_000


def member(array: np.ndarray, **header) -> bytes:
    """An .npy member with a false header."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array) | header)
    return stream.getvalue() + array.tobytes()


HEADERS = [
    ({"shape": (10**13,)}, "not as large as its shape"),
    ({"shape": (2**62, 2**62)}, "not as large as its shape"),
    ({"shape": (3,)}, "not as large as its shape"),
    ({"shape": (5,)}, "not as large as its shape"),
    ({"shape": ()}, "not as large as its shape"),
    ({"shape": (-4,)}, "not an array of numbers"),
    ({"shape": (-2, -2)}, "not an array of numbers"),
    ({"shape": [4]}, "shape is not valid"),
    ({"shape": (4.0,)}, "shape is not valid"),
    ({"descr": "|O"}, "not an array of numbers"),
    ({"descr": "<c8", "shape": (2,)}, "not an array of numbers"),
    ({"descr": [("a", "<f4")]}, "not an array of numbers"),
    ({"descr": "<f8"}, "not as large as its shape"),
    ({"descr": "V1000000000"}, "not an array of numbers"),
]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("header, reason", HEADERS)
def test_npz_with_false_headers_is_refused(header, reason, compression, tmp_path):
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("good.npy", member(np.ones(3, "f4")))
        archive.writestr("bad.npy", member(np.ones(4, "f4"), **header))
    assert peak_bytes(lambda: assert_refused(path, reason)) < 1_000_000


def test_npz_with_false_sizes_is_refused(tmp_path):
    """The directory at the end of a zip file, which states sizes too, agrees with the false header."""
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad.npy", member(np.ones(4, "f4"), shape=(10**9,)))
    data = path.read_bytes()
    entry = data.index(b"PK\x01\x02")
    size = len(member(np.ones(0, "f4"), shape=(10**9,))) + 4 * 10**9
    path.write_bytes(data[: entry + 24] + struct.pack("<I", size) + data[entry + 28 :])
    assert peak_bytes(lambda: assert_refused(path, "too large for an archive")) < 1_000_000


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_npz_with_other_members_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    for name, content, reason in [
        ("a.npy", member(np.ones(4, "f4")), "share names"),
        ("cfg.txt", b"text", "magic string"),
        ("v2.npy", b"\x93NUMPY\x02\x00" + b"\xff\xff\xff\xff" + b"{", "not an array of numbers"),
        ("empty.npy", b"", ""),
        ("folder/", b"", ""),
    ]:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", member(np.ones(4, "f4")))
            archive.writestr(name, content)
        assert_refused(path, reason)


def test_npz_whose_members_share_bytes_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", member(np.ones(400, "f4")))
        archive.filelist += [info := zipfile.ZipInfo("b.npy")]
        for field in ("header_offset", "compress_size", "file_size", "CRC"):
            setattr(info, field, getattr(archive.filelist[0], field))
    assert_refused(path, "share names or bytes")


def test_compressed_npz_is_read(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez_compressed(path, zeros=np.zeros((100, 1000), "f4"), a=np.float32([1, 2]))
    assert read_tensors(path)["zeros"].shape == (100, 1000)
    assert path.stat().st_size < 2000


def test_bfloat16_safetensors_are_read_as_float32(tmp_path):
    path = tmp_path / "weights.safetensors"
    values = np.float32([1.5, -2])
    safetensors.numpy.save_file(
        {"a": values.astype(ml_dtypes.bfloat16), "b": values.astype(np.float16)}, path
    )
    assert same(read_tensors(path), {"a": values, "b": values})


@pytest.mark.parametrize(
    "header, size",
    [
        ('{"a":{"dtype":"F32","shape":[10000000000000],"data_offsets":[0,8]}}', None),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,40000000000000]}}', None),
        ('{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', None),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', None),
        (
            '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            '"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            None,
        ),
        ('{"a":{"dtype":"O","shape":[1],"data_offsets":[0,8]}}', None),
        ('{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}', None),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}', None),
        ("[" * 100_000, None),
        ("{}", 2**60),
        ("{}", 2**64 - 1),
    ],
)
def test_safetensors_with_false_headers_are_refused(header, size, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes((size or len(header)).to_bytes(8, "little") + header.encode() + bytes(8))
    assert peak_bytes(lambda: assert_refused(path)) < 1_000_000
