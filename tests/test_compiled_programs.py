"""Programs that are stored traced and compiled."""

import time

import jax
import jax.numpy as jnp
import pytest

from mrcnn_jax import compiled_programs
from mrcnn_jax.compiled_programs import StoredFunction, stored


@pytest.fixture
def make_function(tmp_path):
    """``make_function(key)``: a function over all devices, as another process would make it."""
    offset = time.time_ns() % 1_000_003  # the compilation cache has the programs of earlier tests

    def make(key="double"):
        def double(x):
            make.traces += 1
            return 2 * x + offset

        return StoredFunction(lambda: jax.pmap(double), tmp_path, key)

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


def test_programs_of_the_compilation_cache_are_stored_too(tmp_path):
    """JAX cannot serialize a program that it has read from its cache."""
    offset, traces = time.time_ns() % 1_000_003, []

    def double(x):
        traces.append(x.shape)
        return 2 * x + offset

    x = jnp.arange(5.0)
    jax.jit(double)(x)  # fills the cache
    jax.clear_caches()
    for _ in range(2):
        StoredFunction(lambda: jax.jit(double), tmp_path, "double")(x)
    assert len(traces) == 2 and len(list(tmp_path.iterdir())) == 1
    assert jax.config.jax_enable_compilation_cache


def test_flags_in_a_file_are_part_of_the_environment(tmp_path, monkeypatch):
    file, seen = tmp_path / "flags", set()
    for content in ("--xla_cpu_enable_fast_math=true", "--xla_cpu_enable_fast_math=false"):
        file.write_text(content)
        for value in (str(file), content):
            monkeypatch.setenv("XLA_FLAGS", value)
            compiled_programs._environment.cache_clear()
            seen.add(compiled_programs._environment())
    compiled_programs._environment.cache_clear()
    assert len(seen) == 2


def test_least_recently_used_programs_are_discarded():
    traces = []

    def make():
        def double(x):
            traces.append(x.size)
            return 2 * x

        return jax.jit(double)

    function = StoredFunction(make, limit=2)
    for size in (1, 2, 1, 3, 1, 2):
        assert (function(jnp.ones(size)) == 2).all()
    assert traces == [1, 2, 3, 2]


def test_stored_value_is_computed_once_for_each_key(tmp_path):
    calls = []

    def shapes(key):
        def compute():
            calls.append(key)
            return {"kernel": jax.ShapeDtypeStruct((3, 3), jnp.float32)}

        return stored(tmp_path, key, compute)

    assert shapes("one") == shapes("one") == shapes("two")
    assert calls == ["one", "two"]
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:20])
    assert shapes("one") == {"kernel": jax.ShapeDtypeStruct((3, 3), jnp.float32)} and len(calls) == 3
    assert stored(None, "one", lambda: 5) == 5


def test_programs_that_cannot_be_serialized_are_compiled(tmp_path, monkeypatch):
    def serialize(program):
        raise ValueError("Compilation does not support serialization")

    monkeypatch.setattr(compiled_programs, "serialize", serialize)
    function = StoredFunction(lambda: jax.jit(lambda x: x + 2), tmp_path, "as they are on some devices")
    assert function(jnp.ones(3)).sum() == 9 and not list(tmp_path.iterdir())


def test_unwritable_directory_stores_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    function = StoredFunction(lambda: jax.jit(lambda x: x + 1), tmp_path / "file" / "programs", "more")
    assert function(jnp.ones(3)).sum() == 6
    assert stored(tmp_path / "file" / "programs", "more", lambda: 6) == 6
