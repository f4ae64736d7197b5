"""Which tensor of another library is which parameter of ours, as data: a table serves both directions, and gradients as well as weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.config.model import BASIC
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.resnet import DEPTHS

Tensors = dict[str, np.ndarray]


class Layout(NamedTuple):
    """Where the numbers of a tensor lie: theirs to ours, and back."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


VECTOR = Layout(lambda a: a, lambda a: a)
CONVOLUTION = Layout(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))
"""[out, in, kh, kw] and [kh, kw, in, out]."""
MATRIX = Layout(lambda a: a.T, lambda a: a.T)
"""[out, in] and [in, out]."""
POINTWISE = Layout(lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])
"""A 1x1 convolution, and the matrix product that it is."""
TRANSPOSED_4X4 = Layout(lambda a: a.transpose(2, 3, 0, 1), lambda a: a.transpose(2, 3, 0, 1))
"""[in, out, 4, 4] and [4, 4, in, out]."""
TRANSPOSED_2X2 = Layout(
    lambda a: a.transpose(0, 2, 3, 1).reshape(a.shape[0], -1),
    lambda a: a.reshape(a.shape[0], 2, 2, -1).transpose(0, 3, 1, 2),
)
"""[in, out, 2, 2], and the matrix from a cell to its 2x2 outputs."""


def flattened(side: int) -> Layout:
    """A matrix over all features of a RoI, which they flatten as (channel, y, x) and we as (y, x, channel)."""
    return Layout(
        lambda a: a.reshape(len(a), -1, side, side).transpose(2, 3, 1, 0).reshape(-1, len(a)),
        lambda a: a.reshape(side, side, -1, a.shape[1]).transpose(3, 2, 0, 1).reshape(a.shape[1], -1),
    )


class Entry(NamedTuple):
    """One tensor: its place in our variables ("params/backbone/stem/kernel"), its layout, and its rows for background, which we have last or not at all."""

    path: str
    layout: Layout = VECTOR
    unused_rows: int = 0
    """Leading rows of theirs that no prediction depends on."""
    background_first: bool = False

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        rows = tensor[self.unused_rows :]
        return np.ascontiguousarray(self.layout.ours(np.roll(rows, -1, axis=0) if self.background_first else rows))

    def to_theirs(self, array: np.ndarray, unused: np.ndarray | None = None) -> np.ndarray:
        """``unused``: their unused rows; zeros where they are not known."""
        rows = self.layout.theirs(array)
        rows = np.roll(rows, 1, axis=0) if self.background_first else rows
        if self.unused_rows:
            unused = np.zeros((self.unused_rows, *rows.shape[1:]), rows.dtype) if unused is None else unused
            rows = np.concatenate([unused, rows])
        return np.ascontiguousarray(rows)


@dataclass
class Table(Mapping):
    """Entries by their names, entered layer by layer."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def __getitem__(self, name):
        return self.entries[name]

    def __iter__(self):
        return iter(self.entries)

    def __len__(self):
        return len(self.entries)

    def layer(self, theirs: str, ours: str, layout: Layout = CONVOLUTION, bias: bool = True, **rows: Any) -> None:
        """A convolution or matrix, with its bias."""
        self.entries[f"{theirs}.weight"] = Entry(f"params/{ours}/kernel", layout, **rows)
        if bias:
            self.entries[f"{theirs}.bias"] = Entry(f"params/{ours}/bias", **rows)

    def norm(self, theirs: str, ours: str, kind: str) -> None:
        """The vectors of a normalisation, by its kind in the configuration."""
        if kind == "none":
            return
        ours = f"{ours}/norm" if kind == "group" else ours
        learned = "frozen" if kind == "frozen" else "params"
        vectors = {"weight": f"{learned}/{ours}/scale", "bias": f"{learned}/{ours}/bias"}
        if kind != "group":
            statistics = "frozen" if kind == "frozen" else "batch_stats"
            vectors |= {"running_mean": f"{statistics}/{ours}/mean", "running_var": f"{statistics}/{ours}/var"}
        self.entries |= {f"{theirs}.{name}": Entry(path) for name, path in vectors.items()}

    def raw(self, theirs: str, path: str, layout: Layout = VECTOR, **rows: Any) -> None:
        """A tensor on its own."""
        self.entries[theirs] = Entry(f"params/{path}", layout, **rows)


# ---- conversion ----


def check(tensors: Tensors, table: Table, template: dict[str, Any], origin: str, partial: bool = False) -> list[str]:
    """Names missing from the tensors; InputError lists what is missing (unless ``partial``), extra or of another shape, all at once.

    ``template``: our variables, or their shapes.
    """
    shapes = _leaves(template)
    expected = {name: entry.to_theirs(np.broadcast_to(np.float32(0), shapes[entry.path].shape)).shape for name, entry in table.items()}
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    misshapen = [
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    faults = [("missing", [] if partial else missing), ("not of this model", extra), ("of another shape", misshapen)]
    found = "; ".join(f"{len(names)} {fault}: {', '.join(names)}" for fault, names in faults if names)
    if found:
        hint = "" if partial or not missing else "; --partial would leave what is missing to chance"
        raise InputError(f"{origin} does not hold the tensors of the model that it seems to be: {found}{hint}")
    return missing


def to_ours(tensors: Tensors, table: Table) -> dict[str, Any]:
    """Our variables, of those tensors that are there."""
    variables: dict[str, Any] = {}
    for name, entry in table.items():
        if name in tensors:
            *modules, leaf = entry.path.split("/")
            place = variables
            for module in modules:
                place = place.setdefault(module, {})
            place[leaf] = entry.to_ours(tensors[name])
    return variables


def to_theirs(variables: dict[str, Any], table: Table, unused: Tensors | None = None) -> Tensors:
    """Their tensors. ``unused``: rows of theirs, by name, that we do not have; of those not given, zeros."""
    leaves = _leaves(variables)
    return {name: entry.to_theirs(np.asarray(leaves[entry.path]), (unused or {}).get(name)) for name, entry in table.items() if entry.path in leaves}


def unused_rows(tensors: Tensors, table: Table) -> Tensors:
    """What ``to_ours`` leaves behind."""
    return {name: tensors[name][: entry.unused_rows] for name, entry in table.items() if entry.unused_rows and name in tensors}


def _leaves(tree):
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


# ---- what a file says of its network ----


def backbone_of(tensors: Tensors, first: str, block: Callable[[int, int], str], origin: str) -> BackboneConfig:
    """Depth and width of a ResNet or ResNeXt, from its tensors; InputError where it is none.

    Args:
        origin: what to call the file.
        first: name of the first convolution's weights.
        block: prefix of the names of a block, by stage (2 to 5) and number.
    """
    def blocks(stage):
        return next(number for number in range(100) if not any(name.startswith(f"{block(stage, number)}.") for name in tensors))

    depths, last = tuple(blocks(stage) for stage in (2, 3, 4, 5)), f"{block(2, 0)}.conv3.weight"
    name = next((name for name, known in DEPTHS.items() if known == depths and (name not in BASIC) == (last in tensors)), None)
    middle = tensors.get(f"{block(2, 0)}.conv2.weight")
    if name is None or first not in tensors or middle is None:
        raise InputError(f"{origin} has no backbone of {', '.join(DEPTHS)}: blocks a stage are {' '.join(map(str, depths))}")
    width = tensors[first].shape[0]
    if name in BASIC:
        return BackboneConfig(name=name, width=width)
    groups = middle.shape[0] // middle.shape[1]
    return BackboneConfig(name=name, width=width, groups=groups, group_width=middle.shape[0] * 64 // (width * groups))
