"""Process-wide settings of XLA: compiler flags, the compilation cache, and the platform that programs are traced for."""

import mmap
import os
import platform
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# XLA's convolutions on CPU train 1.7 to 3 times as fast without this fusion; other platforms ignore the flag
_CPU_FLAGS = {"--xla_cpu_experimental_ynn_fusion_type": ""}
DEFAULT_COMPILATION_CACHE = "~/.cache/mrcnn_jax"


def set_xla_flags() -> None:
    """Adds this project's flags to XLA_FLAGS, leaving those that are set; must precede the first use of a device.

    A flag that the installed jaxlib does not know would end the process, so it is left out.
    """
    given = os.environ.get("XLA_FLAGS", "")
    added = [f"{name}={value}" for name, value in _CPU_FLAGS.items() if name not in given and _is_known(name)]
    if added:
        os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()


def _is_known(flag: str) -> bool:
    """Whether jaxlib's binary contains a flag's name; found in a few hundredths of a second."""
    spec = find_spec("jaxlib")
    libraries = [path for folder in (spec.submodule_search_locations if spec else ()) for path in Path(folder).glob("*.so*")]
    for library in sorted(libraries, key=lambda path: -path.stat().st_size):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(flag.removeprefix("--").encode()) >= 0:
                return True
    return False


def enable_compilation_cache(directory: str = DEFAULT_COMPILATION_CACHE) -> None:
    """Keeps compiled programs in a directory for later processes, unless a cache is configured already (JAX_COMPILATION_CACHE_DIR).

    Args:
        directory: local path or bucket, such as gs://bucket/compiled; "" enables nothing.
    """
    import jax
    from etils import epath

    if not directory or jax.config.jax_compilation_cache_dir:
        return
    place = epath.Path(directory).expanduser() / jax.default_backend()
    if jax.default_backend() == "cpu":  # such programs are compiled for the instructions of one kind of processor
        cpu = Path("/proc/cpuinfo")
        lines = cpu.read_text().splitlines() if cpu.exists() else []
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        place /= f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"
    jax.config.update("jax_compilation_cache_dir", str(place))


@contextmanager
def compiling_for(target: str) -> Iterator[None]:
    """Programs traced inside are for a platform that may not be this process's own.

    Ahead-of-time compilers and exporters need it: implementations are chosen when a program is traced. Programs traced outside are
    not reused, as the platform is part of jit's cache key.

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
