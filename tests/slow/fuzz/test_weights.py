"""Mutated weight files of all kinds are read, or refused in one sentence."""

import io
import pickle
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from fuzz import Campaign
from hypothesis import given
from hypothesis import strategies as st
from weight_files import tensors

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights.identify import identify_model
from mrcnn_jax.weights.readers import read_weights, write_tensors
from mrcnn_jax.weights.torch_files import LEGACY_MAGIC

CAMPAIGN = Campaign("weights", cases=2_000, cases_in_ci=400)
KINDS = ("zip", "legacy", "pickle 0", "pickle 2", "pickle 5", "npz", "safetensors", "checkpoint")
INSTRUCTIONS = [
    *(bytes([code]) for code in b"(.012NRbt\x85\x86\x87eausld}])\x8f\x90\x91\x81Q"),
    b"K\xff", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"G" + b"\xff" * 8, b"X\x01\0\0\0a",
    b"h\0", b"h\x01", b"q\0", b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n", b"cos\nsystem\n",
    b"ctorch\nHalfStorage\n", b"ctorch\nQInt8Storage\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch._tensor\n_rebuild_from_type_v2\n",
]  # fmt: skip
NUMBERS = [b"\xff" * 4, b"\xff" * 7 + b"\x7f", b"\0" * 8]
NAMES = [
    "backbone.body.conv1.weight", "backbone.body.layer1.0.conv1.weight", "rpn.head.cls_logits.bias",
    "conv1_w",
    "stem.conv1.weight", "roi_heads.box_predictor.cls_score.weight", "conv1.bias", "", "a.b", "\ud800", "\0",
]  # fmt: skip


@cache
def archive(kind: str) -> dict[str, bytes]:
    """Returns the members of a zip archive, or one file under the name "" for other kinds."""
    folder = Path(tempfile.mkdtemp())
    few = dict(list(tensors().items())[:3]) | {"rpn.head.cls_logits.bias": np.ones(3, "f4")}
    if kind in ("zip", "legacy", "npz"):
        write_tensors(folder / "a.pth", few)
        write_tensors(folder / "a.npz", few)
        with zipfile.ZipFile(folder / ("a.npz" if kind == "npz" else "a.pth")) as file:
            members = {name: file.read(name) for name in file.namelist()}
        return {"": as_legacy(members, len(few))} if kind == "legacy" else members
    if kind == "safetensors":
        write_tensors(folder / "a.safetensors", few)
        return {"": (folder / "a.safetensors").read_bytes()}
    if kind == "checkpoint":
        return {"": pickle.dumps({"model": few, "epoch": 3, "ema": {"module": few}, "args": folder})}
    return {"": pickle.dumps(few, int(kind[-1]))}


def as_legacy(members: dict[str, bytes], count: int) -> bytes:
    """Returns the file that PyTorch before 1.6 would have written."""
    keys = [str(key) for key in range(count)]
    head = [pickle.dumps(value, 2) for value in (LEGACY_MAGIC, 1001, {"little_endian": True})]
    program = members["weights/data.pkl"].replace(b"tQ", b"NtQ")  # no view
    stored = [members[f"weights/data/{key}"] for key in keys]
    sizes = [len(data) // (8 if len(data) == 8 else 4) for data in stored]
    storages = [size.to_bytes(8, "little") + data for size, data in zip(sizes, stored, strict=True)]
    return b"".join([*head, program, pickle.dumps(keys, 2), *storages])


@st.composite
def mutated(draw, data: bytes) -> bytes:
    """Bytes changed, inserted, removed, repeated or cut, instructions and large numbers inserted."""
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        end = min(len(data), place + draw(st.sampled_from([1, 2, 8, 40, 1000])))
        change = draw(st.sampled_from("set insert instruction remove repeat cut number name".split()))
        if change == "set":
            data = data[:place] + draw(st.binary(min_size=1, max_size=4)) + data[place + 1 :]
        elif change in ("insert", "instruction"):
            new = draw(st.binary(max_size=9) if change == "insert" else st.sampled_from(INSTRUCTIONS))
            data = data[:place] + new * draw(st.sampled_from([1, 1, 3, 5000])) + data[place:]
        elif change == "name":
            data = data.replace(b"bytes", draw(st.sampled_from([b"a.b.c", b"\xed\xa0\x80..", b"\0\0\0\0\0"])))
        elif change == "number":
            data = data[:place] + draw(st.sampled_from(NUMBERS)) + data[place + 4 :]
        else:
            part = {"remove": b"", "repeat": data[place:end] * 50, "cut": b""}[change]
            data = data[:place] + part + (b"" if change == "cut" else data[end:])
    return data


@st.composite
def weight_files(draw) -> bytes:
    members = archive(draw(st.sampled_from(KINDS)))
    if "" in members:
        return draw(mutated(members[""]))
    names = list(members)
    chosen = draw(st.sampled_from([*names, *[name for name in names if name.endswith("pkl")] * 4]))
    stream = io.BytesIO()
    compression = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name in names[draw(st.sampled_from([0, 0, 0, 1])) :]:
            file.writestr(name, draw(mutated(members[name])) if name == chosen else members[name])
    data = stream.getvalue()
    return draw(mutated(data)) if draw(st.booleans()) else data


@st.composite
def state_dicts(draw) -> bytes:
    """Pickles of odd names, types, shapes and containers."""
    array = st.tuples(
        st.sampled_from(["f4", "f2", "f8", "i8", "u1", "?", "c8", "O", "U3", ">f4"]),
        st.lists(st.integers(0, 4), max_size=5),
    ).map(lambda drawn: np.zeros(drawn[1], drawn[0]))
    value = st.one_of(array, st.none(), st.floats(), st.integers(), st.text(max_size=3), st.just(Path("x")))
    names = st.one_of(st.sampled_from(NAMES), st.text(max_size=5), st.integers(0, 3))
    content = st.recursive(
        st.dictionaries(names, value, max_size=8),
        lambda inner: st.one_of(
            st.dictionaries(st.sampled_from(["model", "state_dict", "ema", "x"]), inner, max_size=3),
            st.lists(inner, max_size=3),
        ),
        max_leaves=6,
    )
    return pickle.dumps(draw(content), draw(st.integers(0, 5)))


@CAMPAIGN.settings
@given(data=st.one_of(weight_files(), weight_files(), weight_files(), state_dicts()),
       suffix=st.sampled_from([".pth", ".pkl", ".npz", ""]))  # fmt: skip
def test_mutated_weight_file_is_read_or_refused(tmp_path_factory, data, suffix):
    path = tmp_path_factory.getbasetemp() / f"weights{suffix}"
    path.write_bytes(data)
    with CAMPAIGN.case():
        weights = read_weights(path)
        try:
            identify_model(None, weights.tensors, str(path))
        except InputError as error:  # nearly all are of no known model
            assert len(str(error).splitlines()) == 1


def test_figures():
    CAMPAIGN.write()
