"""Maps between the tensors of another library and our parameters, as data: one map converts both ways."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mrcnn_jax.errors import InputError
from mrcnn_jax.messages import listed

Tensors = dict[str, np.ndarray]
"""Arrays of another library by their names there: a state dict."""


class Layout(NamedTuple):
    """Order of the axes of a tensor, converted from the source library to ours and back."""

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_source: Callable[[np.ndarray], np.ndarray]


VECTOR = Layout(lambda a: a, lambda a: a)
CONV = Layout(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))
"""[out, in, kh, kw] to [kh, kw, in, out]."""
DENSE = Layout(lambda a: a.T, lambda a: a.T)
"""[out, in] to [in, out]."""
CONV_1X1 = Layout(lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])
"""A 1x1 convolution [out, in, 1, 1] to the matrix [in, out] of a dense layer."""
CONV_TRANSPOSE_4X4 = Layout(lambda a: a.transpose(2, 3, 0, 1), lambda a: a.transpose(2, 3, 0, 1))
"""[in, out, 4, 4] to [4, 4, in, out]."""
CONV_TRANSPOSE_2X2 = Layout(
    lambda a: a.transpose(0, 2, 3, 1).reshape(a.shape[0], -1),
    lambda a: a.reshape(a.shape[0], 2, 2, -1).transpose(0, 3, 1, 2),
)
"""[in, out, 2, 2] to the matrix [in, 2 * 2 * out] that maps a cell to its four outputs."""


def flattened_roi(size: int) -> Layout:
    """Returns the layout of a dense layer over the size x size features of a RoI.

    The other libraries flatten the features as (channel, y, x), we as (y, x, channel).
    """
    return Layout(
        lambda a: a.reshape(len(a), -1, size, size).transpose(2, 3, 1, 0).reshape(-1, len(a)),
        lambda a: a.reshape(size, size, -1, a.shape[1]).transpose(3, 2, 0, 1).reshape(a.shape[1], -1),
    )


class ParamSpec(NamedTuple):
    """Counterpart of a tensor: its path in our variables, its layout, and where its background class is."""

    path: str
    """Collection, modules and name, as in "params/backbone/stem/kernel"."""
    layout: Layout = VECTOR
    unused_rows: int = 0
    """Leading rows of the source tensor that no prediction depends on, and that we do not have."""
    background_first: bool = False
    """The source's first row is the background class, which is our last."""

    def to_jax(self, tensor: np.ndarray) -> np.ndarray:
        """Converts a tensor of the source library to our parameter."""
        rows = tensor[self.unused_rows :]
        rows = np.roll(rows, -1, axis=0) if self.background_first else rows
        return np.ascontiguousarray(self.layout.to_jax(rows))

    def to_source(self, array: np.ndarray, unused: np.ndarray | None = None) -> np.ndarray:
        """Converts our parameter to the source library's tensor; unused rows that are not given are zeros."""
        rows = self.layout.to_source(array)
        rows = np.roll(rows, 1, axis=0) if self.background_first else rows
        if self.unused_rows:
            unused = np.zeros((self.unused_rows, *rows.shape[1:]), rows.dtype) if unused is None else unused
            rows = np.concatenate([unused, rows])
        return np.ascontiguousarray(rows)


