"""The pickle reader reads all that NumPy writes, executes nothing, and refuses the rest in one sentence."""

import os
import pickle
import re
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights import safe_pickle

PROTOCOLS = range(6)
F4 = np.dtype("f4")
# The functions that arrays are pickled with.
RECONSTRUCT = np.zeros(1).__reduce__()[0]
FROMBUFFER = np.zeros(1).__reduce_ex__(5)[0]
SCALAR = np.float32(1).__reduce__()[0]

# {"blobs": {"w": float32 [[1.5, -2]], "n": int64 -7}, "cfg": "caf\xe9"} as Python 2.7 and NumPy 1.16 write
# it, with protocols 0, 1 and 2.
PYTHON2 = [
    (b"(dp1\nS'cfg'\np2\nS'caf\\xe9'\np3\nsS'blobs'\np4\n(dp5\nS'w'\ncnumpy.core.multiarray\n_reconstruct\n"
    b"p6\n(cnumpy\nndarray\np7\n(I0\ntS'b'\n"
    b"tRp8\n(I1\n(I1\nI2\ntcnumpy\ndtype\np9\n(S'f4'\nI0\nI1\ntRp10\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'"
    b"\\x00\\x00\\xc0?\\x00\\x00\\x00\\xc0'\n"
    b"tbsS'n'\ncnumpy.core.multiarray\nscalar\np11\n(g9\n(S'i8'\nI0\nI1\ntRp12\n(I3\nS'<'\nNNNI-1\nI-1\nI0\n"
    b"tbS'\\xf9\\xff\\xff\\xff\\xff\\xff\\xff\\xff'\ntRp13\nss."),
    (b"}q\x01(U\x03cfgq\x02U\x04caf\xe9q\x03U\x05blobsq\x04}q\x05(U\x01wcnumpy.core.multiarray\n_reconstruc"
    b"t\nq\x06(cnumpy\nndarray\nq\x07(K\x00t"
    b"U\x01btRq\x08(K\x01(K\x01K\x02tcnumpy\ndtype\nq\t(U\x02f4K\x00K\x01tRq\n(K\x03U\x01<NNNJ\xff\xff\xff"
    b"\xffJ\xff\xff\xff\xffK\x00tbI00\n"
    b"U\x08\x00\x00\xc0?\x00\x00\x00\xc0tbU\x01ncnumpy.core.multiarray\nscalar\nq\x0b(h\t(U\x02i8K\x00K\x01"
    b"tRq\x0c"
    b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbU\x08\xf9\xff\xff\xff\xff\xff\xff\xfftRq\ruu."),
    (b"\x80\x02}q\x01(U\x03cfgq\x02U\x04caf\xe9q\x03U\x05blobsq\x04}q\x05(U\x01wcnumpy.core.multiarray\n_re"
    b"construct\nq\x06cnumpy\nndarray\nq\x07"
    b"K\x00\x85U\x01b\x87Rq\x08(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\tU\x02f4K\x00K\x01\x87Rq\n(K\x03U\x01<N"
    b"NNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
    b"K\x00tb\x89U\x08\x00\x00\xc0?\x00\x00\x00\xc0tbU\x01ncnumpy.core.multiarray\nscalar\nq\x0bh\tU\x02i8K"
    b"\x00K\x01\x87Rq\x0c"
    b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbU\x08\xf9\xff\xff\xff\xff\xff\xff\xff\x86Rq"
    b"\ruu."),
]  # fmt: skip


def load(data: bytes):
    return safe_pickle.load(data, "weights.pkl")


def assert_refused(data: bytes, reason: str = "") -> None:
    with pytest.raises(
        InputError, match=f"^weights.pkl cannot be read as a pickle of arrays: .*(?:{reason})"
    ) as caught:
        load(data)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


class Reduced:
    """An object that is pickled as given: a call, and a state to be set."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def array_of(state) -> Reduced:
    return Reduced(RECONSTRUCT, (np.ndarray, (0,), b"b"), state)


def equal(a, b) -> bool:
    """The same types, dtypes, shapes and values throughout."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b


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
        "scalars": [np.float32(1.5), np.int64(-3), np.bool_(True), np.array(7, ">i4")[()]],
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
    expected = {"cfg": "caf\xe9", "blobs": {"w": np.float32([[1.5, -2]]), "n": np.int64(-7)}}
    assert equal(load(data), expected)


def test_load_reads_arrays_of_numpy_1():
    array = np.arange(4, dtype="f4")
    old = pickle.dumps(array, 2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core.multiarray" in old and equal(load(old), array)
    old = pickle.dumps(array, 5).replace(b"\x13numpy._core.numeric", b"\x12numpy.core.numeric")
    assert b"numpy.core.numeric" in old and equal(load(old), array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_load_returns_dict_for_ordered_dict_with_attributes(protocol):
    """What a state dict of PyTorch is, once its tensors were replaced by arrays."""
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
    assert_refused(HARMFUL[kind], "__builtins__|os|eval")
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
def test_load_refuses_other_names_and_quotes_them(module, name):
    full = re.escape(f"{module}.{name}")
    assert_refused(f"c{module}\n{name}\n.".encode(), f"it names {full},")
    assert_refused(b"\x80\x04" + text(module) + text(name) + b"\x93.", f"it names {full},")
    assert_refused(f"(i{module}\n{name}\n.".encode(), f"INST {full},")


def test_messages_contain_no_control_characters():
    assert_refused(b"\x80\x04" + text("\x1b[2J" + "a" * 1000) + text("b\n") + b"\x93.", r"\\x1b\[2Jaaa")


UNKNOWN = {
    "EXT1": b"\x82\x01.", "EXT2": b"\x83\x01\x00.", "EXT4": b"\x84\x01\x00\x00\x00.", "PERSID": b"Pabc\n.",
    "BINPERSID": b"NQ.",
    "NEWOBJ": b"cnumpy\nndarray\n)\x81.", "NEWOBJ_EX": b"cnumpy\nndarray\n)}\x92.", "EMPTY_SET": b"\x8f.",
    "FROZENSET": b"(\x91.",
    "NEXT_BUFFER": b"\x97.", "READONLY_BUFFER": b"N\x98.",
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_load_refuses_instructions_that_arrays_do_not_need(name):
    assert_refused(UNKNOWN[name], f"the instruction {name}\\b")


def test_globals_can_be_neither_changed_nor_returned():
    for name in (
        b"cnumpy\ndtype\n",
        b"cnumpy\nndarray\n",
        b"c_codecs\nencode\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
    ):
        assert_refused(name + b"}(" + text("reader") + b"Nub.")
        assert_refused(name + b"N}(" + text("reader") + b"Nu\x86b.")
        assert_refused(b"]" + name + b"a.", "a part of an array on its own")
        assert_refused(name + b"(tR.")
    assert_refused(pickle.dumps([F4]), "a part of an array on its own")
    assert_refused(
        pickle.dumps(Reduced(RECONSTRUCT, (np.ndarray, (10**13,), b"b"))), "a part of an array on its own"
    )
    assert_refused(b"cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.")
    assert equal(load(pickle.dumps(np.ones(2, ">f4"), 2)), np.ones(2, ">f4"))


BYTES = bytes(8)
CONTRADICTIONS = {
    "larger than its bytes": (
        (1, (10**13,), F4, False, BYTES),
        r"shape \(10000000000000,\) and dtype float32 has 8 bytes",
    ),
    "smaller than its bytes": ((1, (1,), F4, False, BYTES), "has 8 bytes"),
    "size that overflows": ((1, (2**62, 4), F4, False, b""), "has 0 bytes"),
    "empty and too large": ((1, (0, 2**62, 2**62), F4, False, b""), ""),
    "number beyond 64 bits": ((1, (0, 2**63), F4, False, b""), "shape is not made of"),
    "negative": ((1, (-2,), F4, False, BYTES), "shape is not made of"),
    "negative twice": ((1, (-1, -2), F4, False, BYTES), "shape is not made of"),
    "fractions": ((1, (2.0,), F4, False, BYTES), "shape is not made of"),
    "boolean": ((1, (True, 2), F4, False, BYTES), "shape is not made of"),
    "list": ((1, [2], F4, False, BYTES), "shape is not made of"),
    "number alone": ((1, 2, F4, False, BYTES), "shape is not made of"),
    "nested": ((1, ((2,),), F4, False, BYTES), "shape is not made of"),
    "too many axes": ((1, (1,) * 40 + (2,), F4, False, BYTES), "shape is not made of"),
    "no bytes": ((1, (2,), F4, False, None), "no dtype or no bytes"),
    "list of bytes": ((1, (8,), np.dtype("u1"), False, [0] * 8), "no dtype or no bytes"),
    "text beyond Latin-1": ((1, (2,), F4, False, "\u20ac" * 8), ""),
    "no dtype": ((1, (2,), None, False, BYTES), "no dtype or no bytes"),
    "name of a dtype": ((1, (2,), "f4", False, BYTES), "no dtype or no bytes"),
    "other version": ((2, (2,), F4, False, BYTES), "not written in version 1"),
    "short": ((1, (2,), F4, False), ""),
    "long": ((1, (2,), F4, False, BYTES, 0), ""),
    "no state": (None, "a part of an array on its own"),
    "other state": ({"a": 1}, ""),
    **{
        f"dtype {dtype}": ((1, (1,), np.dtype(dtype), False, bytes(np.dtype(dtype).itemsize)), "dtype")
        for dtype in (
            "O",
            "U4",
            "S4",
            "c8",
            "V4",
            "M8[s]",
            "m8[s]",
            "f4,i4",
            "(2,)f4",
            np.dtype("f4", metadata={"a": 1}),
        )
    },
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.filterwarnings("ignore:metadata on a dtype:UserWarning")
def test_load_refuses_arrays_whose_parts_do_not_fit(kind, protocol):
    state, reason = CONTRADICTIONS[kind]
    assert_refused(pickle.dumps({"a": np.ones(2), "b": array_of(state)}, protocol), reason)


def test_load_refuses_calls_with_wrong_arguments():
    assert equal(load(pickle.dumps(Reduced(FROMBUFFER, (BYTES, F4, (2, 1), "C")))), np.zeros((2, 1), "f4"))
    for arguments in [
        (BYTES, F4, (3, 1), "C"), (BYTES, F4, (-2,), "C"), (BYTES, F4, (2,), "X"), (BYTES, F4, (2,), None),
        (BYTES, F4, (2,)), (BYTES,), (),
        (BYTES, np.dtype("O"), (1,), "C"), (BYTES, F4, (2, 1), "K", (1, 1)), (BYTES, F4, (2, 1), "K", (0,)),
        (BYTES, F4, (2, 1), "K", (0, -1)),
        (BYTES, F4, (2, 1), "K", "ab"), (BYTES, F4, (2,), "C", None, None), (None, F4, (2,), "C"),
    ]:  # fmt: skip
        assert_refused(pickle.dumps(Reduced(FROMBUFFER, arguments)))
    assert equal(load(pickle.dumps(Reduced(SCALAR, (F4, bytes(4))))), np.float32(0))
    for arguments in [
        (F4, bytes(8)),
        (F4, b""),
        (F4,),
        (F4, None),
        (None, bytes(4)),
        (np.dtype("O"), bytes(8)),
        (np.dtype("U1"), bytes(4)),
    ]:
        assert_refused(pickle.dumps(Reduced(SCALAR, arguments)))
    for arguments in [
        ("f4", False, True, None),
        (),
        (F4,),
        (("f4",),),
        ([("a", "f4")],),
        ("f16",),
        ("object",),
    ]:
        assert_refused(pickle.dumps([Reduced(np.dtype, arguments), 1]))
    parts = (None, None, None, -1, -1, 0)
    assert equal(
        load(pickle.dumps(Reduced(SCALAR, (Reduced(np.dtype, ("f4",), (3, ">", *parts)), bytes(4))))),
        np.zeros((), ">f4")[()],
    )
    for state in [
        (3, ">", None, ("a",), {"a": (F4, 0)}, -1, -1, 0),
        (3, ">", *parts[:-1], 63),
        (3, "x", *parts),
        (4, ">", *parts, {}),
        (3,),
        [3],
    ]:
        assert_refused(pickle.dumps(Reduced(SCALAR, (Reduced(np.dtype, ("f4",), state), bytes(4)))))
    for arguments in [("text", "rot13"), ("\u20ac", "latin1"), (b"bytes", "latin1"), ("text",)]:
        assert_refused(pickle.dumps(Reduced(__import__("_codecs").encode, arguments)))
    for arguments in [([1],), ([(1, 2, 3)],), ([((), 1)],), (None,)]:
        assert_refused(pickle.dumps(Reduced(OrderedDict, arguments)))


HUGE = {
    "BINBYTES8": b"\x8e" + (2**60).to_bytes(8, "little") + b"abc.",
    "BINBYTES": b"B\xff\xff\xff\xffabc.",
    "BYTEARRAY8": b"\x96" + (2**60).to_bytes(8, "little") + b"abc.",
    "BINUNICODE8": b"\x8d" + (2**64 - 1).to_bytes(8, "little") + b"abc.",
    "BINSTRING": b"T\xff\xff\xff\x7fabc.",
    "negative BINSTRING": b"T\xff\xff\xff\xffabc.",
    "LONG4": b"\x8b\xff\xff\xff\x7fabc.",
    "LONG_BINGET": b"j\xff\xff\xff\xff.",
    "LONG": b"L" + b"9" * 100_000 + b"L\n.",
    "PUT of nothing": b"p99999999999999\n.",
    "array": pickle.dumps(array_of((1, (10**13,), F4, False, b""))),
    "scalar": pickle.dumps(Reduced(SCALAR, (np.dtype("V1000000000"), b""))),
}


def peak(function) -> int:
    """Bytes that were held at most."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", HUGE)
def test_huge_claimed_sizes_allocate_nothing(kind):
    assert peak(lambda: assert_refused(HUGE[kind])) < 1_000_000


def test_claims_that_nothing_depends_on_are_ignored():
    assert peak(lambda: load(b"Nr\xff\xff\xff\xffp99999999999999\n.")) < 100_000  # where to remember a value
    assert load(b"\x80\x04\x95" + b"\xff" * 8 + b"N.") is None  # the size of a frame
    assert load(b"\x80\xffN.") is None  # the protocol


def test_load_refuses_many_copies_of_the_same_bytes():
    """Each use of what is remembered takes five bytes of the file."""
    long = "a" * 100_000
    encode = b"c_codecs\nencode\nq\x00" + text(long) + text("latin1") + b"\x86q\x01"
    assert len(load(encode + b"h\x00h\x01R.")) == 100_000
    assert (
        peak(lambda: assert_refused(encode + b"h\x00h\x01R" * 200 + b".", "many arrays of the same bytes"))
        < 2_000_000
    )
    state = pickle.dumps((1, (100_000,), np.dtype("u1"), False, long), 2)[:-1] + b"q\xf0"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\xf1cnumpy\nndarray\nNN\x87q\xf2"
    one = b"h\xf1h\xf2Rh\xf0b"
    assert load(state + array + one + b".").shape == (100_000,)
    assert (
        peak(lambda: assert_refused(state + array + one * 200 + b".", "many arrays of the same bytes"))
        < 2_000_000
    )
    pairs = (
        b"ccollections\nOrderedDict\nq\x00]("
        + b"".join(b"M" + n.to_bytes(2, "little") + b"N\x86" for n in range(2000))
        + b"e\x85q\x01"
    )
    assert load(pairs + b"h\x00h\x01R.") == dict.fromkeys(range(2000))
    assert peak(lambda: load(pairs + b"h\x00h\x01R" * 200 + b".")) < 2_000_000


def test_load_refuses_deep_nesting():
    n = 50_000
    assert_refused(b")" + b"\x85" * n + b".", "nested more than 32 deep")
    assert_refused(b"]" * n + b"a" * (n - 1) + b".", "nested more than 32 deep")
    assert_refused(b"(" * n + b"l" * n + b".", "nested more than 32 deep")
    # of a million of these Python's own reader dies: it hashes the tuples, one within the other
    assert_refused(b"}" + b")" + b"\x85" * n + b"Ns.", "neither text nor numbers")
    assert_refused(b"(" * n + b".")
    assert_refused(b"cnumpy\ndtype\n" + b")" + b"\x85" * n + b"\x85R.", "a dtype is of type tuple")
    assert_refused(pickle.dumps(array_of((1, (1,), F4, False, 0)))[:-2] + b")" + b"\x85" * n + b"b.")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_load_refuses_cycles(protocol):
    cyclic_list, cyclic_dict = [], {}
    cyclic_list.append((cyclic_list, {"a": cyclic_list}))
    cyclic_dict["self"] = [cyclic_dict]
    assert_refused(pickle.dumps(cyclic_list, protocol))
    assert_refused(pickle.dumps(cyclic_dict, protocol), "nested more than 32 deep")


NO_PICKLES = [
    b"", b".", b"N", b"0.", b"t.", b"\x85.", b"\x86.", b"N\x87.", b"R.", b"NR.", b"N)R.", b"b.", b"Nb.",
    b"NNb.", b"a.", b"Na.", b"NNa.", b"e.", b"(e.",
    b""
    b"s"
    b".", b"NNs.", b"NNNs.", b"u.", b"(u.", b"}(Nu.", b"N(NNu.", b"(Nd.", b"l.", b"d.", b"h\x00.", b"g1\n.",
    b"q\x00.", b"\x94.", b"}]Ns.", b"}}Ns.",
    b""
    b"\x93"
    b".", b"N\x93.", b"NN\x93.", b"\xff.", b"I\n.", b"Ix\n.", b"Fx\n.", b"Sx\n.", b"S'a\n.", b"cnumpy\n.",
    b"X\x01\x00\x00\x00\xff.",
    b"PK\x03\x04", b"not a pickle", b"<html>", b"\x89HDF\r\n\x1a\n", b"\x00" * 100,
]  # fmt: skip


@pytest.mark.parametrize("data", NO_PICKLES)
def test_load_refuses_other_bytes(data):
    assert_refused(data)


def test_load_limits_the_number_of_instructions(monkeypatch):
    monkeypatch.setattr(safe_pickle, "MAX_INSTRUCTIONS", 100)
    assert load(b"N" * 99 + b".") is None
    assert_refused(b"N" * 100 + b".", "more than 100 instructions")


def small_files() -> list[bytes]:
    content = {
        "a": np.float32([1, 2]),
        "b": {"c": np.array(3, ">i2"), "d": np.float64(4)},
        "e": ["f", b"g", None, 1.5, 10**12],
    }
    return [*PYTHON2, *(pickle.dumps(content, protocol) for protocol in PROTOCOLS)]


@pytest.mark.parametrize("data", small_files())
def test_load_refuses_every_truncation(data):
    for length in range(len(data)):
        assert_refused(data[:length])


def is_plain(value) -> bool:
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf" and value.nbytes < 2000
    return type(value) in (int, float, bool, str, bytes, type(None))


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@pytest.mark.parametrize("seed, data", list(enumerate(small_files())))
def test_damaged_files_are_refused_or_give_plain_values(seed, data):
    rng = np.random.default_rng(seed)
    refusals = 0
    for _ in range(300):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[position] = rng.integers(0, 256)
        try:
            assert is_plain(load(bytes(damaged)))
        except InputError as error:
            assert str(error).startswith("weights.pkl cannot be read as a pickle of arrays: ")
            refusals += 1
    assert 50 < refusals
