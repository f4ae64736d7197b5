"""Pickles for tests of the reader: of Python 2, and of objects that pickle as given calls."""

import io

import numpy as np
import pytest

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights import safe_pickle
from mrcnn_jax.weights.pickled_arrays import CALLS, LazyArray

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


def load_lazily(data: bytes):
    return safe_pickle.load(io.BytesIO(data), "weights.pkl", CALLS)


def load(data: bytes):
    """Reads a pickle with all of its arrays."""
    try:
        return read_arrays(load_lazily(data))
    except ValueError as error:
        raise InputError(f"weights.pkl cannot be read as a pickle: {error}") from error


def read_arrays(value, done: dict | None = None):
    """Returns containers with their lazy arrays read; shared values stay shared, stubs stay."""
    done = {} if done is None else done
    if id(value) not in done:
        read = value
        if isinstance(value, LazyArray):
            read = value.read()
        elif isinstance(value, dict):
            read = {key: read_arrays(item, done) for key, item in value.items()}
        elif isinstance(value, list | tuple):
            read = type(value)(read_arrays(item, done) for item in value)
        done[id(value)] = read
    return done[id(value)]


def assert_refused(data: bytes, reason: str = "") -> None:
    with pytest.raises(
        InputError, match=f"^weights.pkl cannot be read as a pickle: .*(?:{reason})"
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
