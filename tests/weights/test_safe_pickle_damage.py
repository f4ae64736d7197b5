"""The pickle reader refuses contradictions, bombs and damage in one sentence, without using memory."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
from memory import peak_bytes
from pickle_programs import (
    F4,
    FROMBUFFER,
    PROTOCOLS,
    PYTHON2,
    SCALAR,
    Reduced,
    array_of,
    assert_refused,
    equal,
    load,
    load_lazily,
    text,
)

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights import safe_pickle
from mrcnn_jax.weights.checkpoints import find_weights
from mrcnn_jax.weights.safe_pickle import Stub

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
    "other version": ((2, (2,), F4, False, BYTES), "in an unknown version or order"),
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
    assert equal(load(pickle.dumps(Reduced(SCALAR, (F4, bytes(4))))), np.zeros((), "f4"))
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
        dtype = Reduced(np.dtype, arguments)
        assert_refused(pickle.dumps(Reduced(SCALAR, (dtype, bytes(4)))))
    parts = (None, None, None, -1, -1, 0)
    assert equal(
        load(pickle.dumps(Reduced(SCALAR, (Reduced(np.dtype, ("f4",), (3, ">", *parts)), bytes(4))))),
        np.zeros((), ">f4"),
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
    for arguments in [([1],), ([(1, 2, 3)],), (None,)]:
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


@pytest.mark.parametrize("kind", HUGE)
def test_huge_claimed_sizes_allocate_nothing(kind):
    assert peak_bytes(lambda: assert_refused(HUGE[kind])) < 1_000_000


def test_claims_that_nothing_depends_on_are_ignored():
    assert (
        peak_bytes(lambda: load(b"Nr\xff\xff\xff\xffp99999999999999\n.")) < 100_000
    )  # where to remember a value
    assert load(b"\x80\x04\x95" + b"\xff" * 8 + b"N.") is None  # the size of a frame
    assert load(b"\x80\xffN.") is None  # the protocol


def test_load_refuses_many_copies_of_the_same_bytes():
    """Each use of what is remembered takes five bytes of the file."""
    long = "a" * 100_000
    encode = b"c_codecs\nencode\nq\x00" + text(long) + text("latin1") + b"\x86q\x01"
    assert len(load(encode + b"h\x00h\x01R.")) == 100_000
    assert (
        peak_bytes(
            lambda: assert_refused(encode + b"h\x00h\x01R" * 200 + b".", "many arrays of the same bytes")
        )
        < 2_000_000
    )
    state = pickle.dumps((1, (100_000,), np.dtype("u1"), False, long), 2)[:-1] + b"q\xf0"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\xf1cnumpy\nndarray\nNN\x87q\xf2"
    one = b"h\xf1h\xf2Rh\xf0b"
    assert load(state + array + one + b".").shape == (100_000,)
    assert peak_bytes(lambda: load_lazily(state + array + one * 200 + b".")) < 2_000_000
    pairs = (
        b"ccollections\nOrderedDict\nq\x00]("
        + b"".join(b"M" + n.to_bytes(2, "little") + b"N\x86" for n in range(2000))
        + b"e\x85q\x01"
    )
    assert load(pairs + b"h\x00h\x01R.") == dict.fromkeys(range(2000))
    assert peak_bytes(lambda: load(pairs + b"h\x00h\x01R" * 200 + b".")) < 2_000_000


@pytest.mark.parametrize(
    "program",
    [
        lambda n: b")" + b"\x85" * n + b".",
        lambda n: b"]" * n + b"a" * (n - 1) + b".",
        lambda n: b"(" * n + b"l" * n + b".",
        lambda n: b"}" + b")" + b"\x85" * n + b"Ns.",  # of which Python's reader dies: it hashes the tuples
        lambda n: b"cnumpy\ndtype\n" + b")" + b"\x85" * n + b"\x85R.",
        lambda n: b"cos\nsystem\n" + b")" + b"\x85" * n + b"b.",
    ],
)
def test_deep_nesting_is_read(program):
    n = 300_000
    load_lazily(program(n))
    content = load_lazily(program(n))
    with pytest.raises(InputError):
        find_weights([content], "weights.pkl")
    assert_refused(b"(" * n + b".")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cycles_are_read(protocol):
    cyclic_list, cyclic_dict = [], {}
    cyclic_list.append((cyclic_list, {"a": cyclic_list}))
    cyclic_dict["self"] = [cyclic_dict, {"a": np.ones(2)}]
    with pytest.raises(InputError, match="must hold a dict of tensors, not a list"):
        find_weights(load_lazily(pickle.dumps(cyclic_list, protocol)), "weights.pkl")
    found, _ = find_weights(load_lazily(pickle.dumps(cyclic_dict, protocol)), "weights.pkl")
    assert list(found) == ["a"]


NO_PICKLES = [
    b"", b".", b"N", b"0.", b"t.", b"\x85.", b"\x86.", b"N\x87.", b"R.", b"NR.", b"N)R.", b"b.", b"Nb.",
    b"NNb.", b"a.", b"Na.", b"NNa.", b"e.", b"(e.",
    b""
    b"s"
    b".", b"NNs.", b"NNNs.", b"u.", b"(u.", b"}(Nu.", b"N(NNu.", b"(Nd.", b"l.", b"d.", b"h\x00.", b"g1\n.",
    b"q\x00.", b"\x94.",
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
    return isinstance(value, int | float | str | bytes | bytearray | None | Stub)


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
            assert str(error).startswith("weights.pkl cannot be read as a pickle: ")
            refusals += 1
    assert 50 < refusals
