"""XLA flags, the compilation cache and the platform that programs are traced for."""

import gc
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mrcnn_jax import runtime, stored_function
from mrcnn_jax.stored_function import StoredFunction

FUSION = "--xla_cpu_experimental_ynn_fusion_type"


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, f"{FUSION}="),
        ("--xla_dump_to=/tmp/x", f"--xla_dump_to=/tmp/x {FUSION}="),
        (f"{FUSION}=all", f"{FUSION}=all"),
    ],
)
def test_flags_are_added_to_those_that_are_set(monkeypatch, given, expected):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if given is not None:
        monkeypatch.setenv("XLA_FLAGS", given)
    runtime.set_xla_flags()
    assert os.environ["XLA_FLAGS"] == expected


def test_flags_that_jaxlib_does_not_know_are_left_out(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    runtime.set_xla_flags({"--xla_a_flag_of_the_past": "1"})
    assert "XLA_FLAGS" not in os.environ


@pytest.mark.slow
def test_python_callers_get_the_flags_and_devices_start():
    """XLA ends a process for an unknown flag as soon as a device is used."""
    program = "import mrcnn_jax, os, jax; jax.devices(); print(os.environ['XLA_FLAGS'])"
    environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_enable_fast_math=false", "JAX_PLATFORMS": "cpu"}
    process = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert process.stdout.strip() == f"--xla_cpu_enable_fast_math=false {FUSION}=", process.stderr


def test_a_configured_compilation_cache_is_kept(monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("the configuration was changed"))
    assert runtime.enable_compilation_cache("") is None
    if jax.config.jax_compilation_cache_dir:
        assert runtime.enable_compilation_cache("somewhere") is None


def test_compilation_cache_is_separate_for_each_kind_of_processor(monkeypatch, tmp_path):
    updates = {}
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(jax.config, "update", updates.__setitem__)
            directory = runtime.enable_compilation_cache(str(tmp_path))
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert updates["jax_compilation_cache_dir"] == str(directory)
    assert directory.parent.name == "cpu" and directory.parent.parent == tmp_path


def test_target_platform_is_the_backend_unless_compiling_for_another():
    assert runtime.target_platform() == "cpu"
    with runtime.compiling_for("tpu"):
        assert runtime.target_platform() == "tpu"
    assert runtime.target_platform() == "cpu"


def test_fewer_collections_restores_the_thresholds():
    before = gc.get_threshold()
    with runtime.fewer_collections():
        assert gc.get_threshold()[0] > before[0]
    assert gc.get_threshold() == before


# ---- stored functions ----


@pytest.fixture
def traces(monkeypatch):
    """Counts traces of ``double``; programs are compiled, not taken from the compilation cache of the tests."""
    monkeypatch.setattr(stored_function, "_cache_hits", [])
    return []


def stored_double(directory, traces, key="double"):
    @jax.jit
    def double(x):
        traces.append(x.shape)
        return 2 * x + len(str(directory))  # differs from test to test, so that no cache has it

    return StoredFunction(double, directory, key)


def test_stored_function_is_traced_once_for_all_processes(tmp_path, traces):
    x, offset = jnp.arange(4.0), len(str(tmp_path))
    for _ in range(2):  # the second stands for another process
        function = stored_double(tmp_path, traces)
        for _ in range(2):
            assert function(x).tolist() == [offset, 2 + offset, 4 + offset, 6 + offset]
    stored = len(list(tmp_path.iterdir()))
    assert len(traces) == (1 if stored else 2)
    stored_double(tmp_path, traces)(jnp.arange(3.0))  # another shape
    assert traces[-1] == (3,)


def test_stored_function_is_traced_again_for_another_key_or_a_damaged_file(tmp_path, traces):
    x = jnp.arange(5.0)
    stored_double(tmp_path, traces)(x)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    stored_double(tmp_path, traces)(x)
    stored_double(tmp_path, traces, key="another")(x)
    assert len(traces) == 3
