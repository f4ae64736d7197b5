"""Process-wide settings of XLA: compiler flags, compilation cache, and the platform to trace for."""

import gc
import mmap
import os
import platform
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mrcnn_jax.errors import InputError

# XLA's convolutions on CPU train 1.7 to 3 times as fast without this fusion; other platforms ignore the flag
_FLAGS = MappingProxyType({"--xla_cpu_experimental_ynn_fusion_type": ""})
# without it, a convolution of few images takes a TPU a fraction of the cycles (docs/decisions.md)
TPU_FLAGS = MappingProxyType({
    "--xla_tpu_run_space_to_batch": "false", "--xla_tpu_run_space_to_batch_on_new_platforms": "false",
})  # fmt: skip
DEFAULT_COMPILATION_CACHE = "~/.cache/mrcnn_jax"


def set_xla_flags(flags: Mapping[str, str] = _FLAGS) -> None:
    """Adds flags to XLA_FLAGS and LIBTPU_INIT_ARGS, keeping those set; must precede the use of a device.

    XLA ends the process for an unknown flag, so flags that the installed jaxlib or libtpu lacks are left out.
    """
    _add_flags("XLA_FLAGS", flags, "jaxlib")
    _add_flags("LIBTPU_INIT_ARGS", TPU_FLAGS, "libtpu")


def _add_flags(variable: str, flags: Mapping[str, str], package: str) -> None:
    given = os.environ.get(variable, "")
    if given and not given.startswith("--"):  # a file of flags
        return
    names = {word.partition("=")[0] for word in given.split()}
    missing = {name: value for name, value in flags.items() if name not in names}
    added = [f"{name}={value}" for name, value in missing.items() if _is_known(name, package)]
    if added:
        os.environ[variable] = " ".join([given, *added]).strip()


def check_xla_flags() -> None:
    """Raises InputError for XLA_FLAGS that XLA cannot parse, as it would end the process."""
    given = os.environ.get("XLA_FLAGS", "")
    if not given.startswith("--"):
        if given and not Path(given).is_file():
            raise InputError(f"XLA_FLAGS must be flags, --xla_..., or a file of them, not {given!r}")
        return
    pairs = [word.partition("=")[::2] for word in given.split()]
    for name, _ in pairs:
        if name.startswith("--") and not _is_known(name):
            raise InputError(f"XLA_FLAGS has {name}, which the installed XLA does not know")
    if any(value not in ("", "true", "false") and not value.isdecimal() for _, value in pairs):
        trial = [sys.executable, "-c", "import jax; jax.devices()"]  # only XLA knows which values it takes
        if subprocess.run(trial, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True).returncode:
            raise InputError(f"XLA cannot use XLA_FLAGS: one of the values in {given!r} is of the wrong kind")


def _is_known(flag: str, package: str = "jaxlib") -> bool:
    """Returns whether a library of a package contains the name of a flag; takes up to tenths of a second."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else ()
    libraries = [path for folder in folders for path in Path(folder).glob("*.so*")]
    for library in sorted(libraries, key=lambda path: -path.stat().st_size):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(flag.removeprefix("--").encode() + b"\0") >= 0:
                return True
    return False


def enable_compilation_cache(directory: str = DEFAULT_COMPILATION_CACHE) -> Any:
    """Keeps compiled programs for later processes, unless JAX_COMPILATION_CACHE_DIR configures a cache.

    Args:
        directory: local path or bucket, such as gs://bucket/compiled; "" enables nothing.

    Returns:
        The directory for this kind of machine, or None if nothing was enabled.
    """
    import jax
    from etils import epath

    if not directory or jax.config.jax_compilation_cache_dir:  # ty: ignore[missing-attribute]
        return None
    path = epath.Path(directory).expanduser() / jax.default_backend()
    if jax.default_backend() == "cpu":  # programs are compiled for the instructions of one kind of processor
        cpu = Path("/proc/cpuinfo")
        lines = cpu.read_text().splitlines() if cpu.exists() else []
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        path /= f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs add up in a start
    return path


@contextmanager
def fewer_collections() -> Iterator[None]:
    """Makes Python collect garbage rarely inside: imports and tracing make millions of objects that stay."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def compiling_for(target: str) -> Iterator[None]:
    """Makes programs that are traced inside be for a platform, which may not be this process's own.

    Ahead-of-time compilers and exporters need it, as implementations are chosen when a program is traced. The
    platform is part of jit's cache key: programs traced outside are not reused.

    Args:
        target: "cpu", "gpu" or "tpu".
    """
    with _target()(target):
        yield


def target_platform() -> str:
    """Returns the platform, "cpu", "gpu" or "tpu", that programs are traced for: by default the backend's."""
    import jax

    return _target().value or jax.default_backend()


@cache
def _target():
    # made on first use, so that the command line's --help need not import jax
    import jax

    return jax.make_user_context(default_value=None)
