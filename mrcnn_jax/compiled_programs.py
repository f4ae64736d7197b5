"""Functions whose programs are stored traced and compiled."""

import hashlib
import os
import pickle
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.experimental.serialize_executable import deserialize_and_load, serialize

from mrcnn_jax.atomic_io import replacing


class StoredFunction:
    """A jitted function whose programs are stored compiled, so that later processes need not trace it.

    Tracing is most of a warm start, and the compilation cache does not avoid it. A stored program is reused
    for the same source files of this package, versions of JAX and its libraries, flags, devices, ``key`` and
    types of arguments. Functions that are replaced at run time go unnoticed, so it is for the command line.

    Args:
        function: jitted or pmapped, over all devices of this process.
        directory: of stored programs.
        key: text of all that the function depends on besides source files and arguments.
    """

    def __init__(self, function: jax.stages.Wrapped, directory: Any, key: str):
        self._function, self._directory, self._key = function, directory, key
        self._programs: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        signature = structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        if signature not in self._programs:
            self._programs[signature] = self._load_or_compile(arguments, str(signature))
        return self._programs[signature](*arguments)

    def _load_or_compile(self, arguments, signature):
        identity = f"{_environment()}{self._key}{signature}"
        file = self._directory / hashlib.sha256(identity.encode()).hexdigest()
        try:
            return deserialize_and_load(*pickle.loads(file.read_bytes()))
        except Exception:  # absent, truncated, or for another machine after all
            hits = len(_cache_hits)
            program = self._function.lower(*arguments).compile()
        if len(_cache_hits) == hits:  # one from the compilation cache cannot be serialized again
            with replacing(file) as temporary:
                temporary.write_bytes(pickle.dumps(serialize(program)))
        return program


@cache
def _environment() -> str:
    """Returns a text that differs wherever a stored program could not be reused."""
    sources = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        sources.update(file.read_bytes())
    packages = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    settings = {name: value for name, value in jax.config.values.items() if "cache" not in name}
    devices = [(device.id, device.device_kind) for device in jax.devices()]
    flags = os.environ.get("XLA_FLAGS"), os.environ.get("LIBTPU_INIT_ARGS")
    return f"{sources.hexdigest()}{packages}{sorted(settings.items(), key=str)}{devices}{flags}"


_cache_hits: list[str] = []


def _record_hit(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _cache_hits.append(event)


jax.monitoring.register_event_listener(_record_hit)