@dataclass
class ParamMap(Mapping):
    """Specs of all tensors of a model, by the names of the tensors; built layer by layer."""

    specs: dict[str, ParamSpec] = field(default_factory=dict)

    def __getitem__(self, name):
        return self.specs[name]

    def __iter__(self):
        return iter(self.specs)

    def __len__(self):
        return len(self.specs)

    def add_layer(self, source: str, ours: str, layout: Layout = CONV, bias: bool = True, **rows: Any):
        """Adds the weight, and the bias unless it has none, of a convolution or dense layer."""
        self.specs[f"{source}.weight"] = ParamSpec(f"params/{ours}/kernel", layout, **rows)
        if bias:
            self.specs[f"{source}.bias"] = ParamSpec(f"params/{ours}/bias", **rows)

    def add_norm(self, source: str, ours: str, kind: str):
        """Adds the vectors of a normalisation layer of the kind "none", "frozen", "batch" or "group"."""
        if kind == "none":
            return
        ours = f"{ours}/norm" if kind == "group" else ours
        learned, statistics = ("frozen", "frozen") if kind == "frozen" else ("params", "batch_stats")
        vectors = {"weight": f"{learned}/{ours}/scale", "bias": f"{learned}/{ours}/bias"}
        if kind != "group":
            vectors |= {f"running_{name}": f"{statistics}/{ours}/{name}" for name in ("mean", "var")}
        self.specs |= {f"{source}.{name}": ParamSpec(path) for name, path in vectors.items()}

    def add_tensor(self, source: str, ours: str, layout: Layout = VECTOR):
        """Adds a single tensor."""
        self.specs[source] = ParamSpec(f"params/{ours}", layout)


def check_tensors(
    tensors: Tensors, param_map: ParamMap, template: dict[str, Any], origin: str, partial: bool = False
) -> list[str]:
    """Checks the names and shapes of tensors against those of a model.

    Args:
        tensors: tensors of the source library.
        param_map: the model's.
        template: our variables, or their shapes.
        origin: name of the file, for messages.
        partial: allow tensors to be missing.

    Returns:
        Names of the missing tensors.

    Raises:
        InputError: lists what is missing, unexpected, or of the wrong shape or type.
    """
    leaves = flatten_dict(template, sep="/")

    def source_shape(spec):
        return spec.to_source(np.broadcast_to(np.float32(0), leaves[spec.path].shape)).shape

    expected = {name: source_shape(spec) for name, spec in param_map.items()}
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    wrong = [
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    integers = [name for name in expected if name in tensors and tensors[name].dtype.kind != "f"]
    faults = {"missing": [] if partial else missing, "unexpected": unexpected, "of the wrong shape": wrong}
    faults["of integers, as of a quantised model"] = integers
    found = "; ".join(f"{len(names)} {fault}: {_list(names)}" for fault, names in faults.items() if names)
    if found:
        hint = "; --partial would initialise the missing ones randomly" if missing and not partial else ""
        for name, shape in expected.items():
            if param_map[name].path == "params/rpn/objectness/bias" and name in tensors:
                hint += _anchor_hint(tensors[name].shape, shape)
        raise InputError(f"the tensors of {origin} do not fit the model that they seem to be: {found}{hint}")
    return missing


def _anchor_hint(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if len(found) != 1 or found == expected:
        return ""
    return (
        f"; its RPN has {found[0]} anchors per cell, not {expected[0]}: give --model.rpn.aspect-ratios "
        f"({found[0]} of them where a feature level has one size)"
    )


def _list(names: list[str]) -> str:
    return listed([ascii(name[:120])[1:-1] for name in names], 20, counted=True)


def to_jax(tensors: Tensors, param_map: ParamMap) -> dict[str, Any]:
    """Converts tensors of the source library to our variables, without those whose tensors are missing."""
    arrays = {spec.path: spec.to_jax(tensors[name]) for name, spec in param_map.items() if name in tensors}
    return unflatten_dict(arrays, sep="/")


def to_source(variables: dict[str, Any], param_map: ParamMap, unused: Tensors | None = None) -> Tensors:
    """Converts our variables to tensors of the source library.

    Args:
        variables: ours, possibly some of them or their gradients.
        param_map: of the model.
        unused: rows that we do not have, by tensor (``collect_unused_rows``); zeros where they are not given.
    """
    leaves, unused = flatten_dict(variables, sep="/"), unused or {}
    return {
        name: spec.to_source(np.asarray(leaves[spec.path]), unused.get(name))
        for name, spec in param_map.items()
        if spec.path in leaves
    }


def collect_unused_rows(tensors: Tensors, param_map: ParamMap) -> Tensors:
    """Returns the rows that ``to_jax`` drops, by tensor."""
    counts = {name: spec.unused_rows for name, spec in param_map.items() if spec.unused_rows}
    return {name: tensors[name][:count] for name, count in counts.items() if name in tensors}
