"""A graph of ONNX operators under construction."""

from typing import Any

import numpy as np

Value = str | int | float | list | np.ndarray
"""An operand: the name of a value in the graph, or numbers, which become a constant of it."""
OPSET = 17
"""Version of the operators: RoiAlign without misalignment since 16; every onnxruntime since 1.12 has it."""


class Graph:
    """Operators in their order, with the constants that they read.

    Calling it adds an operator: ``y = graph("Add", x, 1.0)``. Python's whole numbers become int64, others
    float32; arrays keep their type.
    """

    def __init__(self):
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._names: dict[Any, str] = {}

    def __call__(self, operator: str, *operands: Value, outputs: int = 1, **attributes: Any) -> Any:
        """Adds an operator; returns the name of its output, or a list of several."""
        from onnx import helper  # needed for an export alone

        names = [f"{operator}_{len(self.nodes)}{'abc'[index]}" for index in range(outputs)]
        inputs = [self.name(operand) for operand in operands]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def name(self, operand: Value) -> str:
        """Returns the name of a value; equal constants are stored once."""
        if isinstance(operand, str):
            return operand
        array = np.asarray(operand)
        if not isinstance(operand, np.ndarray):
            array = array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._names:
            self._names[key] = f"constant_{len(self._names)}"
            self.constants[self._names[key]] = np.asarray(array, order="C")
        return self._names[key]

    def rename(self, value: str, name: str) -> None:
        """Makes a value an output of the graph under a name of its own."""
        from onnx import helper

        self.nodes.append(helper.make_node("Identity", [value], [name]))

    def shape(self, value: str, axis: int) -> str:
        """Adds the length of an axis, int64 [1]."""
        return self("Shape", value, start=axis, end=axis + 1)

    def scalar(self, value: str) -> str:
        """Adds the only entry of an array as a scalar."""
        return self("Reshape", value, np.zeros(0, np.int64))

    def numbers(self, count: str) -> str:
        """Adds 0, 1, ... as many as ``count``, int64 [1], says."""
        return self("Range", np.int64(0), self.scalar(count), np.int64(1))

    def take(self, value: str, index: Value, axis: int = 0) -> str:
        """Adds the entries of some indices along an axis."""
        return self("Gather", value, index, axis=axis)

    def keep(self, where: str, *values: str) -> list[str]:
        """Adds the entries along the first axis at which a condition holds, of each value."""
        return [self("Compress", value, where, axis=0) for value in values]

    def columns(self, value: str, start: int, end: int, axis: int = -1) -> str:
        """Adds a range of an axis."""
        return self("Slice", value, [start], [end], [axis])

    def to_float(self, value: str) -> str:
        """Adds the conversion to float32."""
        return self("Cast", value, to=1)

    def top(self, scores: str, count: str, ascending: bool = False) -> tuple[str, str]:
        """Adds the ``count`` best entries, best first (of equal ones the first), and their indices."""
        best = self("TopK", scores, count, axis=0, largest=0 if ascending else 1, outputs=2)
        return best[0], best[1]

    def sum_of(self, *parts: Value) -> str:
        """Adds a sum, from the left."""
        total = self.name(parts[0])
        for part in parts[1:]:
            total = self("Add", total, part)
        return total
