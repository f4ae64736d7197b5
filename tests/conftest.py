"""What every test runs under: eight virtual CPU devices, a compilation cache, our own warnings as errors."""

import gc
import os
from pathlib import Path

FLAGS = (
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_experimental_ynn_fusion_type=",  # as the command line has it: convolution gradients are several times faster
    # Most of what tests compile runs once: a quarter of the time to compile is worth more than steps that take three times as long.
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
)
os.environ["XLA_FLAGS"] = " ".join(FLAGS).strip()  # before jax is imported
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

# shapes and dtypes in signatures are checked at every call
install_import_hook(["mrcnn_jax.ops", "mrcnn_jax.models", "mrcnn_jax.training"], "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")
GOLDEN = Path(__file__).parent / "golden"
OUR_MODULES = "(mrcnn_jax|experiments|benchmarks|tests|test_|oracles|tiny|conftest)"


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", f"error:::{OUR_MODULES}")
    cache = getattr(config, "cache", None)  # absent under -p no:cacheprovider
    if cache is not None:  # through the environment, so that processes started by tests share it
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.mkdir("jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def pytest_collection_finish():
    """Tracing makes millions of small objects. To look through all that are alive as often as Python does took a third of the time of some files."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 25, 50)


@pytest.fixture(scope="session")
def golden():
    """``golden(name)``: the arrays of golden/<name>.npz, expected results of other libraries (golden/README.md)."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where MRCNN_TEST_DATA does not name one."""
    folder = os.environ.get("MRCNN_TEST_DATA")
    if not folder:
        pytest.skip("MRCNN_TEST_DATA does not name a folder of data sets")
    return Path(folder)


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_file():
    """What was compiled is forgotten after each file: on CPU every program takes a few of the memory maps that the kernel grants a process (65,530), and gigabytes in all."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture
def strict_promotion():
    """No silent mixing of dtypes. Not for the whole suite: Flax's normalisation layers and Optax mix them themselves."""
    import jax

    with jax.numpy_dtype_promotion("strict"):
        yield
