"""XLA flags, the compilation cache and the platform that programs are traced for."""

import gc
import os
import subprocess
import sys

import jax
import pytest

from mrcnn_jax import runtime

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


def test_flags_for_tpus_are_those_that_libtpu_knows(monkeypatch, tmp_path):
    known, unknown = runtime.TPU_FLAGS
    (tmp_path / "libtpu").mkdir()
    (tmp_path / "libtpu" / "__init__.py").touch()
    (tmp_path / "libtpu" / "libtpu.so").write_bytes(b"\0" + known.removeprefix("--").encode() + b"\0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--other=1")
    runtime.set_xla_flags({})
    assert os.environ["LIBTPU_INIT_ARGS"] == f"--other=1 {known}=false" and unknown != known
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"{known}=true")
    runtime.set_xla_flags({})
    assert os.environ["LIBTPU_INIT_ARGS"] == f"{known}=true"


@pytest.mark.slow
def test_python_callers_get_the_flags_and_devices_start():
    """XLA ends a process for an unknown flag as soon as a device is used."""
    program = "import mrcnn_jax, os, jax; jax.devices(); print(os.environ['XLA_FLAGS'])"
    environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_enable_fast_math=false", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
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


def test_target_platform_is_the_backend_by_default():
    assert runtime.target_platform() == "cpu"
    with runtime.compiling_for("tpu"):
        assert runtime.target_platform() == "tpu"
    assert runtime.target_platform() == "cpu"


def test_fewer_collections_restores_the_thresholds():
    before = gc.get_threshold()
    with runtime.fewer_collections():
        assert gc.get_threshold()[0] > before[0]
    assert gc.get_threshold() == before
