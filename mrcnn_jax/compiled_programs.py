"""Compiled programs of a function, and values that take long: stored on disk for later processes."""

import hashlib
import os
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.experimental.serialize_executable import deserialize_and_load, serialize

from mrcnn_jax.atomic_io import replacing

Value = TypeVar("Value")


class StoredFunction:
    """A jitted function whose programs are stored compiled, so that later processes need not trace it.

    Tracing is most of a warm start, and the compilation cache does not avoid it. A stored program is reused
    for the same source files of this package, versions of JAX and its libraries, flags, devices, ``key`` and
    types of arguments. Functions that are replaced at run time go unnoticed, so it is for the command line.
    Threads may call it at once; a program that is stored compiles once, while the others wait.
    A program that cannot be stored or read is compiled as if none were kept.

    Args:
        make_function: makes the jitted function; called for each program, as JAX keeps those of a function
            for as long as the function lives.
        directory: of stored programs; None stores none.
        key: text of all that the function depends on besides source files and arguments.
        limit: number of programs in memory, beyond which the least recently used is discarded. A program
            takes tens of megabytes and hundreds of memory maps.
    """

    def __init__(
        self, make_function: Callable[[], jax.stages.Wrapped], directory: Any = None, key: str = "",
        limit: int | None = None,
    ):  # fmt: skip
        self._make_function, self._directory = make_function, directory
        self._key, self._limit = key, limit
        self._lock = threading.Lock()
        self._programs: OrderedDict[Any, Callable[..., Any]] = OrderedDict()

    def __call__(self, *arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        signature = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        with self._lock:
            if signature not in self._programs:
                if self._limit and len(self._programs) >= self._limit:
                    self._programs.popitem(last=False)
                self._programs[signature] = self._load_or_compile(arguments, str(signature))
            self._programs.move_to_end(signature)
            program = self._programs[signature]
        return program(*arguments)

    def _load_or_compile(self, arguments, signature):
        if self._directory is None:
            return self._make_function()
        file = _file(self._directory, f"{self._key}{signature}")
        try:
            ids, parts = pickle.loads(file.read_bytes())
            by_id = {device.id: device for device in jax.local_devices()}
            return deserialize_and_load(*parts, execution_devices=[by_id[id_] for id_ in ids])
        except Exception:  # absent, truncated, or for another machine after all
            pass
        with _without_compilation_cache():  # a program that comes from it cannot be serialized
            program = self._make_function().lower(*arguments).compile()
        ids = [device.id for device in program.runtime_executable().local_devices()]
        _write(file, lambda: (ids, serialize(program)))
        return program


def stored(directory: Any, key: str, compute: Callable[[], Value]) -> Value:
    """Returns ``compute()``, or its result as stored by an earlier process with the same environment.

    It is reused under the same conditions as a program of ``StoredFunction``.

    Args:
        directory: of stored programs; None stores nothing.
        key: text of all that the value depends on besides the source files.
        compute: returns the value, which must be picklable.
    """
    if directory is None:
        return compute()
    file = _file(directory, key)
    try:
        return pickle.loads(file.read_bytes())
    except Exception:  # absent or truncated
        value = compute()
        _write(file, lambda: value)
        return value


def _file(directory: Any, key: str) -> Any:
    return directory / hashlib.sha256(f"{_environment()}{key}".encode()).hexdigest()


def _write(file: Any, value: Callable[[], object]) -> None:
    try:
        content = pickle.dumps(value())
        with replacing(file) as temporary:
            temporary.write_bytes(content)
    except Exception:  # a full disk, an unwritable home, or a device whose programs JAX cannot serialize
        pass


@contextmanager
def _without_compilation_cache() -> Iterator[None]:
    before = jax.config.jax_enable_compilation_cache  # ty: ignore[missing-attribute]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX reads the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


@cache
def _environment() -> str:
    """Returns a text that differs wherever a stored program could not be reused."""
    sources = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        sources.update(file.read_bytes())
    packages = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    settings = {name: value for name, value in jax.config.values.items() if "cache" not in name}
    devices = [(device.id, device.device_kind) for device in jax.devices()]
    flags = _flags("XLA_FLAGS"), _flags("LIBTPU_INIT_ARGS")
    return f"{sources.hexdigest()}{packages}{sorted(settings.items(), key=str)}{devices}{flags}"


def _flags(variable: str) -> str | None:
    """Returns the flags of a variable, or the content of the file that it names."""
    value = os.environ.get(variable)
    if value and not value.lstrip().startswith("-"):
        with suppress(OSError, UnicodeDecodeError):
            return Path(value.strip()).read_text()
    return value
