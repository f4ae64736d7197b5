"""Finds the weights in a checkpoint of a training script: dicts around them, and pickled modules."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights.pickled_arrays import LazyArray
from mrcnn_jax.weights.safe_pickle import Stub

_WRAPPERS = ("model", "state_dict", "model_state_dict", "blobs", "weights")
"""Keys of the weights in checkpoints, the preferred first."""
_AVERAGED = r"(.*[._])?(ema|swa|averaged?)([._].*)?"
"""Paths of averaged weights, which are used only if there are no others."""
_MAX_MODULES = 100_000


def find_weights(content: Any, origin: str, key: str | None = None) -> tuple[dict, list[str]]:
    """Finds the dict of named tensors in the content of a file.

    Args:
        content: dicts, lists and stubs, of which nothing but tensors matters.
        origin: name of the file, for messages.
        key: path of the dict in the content, such as "model_ema" or "callbacks.ema.state_dict", for a file
            that holds several.

    Returns:
        The dict, and sentences on what else the file holds.

    Raises:
        InputError: there is none, or the choice is ambiguous.
    """
    found = dict(_named_tensors(content, "", set()))
    paths = ", ".join(ascii(path)[1:-1] or "the whole file" for path in list(found)[:10]) or "none"
    if key is not None:
        if key not in found:
            raise InputError(f"{origin} has no tensors under the key {ascii(key)}, but under {paths}")
        return found[key], []
    if not found:
        if isinstance(content, dict):
            return content, []  # whose values are named where they are checked
        kind = content.name.replace(" ", ".") if isinstance(content, Stub) else type(content).__name__
        raise InputError(f"{origin} must hold a dict of tensors, not a {ascii(kind[:80])[1:-1]}")
    averaged = [path for path in found if re.fullmatch(_AVERAGED, path.lower())]
    best, *others = sorted(set(found) - set(averaged) or found, key=_rank)
    if others and _rank(others[0]) == _rank(best):
        raise InputError(f"{origin} holds several sets of tensors: choose one with --key, of {paths}")
    if averaged and best not in averaged:
        return found[best], [f"averaged weights are in the file as well; --key {averaged[0]} imports those"]
    return found[best], []


def _rank(path: str) -> tuple[int, int]:
    """Returns the order of preference: the file itself, known keys, others; then the shallowest."""
    last = path.rpartition(".")[2]
    return _WRAPPERS.index(last) if last in _WRAPPERS else len(_WRAPPERS) * bool(path), path.count(".")


def _named_tensors(value: Any, path: str, seen: set[int], depth: int = 0) -> Iterator[tuple[str, dict]]:
    """Yields all dicts of named tensors with their paths, also those of modules."""
    if id(value) in seen or depth > 4 or isinstance(value, LazyArray):
        return
    seen.add(id(value))
    if isinstance(value, Stub):
        value = value.entries or _module_tensors(value) or value.state
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or "param_groups" in value:  # which an optimizer has
        return
    inner = []
    for key, item in value.items():
        if isinstance(key, str | int) and isinstance(item, dict | list | tuple | Stub):
            inner += _named_tensors(item, f"{path}.{key}" if path else str(key), seen, depth + 1)
    wraps = any(isinstance(value.get(key), dict | Stub) for key in _WRAPPERS)
    own = sum(isinstance(key, str) and _is_array(item) for key, item in value.items())
    largest = max((len(tensors) for _, tensors in inner), default=0)
    yield from [(path, value)] if own and own >= largest and not (wraps and inner) else inner


def _is_array(value: Any) -> bool:
    return isinstance(value, LazyArray | np.ndarray)


def _module_tensors(module: Stub) -> dict[str, Any]:
    """Returns the state dict of a pickled module of PyTorch, or nothing for another object."""
    tensors, pending = {}, [("", module)]
    for _ in range(_MAX_MODULES):  # there is no end to a module within itself
        if not pending:
            break
        prefix, current = pending.pop()
        state = current.state if isinstance(current.state, dict) else {}
        parts = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
        if len(prefix) > 1000 or not all(isinstance(part, dict) for part in parts):
            continue
        parameters, buffers, modules = parts
        transient = state.get("_non_persistent_buffers_set")
        skipped = transient if isinstance(transient, list) else []
        for name, value in [*parameters.items(), *buffers.items()]:
            if _is_array(value) and name not in skipped:
                tensors[f"{prefix}{name}"] = value
        children = [(f"{prefix}{name}.", child) for name, child in modules.items() if isinstance(child, Stub)]
        pending += reversed(children)
    return tensors
