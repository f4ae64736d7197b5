"""Programs that are stored traced and compiled."""

import time

import jax
import jax.numpy as jnp
import pytest

from mrcnn_jax.compiled_programs import StoredFunction


@pytest.fixture
def make_function(tmp_path):
    """``make_function(key)``: a function over all devices, as another process would make it."""
    offset = time.time_ns() % 1_000_003  # the compilation cache has the programs of earlier tests

    def make(key="double"):
        def double(x):
            make.traces += 1
            return 2 * x + offset

        return StoredFunction(jax.pmap(double), tmp_path, key)

    make.traces, make.offset = 0, offset
    return make


def test_stored_program_is_not_traced_again(make_function):
    x = jnp.arange(16.0).reshape(8, 2)
    for _ in range(2):
        function = make_function()
        for _ in range(2):
            assert (function(x) == 2 * x + make_function.offset).all()
    assert make_function.traces == 1
    make_function()(x[:, :1])  # another shape
    assert make_function.traces == 2


def test_another_key_or_a_truncated_file_is_traced_again(make_function, tmp_path):
    x = jnp.arange(24.0).reshape(8, 3)
    make_function()(x)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    make_function()(x)
    make_function("another key")(x)
    assert make_function.traces == 3
