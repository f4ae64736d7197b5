"""The pickle reader reads all that NumPy writes, and executes nothing."""

import os
import pickle
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
from pickle_programs import PROTOCOLS, PYTHON2, assert_refused, equal, load, text

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights.safe_pickle import Stub


def contents() -> dict:
    values = np.random.default_rng(0).normal(0, 9, (3, 4, 2))
    dtypes = ("f2", "f4", "f8", "i1", "i8", "u2", "?", ">f4", ">i8")
    return {
        "model": {
            f"{dtype} {order}": np.array(values, dtype, order=order) for dtype in dtypes for order in "CF"
        },
        "strided": values[::2, 1:],
        "neither order": values.transpose(1, 0, 2),
        "empty": np.zeros((0, 3), "f4"),
        "0-d": np.array(2.5, "f2"),
        "scalars": [np.array(1.5, "f4"), np.array(-3), np.array(True), np.array(7, ">i4")],
        "plain": (
            1,
            -1,
            300,
            70_000,
            2**40,
            -(2**70),
            2**2000,
            1.5,
            True,
            False,
            None,
            "text",
            "caf\xe9 \u20ac\n'",
            b"",
            b"bytes \xff",
            [],
            {},
            (),
        ),
        "lists": [[1], [[2, (3,)], {4: {5: "x" * 300}}]],
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_load_reads_arrays_of_python_3(protocol):
    expected = contents()
    assert equal(load(pickle.dumps(expected, protocol)), expected)
    assert equal(load(pickle.dumps(OrderedDict(expected), protocol)), expected)
    assert not equal(load(pickle.dumps(expected, protocol)), contents() | {"empty": np.zeros((3, 0), "f4")})


@pytest.mark.parametrize("data", PYTHON2)
def test_load_reads_arrays_of_python_2(data):
    expected = {"cfg": "caf\xe9", "blobs": {"w": np.float32([[1.5, -2]]), "n": np.array(-7)}}
    assert equal(load(data), expected)


def test_load_reads_arrays_of_numpy_1():
    array = np.arange(4, dtype="f4")
    old = pickle.dumps(array, 2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core.multiarray" in old and equal(load(old), array)
    old = pickle.dumps(array, 5).replace(b"\x13numpy._core.numeric", b"\x12numpy.core.numeric")
    assert b"numpy.core.numeric" in old and equal(load(old), array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_load_returns_dict_for_ordered_dict_with_attributes(protocol):
    """Builds a state dict as PyTorch pickles it, with arrays for tensors."""
    state = OrderedDict(a=np.ones(2))
    state._metadata = OrderedDict()
    assert equal(load(pickle.dumps(state, protocol)), {"a": np.ones(2)})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_load_keeps_shared_objects_shared(protocol):
    array, nested = np.ones(2), []
    for _ in range(30):
        nested = [nested, nested]  # as a tree, a thousand million lists
    a, b, nested = load(pickle.dumps([array, array, nested], protocol))
    assert a is b and nested[0] is nested[1]


def test_load_ignores_bytes_after_the_end():
    assert load(pickle.dumps([1]) + b"cos\nsystem\n") == [1]


RUN = "open('ran', 'w').close()"
COMMAND = text("echo > ran")
HARMFUL = {
    "GLOBAL": b"cos\nsystem\n(" + COMMAND + b"tR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + COMMAND + b"\x85R.",
    "INST": b"(" + COMMAND + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + COMMAND + b"o.",
    "dotted name": b"\x80\x04\x8c\x02os\x8c\x0epath.os.system\x93" + COMMAND + b"\x85R.",
    "eval": b"cbuiltins\neval\n(" + text(RUN) + b"tR.",
    "eval of Python 2": b"c__builtin__\neval\n(" + text(RUN) + b"tR.",
    "within NumPy": b"cnumpy._core.multiarray\n__builtins__\ncbuiltins\nexec\n(" + text(RUN) + b"tR.",
    "after an array": pickle.dumps(np.ones(2), 2)[:-1] + b"cos\nsystem\n(" + COMMAND + b"tR\x86.",
    "as a dtype": b"cos\nsystem\n" + COMMAND + b"\x85R" + b"}b.",
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_load_executes_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = Path("ran")
    try:
        pickle.loads(HARMFUL[kind])  # Python's reader does what the file is made for
    except AttributeError:
        pass  # of what comes after the call
    assert ran.exists()
    os.remove(ran)
    loaded = load(HARMFUL[kind])
    assert isinstance(loaded[1] if isinstance(loaded, tuple) else loaded, Stub)
    assert not ran.exists()


NAMES = [
    *(
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("builtins", "dict"),
        ("_codecs", "decode"),
        ("os", ""),
    ),
    *(
        ("numpy", "load"),
        ("numpy", "zeros"),
        ("numpy", "memmap"),
        ("numpy", "core.multiarray._reconstruct"),
        ("numpy", "dtype.__new__"),
    ),
    *(
        ("numpy.core.multiarray", "__builtins__"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("numpy.core", "multiarray._reconstruct"),
    ),
    *(
        ("torch._utils", "_rebuild_tensor_v2"),
        ("mrcnn_jax.weights.safe_pickle", "load"),
        ("__main__", "X"),
        ("numpy.core.multiarray", "fromfile"),
    ),
]


@pytest.mark.parametrize("module, name", NAMES)
def test_load_leaves_stubs_for_other_names(module, name):
    for program in (
        f"c{module}\n{name}\n.".encode(),
        b"\x80\x04" + text(module) + text(name) + b"\x93.",
        f"(i{module}\n{name}\n.".encode(),
        f"c{module}\n{name}\n(S'a'\ntR.".encode(),
    ):
        assert type(load(program)) is Stub and load(program).name == f"{module} {name}"


def test_messages_contain_no_control_characters():
    dtype = b"cnumpy\ndtype\n(" + text("\x1b[2J" + "a" * 1000) + b"tR"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(NNNtR(K\x01)" + dtype + b"\x89" + text("") + b"tb."
    assert_refused(array, r"\\x1b\[2Jaaa")


UNKNOWN = {
    "EXT1": b"\x82\x01.", "EXT2": b"\x83\x01\x00.", "EXT4": b"\x84\x01\x00\x00\x00.", "PERSID": b"Pabc\n.",
    "BINPERSID": b"NQ.", "NEXT_BUFFER": b"\x97.", "READONLY_BUFFER": b"N\x98.",
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_load_refuses_instructions_that_arrays_do_not_need(name):
    assert_refused(UNKNOWN[name], f"the instruction {name}\\b")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_become_stubs_with_their_state(protocol):
    settings = Namespace(lr=0.1, path=Path("x"), sizes={1, 2}, counts=Counter("aab"))
    loaded = load(pickle.dumps([settings, {Path("y"): 1, (1, 2): 2}, defaultdict(list, a=[1])], protocol))
    assert loaded[0].state.keys() == vars(settings).keys() and loaded[0].state["lr"] == 0.1
    assert [type(key) for key in loaded[1]] == [Stub, Stub] and list(loaded[1].values()) == [1, 2]
    assert loaded[2] == {"a": [1]}


def test_what_is_called_cannot_be_changed():
    for name in (b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n"):
        assert type(load(name + b"}(" + text("reader") + b"Nub.")) is Stub
        with pytest.raises(InputError):
            load(name + b"NNNN(tR" + b"NR.")
    assert equal(load(pickle.dumps(np.ones(2, ">f4"), 2)), np.ones(2, ">f4"))
