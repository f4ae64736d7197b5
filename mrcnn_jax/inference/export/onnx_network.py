"""The layers of Mask R-CNN as ONNX operators: ResNet, feature pyramid, RPN head and the heads of RoIs.

It mirrors ``models.resnet``, ``models.fpn``, ``models.rpn`` and ``models.heads``, with channels first. Batch
norm is part of the convolution before it.
"""

import math
from collections.abc import Sequence

import numpy as np

from mrcnn_jax.config import BackboneConfig, ModelConfig
from mrcnn_jax.config.model import BASIC
from mrcnn_jax.inference.export.onnx_graph import Graph
from mrcnn_jax.models.resnet import DEPTHS

Arrays = dict[str, np.ndarray]
"""Arrays of the variables by path, without the collection: "backbone/stem/kernel"."""


class Network:
    """Adds layers to a graph.

    Args:
        graph: to add to.
        config: of the model.
        arrays: of the model.
    """

    def __init__(self, graph: Graph, config: ModelConfig, arrays: Arrays):
        self.graph, self.config, self._arrays = graph, config, arrays

    def convolution(
        self, x: str, name: str, stride: int = 1, dilation: int = 1, groups: int = 1, norm: str = ""
    ) -> str:
        """Adds a convolution that keeps the size but for its stride, and the norm of a name."""
        kernel, bias = self._arrays[f"{name}/kernel"], self._arrays.get(f"{name}/bias")
        kernel = kernel.reshape((1, 1) * (kernel.ndim == 2) + kernel.shape)  # a dense layer over positions
        kernel = kernel.transpose(3, 2, 0, 1)
        scale, shift = self._affine(norm)
        if scale is not None:
            kernel = (kernel * scale[:, None, None, None]).astype(np.float32)
            bias = (shift if bias is None else bias * scale + shift).astype(np.float32)
        padding = kernel.shape[2] // 2 * dilation
        y = self.graph(
            "Conv", x, kernel, *([] if bias is None else [bias]), kernel_shape=kernel.shape[2:],
            strides=[stride] * 2, dilations=[dilation] * 2, pads=[padding] * 4, group=groups,
        )  # fmt: skip
        return self._group_norm(y, norm) if f"{norm}/norm/scale" in self._arrays else y

    def _affine(self, norm: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Returns scale and shift of a batch norm, in float64; None without one."""
        if f"{norm}/var" not in self._arrays:
            return None, None
        scale, bias, mean, var = (
            self._arrays[f"{norm}/{name}"].astype(np.float64) for name in ("scale", "bias", "mean", "var")
        )
        scale = scale / np.sqrt(var + self.config.backbone.norm_epsilon)
        return scale, bias - mean * scale

    def _group_norm(self, x: str, norm: str) -> str:
        graph, scale = self.graph, self._arrays[f"{norm}/norm/scale"]
        groups = math.gcd(32, len(scale))
        number, sides = (graph("Shape", x, start=start, end=end) for start, end in ((0, 1), (2, 4)))
        shape = graph("Concat", number, [groups, len(scale) // groups], sides, axis=0)
        grouped = graph("Reshape", x, shape)
        ones, epsilon = np.ones(groups, np.float32), self.config.backbone.norm_epsilon
        y = graph("InstanceNormalization", grouped, ones, np.zeros_like(ones), epsilon=epsilon)
        y = graph("Reshape", y, graph("Shape", x))
        bias = self._arrays[f"{norm}/norm/bias"]
        return graph("Add", graph("Mul", y, scale[:, None, None]), bias[:, None, None])

    def relu(self, x: str) -> str:
        return self.graph("Relu", x)

    def stages(self, images: str) -> list[str]:
        """Adds the ResNet: the outputs of res2 to res5, or res4 with features c4."""
        config = self.config.backbone
        x = self.relu(self.convolution(images, "backbone/stem", 2, norm="backbone/stem_norm"))
        x = self.graph("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        features = []
        for number in range(2, 5 if config.features == "c4" else 6):
            dilated = number == 5 and config.features == "dc5"
            x = self.stage(x, "backbone", number, 1 if number == 2 or dilated else 2, 2 if dilated else 1)
            features.append(x)
        return features

    def stage(self, x: str, prefix: str, number: int, stride: int, dilation: int = 1) -> str:
        """Adds the blocks of a stage of the ResNet."""
        for index in range(DEPTHS[self.config.backbone.name][number - 2]):
            x = self._block(x, f"{prefix}/res{number}_{index}", stride if index == 0 else 1, dilation)
        return x

    def _block(self, x: str, name: str, stride: int, dilation: int) -> str:
        config: BackboneConfig = self.config.backbone

        def conv(part, x, stride=1, dilation=1, groups=1):
            return self.convolution(x, f"{name}/{part}", stride, dilation, groups, f"{name}/{part}_norm")

        if config.name in BASIC:
            y = self.relu(conv("conv1", x, stride, dilation))
            y = conv("conv2", y, 1, dilation)
        else:
            first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
            y = self.relu(conv("conv1", x, first))
            y = self.relu(conv("conv2", y, second, dilation, config.groups))
            y = conv("conv3", y)
        if f"{name}/shortcut/kernel" in self._arrays:
            x = conv("shortcut", x, stride)
        return self.relu(self.graph("Add", x, y))

    def pyramid(self, features: Sequence[str]) -> list[str]:
        """Adds the feature pyramid, P2 to P6."""
        graph, pyramid, above = self.graph, [], ""
        for level, feature in reversed(list(enumerate(features, start=2))):
            x = self.convolution(feature, f"fpn/lateral{level}", norm=f"fpn/lateral{level}_norm")
            if above:
                twice = graph("Resize", above, "", np.float32([1, 1, 2, 2]), mode="nearest",
                              coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
                x = graph("Add", x, twice)
            above = x
            pyramid.insert(0, self.convolution(x, f"fpn/output{level}", norm=f"fpn/output{level}_norm"))
        last = graph("MaxPool", pyramid[-1], kernel_shape=[1, 1], strides=[2, 2])
        return [*pyramid, last]

    def objectness(self, x: str) -> tuple[str, str]:
        """Adds logits and deltas, [anchors] and [anchors, 4], of one image's feature map."""
        for index in range(1, self.config.rpn.convolutions + 1):
            x = self.relu(self.convolution(x, f"rpn/conv{index}"))

        def last(y):
            return self.graph("Transpose", y, perm=[0, 2, 3, 1])

        logits, deltas = (last(self.convolution(x, f"rpn/{name}")) for name in ("objectness", "deltas"))
        return self.graph("Reshape", logits, [-1]), self.graph("Reshape", deltas, [-1, 4])

    def box(self, rois: str) -> tuple[str, str]:
        """Adds class logits [P, K + 1] and deltas [P, K, 4] of pooled RoIs."""
        config, graph = self.config.box, self.graph
        x = self._convolutions(rois, "box", config.convolutions)
        if not config.fully_connected:
            x = graph("ReduceMean", x, axes=[2, 3], keepdims=0)
        else:
            x = self.relu(self._dense(graph("Flatten", x, axis=1), "box/fc1", config.pool.size**2))
            for index in range(2, config.fully_connected + 1):
                x = self.relu(self._dense(x, f"box/fc{index}"))
        deltas = graph("Reshape", self._dense(x, "box/deltas"), [0, self.config.num_classes, 4])
        return self._dense(x, "box/classes"), deltas

    def _dense(self, x: str, name: str, cells: int = 1) -> str:
        """Adds a fully connected layer, over cells of channels in our arrays, but channels of cells in x."""
        kernel, bias = self._arrays[f"{name}/kernel"], self._arrays[f"{name}/bias"]
        kernel = kernel.reshape(cells, -1, len(bias)).swapaxes(0, 1).reshape(kernel.shape)
        return self.graph("Add", self.graph("MatMul", x, kernel), bias)

    def mask(self, rois: str, classes: str) -> str:
        """Adds the mask probabilities [D, M, M] of pooled RoIs, of their classes [D]."""
        config, graph = self.config.mask, self.graph
        x = self._convolutions(rois, "mask", config.layers)
        kernel = self._arrays["mask/upsample/kernel"]
        kernel = kernel.reshape(len(kernel), 2, 2, -1).transpose(0, 3, 1, 2)
        x = self.relu(graph("ConvTranspose", x, kernel, self._arrays["mask/upsample_bias"], strides=[2, 2]))
        logits = self.convolution(x, "mask/logits")
        if config.class_agnostic:
            return graph("Sigmoid", graph("Squeeze", logits, [1]))
        probabilities = graph("Softmax", logits, axis=1) if config.loss == "softmax" else logits
        numbers = graph.numbers(graph.shape(classes, 0))
        index = graph("Concat", *(graph("Unsqueeze", each, [1]) for each in (numbers, classes)), axis=1)
        own = graph("GatherND", probabilities, index)
        return own if config.loss == "softmax" else graph("Sigmoid", own)

    def keypoints(self, rois: str) -> str:
        """Adds the keypoint logits [D, J, m, m] of pooled RoIs."""
        x = self._convolutions(rois, "keypoint", self.config.keypoint.layers)
        kernel = self._arrays["keypoint/logits_kernel"].transpose(2, 3, 0, 1)
        bias = self._arrays["keypoint/logits_bias"]
        x = self.graph("ConvTranspose", x, kernel, bias, strides=[2, 2], pads=[1] * 4)
        return self.graph("Resize", x, "", np.float32([1, 1, 2, 2]), mode="linear")

    def _convolutions(self, x: str, head: str, count: int) -> str:
        for index in range(1, count + 1):
            x = self.relu(self.convolution(x, f"{head}/conv{index}", norm=f"{head}/conv{index}_norm"))
        return x
