"""Settings of all tests: eight virtual CPU devices, checked shapes, our own warnings as errors, the longest
files first."""

import gc
import json
import os
from collections import Counter
from pathlib import Path

FLAGS = (
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_experimental_ynn_fusion_type=",  # as in mrcnn_jax.runtime: faster convolution gradients
    # most programs of the tests run once: saving a quarter of the compilation outweighs steps that take three
    # times as long
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
install_import_hook(["mrcnn_jax.ops", "mrcnn_jax.models", "mrcnn_jax.training"], "type_checks.check")
jax.config.update("jax_numpy_rank_promotion", "raise")
TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"
DURATIONS = TESTS / "durations.json"
"""Seconds of each test file, written by `make durations`."""
UNRECORDED = 30
"""Seconds that a new file is assumed to take."""
OUR_MODULES = "(mrcnn_jax|experiments|benchmarks|tests|test_|oracles|tiny|conftest)"


def pytest_addoption(parser):
    help_ = "record the seconds of each test file in tests/durations.json"
    parser.addoption("--update-durations", action="store_true", help=help_)


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", f"error:::{OUR_MODULES}")
    cache = getattr(config, "cache", None)  # absent under -p no:cacheprovider
    if cache is not None:  # through the environment, so that processes started by tests share it
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.mkdir("jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def pytest_collection_modifyitems(items):
    """Marks the tests of tests/slow, and starts with the longest files, so that no process waits long for the
    other."""
    seconds = json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}
    order = {}
    for item in items:
        if item.path.is_relative_to(TESTS / "slow"):
            item.add_marker(pytest.mark.slow)
        name = item.path.relative_to(TESTS).as_posix()
        order[item] = (-seconds.get(name, UNRECORDED), name)
    items.sort(key=order.__getitem__)  # stable: the order within a file stays


def pytest_collection_finish():
    """Makes garbage collection rarer: tracing creates so many objects that it took a third of the time of
    some files."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 25, 50)


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--update-durations"):
        seconds = Counter()
        for reports in terminalreporter.stats.values():
            for report in reports:
                if hasattr(report, "duration"):
                    seconds[report.nodeid.partition("::")[0].removeprefix("tests/")] += report.duration
        known = json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}
        known = {name: value for name, value in known.items() if (TESTS / name).exists()}
        known |= {name: round(value, 1) for name, value in seconds.items()}
        DURATIONS.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


@pytest.fixture(scope="session")
def golden():
    """``golden(name)``: the arrays of golden/<name>.npz, recorded results of other libraries
    (golden/README.md)."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data sets; tests that need it are skipped unless MRCNN_TEST_DATA names one."""
    folder = os.environ.get("MRCNN_TEST_DATA")
    if not folder:
        pytest.skip("MRCNN_TEST_DATA does not name a folder of data sets")
    return Path(folder)


@pytest.fixture(autouse=True, scope="module")
def discard_compiled_programs():
    """Discards compiled programs after each file: all together they exceed the memory maps of a process
    (65,530)."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def strict_promotion():
    """Raises where dtypes are mixed silently. Not for the whole suite: Flax's norms and Optax mix them
    themselves."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def without_type_checks():
    """Disables the checks of annotations, which would refuse wrong shapes before the functions' own
    checks."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
