"""Mask R-CNN's detection as ONNX operators: anchors, proposals, RoIAlign and the selection of detections.

It mirrors ``models.rpn``, ``models.mask_rcnn`` and ``models.detection`` for one image of any size. There are
as many proposals and detections as are found, without empty slots.
"""

import math

import numpy as np

from mrcnn_jax import ops
from mrcnn_jax.config import ModelConfig, RoIPooling
from mrcnn_jax.config.model import ROI_LEVELS, STRIDES
from mrcnn_jax.inference.export.onnx_graph import Graph, Value
from mrcnn_jax.inference.export.onnx_network import Arrays, Network


class Detection:
    """Adds the detector to a graph with the inputs "images" [1, H, W, 3] and "sizes" [1, 2].

    Args:
        graph: to add to.
        config: of the model.
        arrays: of the model.
    """

    def __init__(self, graph: Graph, config: ModelConfig, arrays: Arrays):
        self.graph, self.config, self._network = graph, config, Network(graph, config, arrays)
        self._size = graph("Squeeze", "sizes", [0])  # height and width before padding
        height, width = (graph.take(graph.to_float(self._size), np.int64(axis)) for axis in (0, 1))
        corner = [graph("Unsqueeze", side, [0]) for side in (width, height)]
        self._limit = graph("Concat", *corner, *corner, axis=0)

    def add(self) -> list[str]:
        """Adds the outputs, each with a leading axis of one image; returns their names."""
        graph, config, network = self.graph, self.config, self._network
        features = network.stages(self._normalized())
        pyramid = network.pyramid(features) if config.backbone.features == "fpn" else features[-1:]
        proposals = self._proposals(pyramid)
        logits, deltas = network.box(self._roi_features(pyramid, proposals, config.pool_of("box")))
        boxes, scores, classes = self._select(logits, deltas, proposals)
        found = {"boxes": boxes, "scores": scores, "classes": graph("Cast", classes, to=6)}
        pools = {branch: config.pool_of(branch) for branch in ("mask", "keypoint")}
        used = [pools[branch] for branch in pools if f"{branch}s" in config.tasks]
        pooled = {pool: self._roi_features(pyramid, boxes, pool) for pool in dict.fromkeys(used)}
        if "masks" in config.tasks:
            found["masks"] = network.mask(pooled[pools["mask"]], classes)
        if "keypoints" in config.tasks:
            found["keypoints"] = network.keypoints(pooled[pools["keypoint"]])
        for name, value in found.items():
            graph.rename(graph("Unsqueeze", value, [0]), name)
        return list(found)

    def _normalized(self) -> str:
        """Adds the images as the backbone takes them, with zeros where they are padded."""
        graph, config = self.graph, self.config
        images = graph.to_float("images")
        if config.channel_order == "bgr":
            images = graph.take(images, [2, 1, 0], axis=3)
        mean, std = np.float32(config.pixel_mean), np.float32(config.pixel_std)
        x = graph("Div", graph("Sub", images, mean), std)
        rows, columns = (
            graph("Less", graph.numbers(graph.shape("images", axis + 1)),
                  graph("Cast", graph.take(self._size, np.int64(axis)), to=7)) for axis in (0, 1)
        )  # fmt: skip
        inside = graph("And", graph("Unsqueeze", rows, [1, 2]), graph("Unsqueeze", columns, [1]))
        return graph("Transpose", graph("Where", inside, x, np.float32(0)), perm=[0, 3, 1, 2])

    def _anchors(self, level: int, features: str) -> str:
        """Adds the anchors of a feature map, [rows * columns * a, 4]."""
        graph, config, conventions = self.graph, self.config, self.config.conventions
        sizes, stride = config.rpn.anchor_sizes, STRIDES[config.backbone.features][level]
        sizes = [sizes[level]] if config.backbone.features == "fpn" else list(sizes)
        cells = ops.cell_anchors(sizes, config.rpn.aspect_ratios, conventions.anchor_rounding, stride)
        grid, centres = graph("Shape", features, start=2), []
        for axis in (0, 1):
            count = graph.columns(grid, axis, axis + 1)
            step: Value = np.float32(stride)
            if conventions.anchor_strides == "grid":
                step = graph.to_float(graph("Div", graph.shape("images", axis + 1), count))
            numbers, offset = graph.to_float(graph.numbers(count)), np.float32(conventions.anchor_offset)
            numbers = graph("Unsqueeze", graph("Mul", graph("Add", numbers, offset), step), [1 - axis])
            centres.append(graph("Unsqueeze", graph("Expand", numbers, grid), [2, 3]))
        shifts = graph("Concat", *centres[::-1], *centres[::-1], axis=3)
        return graph("Reshape", graph("Add", shifts, cells), [-1, 4])

    def _decode(self, deltas: str, boxes: str, weights: tuple[float, ...] = (1, 1, 1, 1)) -> str:
        """Adds boxes that deltas move, clipped to the image, as ``ops.decode`` and ``ops.clip``."""
        graph = self.graph
        if set(weights) != {1}:
            deltas = graph("Div", deltas, np.float32(weights))
        (start, end), (move, grow) = (
            (graph.columns(value, 0, 2), graph.columns(value, 2, 4)) for value in (boxes, deltas)
        )
        size = graph("Sub", end, start)
        centre = graph("Add", start, graph("Div", size, np.float32(2)))
        centre = graph("Add", centre, graph("Mul", move, size))
        grow = graph("Exp", graph("Min", grow, np.float32(math.log(self.config.max_box_scale))))
        half = graph("Div", graph("Mul", grow, size), np.float32(2))
        corners = graph("Concat", graph("Sub", centre, half), graph("Add", centre, half), axis=1)
        return graph("Min", graph("Max", corners, np.float32(0)), self._limit)

    def _is_nonempty(self, boxes: str, min_size: float) -> str:
        graph = self.graph
        sides = graph("Sub", graph.columns(boxes, 2, 4), graph.columns(boxes, 0, 2))
        operator = "GreaterOrEqual" if min_size else "Greater"
        longer = graph("Cast", graph(operator, sides, np.float32(min_size)), to=1)
        return graph("Cast", graph("ReduceMin", longer, axes=[1], keepdims=0), to=9)

    def _proposals(self, pyramid: list[str]) -> str:
        """Adds the best boxes of all levels, best first."""
        graph, config, boxes, scores = self.graph, self.config.rpn, [], []
        for level, features in enumerate(pyramid):
            logits, deltas = self._network.objectness(features)
            count = graph("Min", [config.pre_nms_test], graph.shape(logits, 0))
            best, index = graph.top(logits, count)
            anchors = graph.take(self._anchors(level, features), index)
            found = self._decode(graph.take(deltas, index), anchors)
            found, best = graph.keep(self._is_nonempty(found, config.min_size), found, best)
            rank = graph("Neg", graph.to_float(graph.numbers(graph.shape(best, 0))))
            each = [graph("Unsqueeze", found, [0]), graph("Unsqueeze", rank, [0, 1])]
            kept = graph("NonMaxSuppression", *each, [config.post_nms_test], np.float32([config.nms_iou]))
            kept = graph("Squeeze", graph.columns(kept, 2, 3), [1])
            boxes.append(graph.take(found, kept))
            scores.append(graph.take(best, kept))
        whole = graph("Concat", *scores, axis=0)
        _, best = graph.top(whole, graph("Min", [config.post_nms_test], graph.shape(whole, 0)))
        return graph.take(graph("Concat", *boxes, axis=0), best)

    def _roi_features(self, pyramid: list[str], boxes: str, pool: RoIPooling) -> str:
        """Adds the pooled features of boxes, each from its level; with c4 those of res5."""
        graph, config, conventions = self.graph, self.config, self.config.conventions
        features, (low, high) = config.backbone.features, config.roi.levels
        finest, strides = ROI_LEVELS[features][0], STRIDES[features]
        levels = self._levels(boxes)
        if conventions.roi_inclusive:
            boxes = graph("Sub", boxes, np.float32([0, 0, 1, 1]))
        pooled, order = [], []
        for level in range(low, high + 1):
            here = graph("Squeeze", graph("NonZero", graph("Equal", levels, np.float32(level))), [0])
            rois, first = graph.take(boxes, here), graph("Mul", here, np.int64(0))
            pooled.append(graph(
                "RoiAlign", pyramid[level - finest], rois, first, output_height=pool.size,
                output_width=pool.size, sampling_ratio=pool.sampling_ratio,
                spatial_scale=1 / strides[level - finest],
                coordinate_transformation_mode="half_pixel" if pool.half_pixel else "output_half_pixel",
            ))  # fmt: skip
            order.append(here)
        rois = graph("Concat", *pooled, axis=0)
        if len(order) > 1:
            order = graph("Concat", *order, axis=0)
            _, place = graph.top(order, graph.shape(order, 0), ascending=True)
            rois = graph.take(rois, place)
        return self._network.stage(rois, "res5", 5, config.roi.res5_stride) if features == "c4" else rois

    def _levels(self, boxes: str) -> str:
        """Adds the pyramid level of each box, float32, as ``ops.assign_levels``."""
        graph, roi = self.graph, self.config.roi
        sides = graph("Sub", graph.columns(boxes, 2, 4), graph.columns(boxes, 0, 2))
        area = graph("Mul", *(graph("Squeeze", graph.columns(sides, axis, axis + 1), [1]) for axis in (0, 1)))
        size = graph("Max", graph("Sqrt", area), np.float32(1e-8))
        octaves = graph("Log", graph("Div", size, np.float32(roi.canonical_size)))
        octaves = graph("Div", octaves, np.log(np.float32(2)))
        level = graph.sum_of(octaves, np.float32(roi.canonical_level),
                             np.float32(self.config.conventions.level_epsilon))  # fmt: skip
        return graph("Clip", graph("Floor", level), *(np.float32(edge) for edge in roi.levels))

    def _select(self, logits: str, deltas: str, proposals: str) -> tuple[str, str, str]:
        """Adds boxes, scores and classes of the detections, best first, as ``models.detection``."""
        graph, config, classes = self.graph, self.config.box, self.config.num_classes
        scores = graph.columns(graph("Softmax", logits, axis=1), 0, classes)
        scores = graph("Squeeze", graph("Flatten", scores, axis=0), [0])
        count = graph("Min", [config.max_candidates], graph.shape(scores, 0))
        scores, index = graph.top(scores, count)
        above = graph("Greater", scores, np.float32(config.score_threshold))
        scores, index = graph.keep(above, scores, index)
        roi = graph("Div", index, np.int64(classes))
        own = graph("Sub", index, graph("Mul", roi, np.int64(classes)))
        deltas = graph("GatherND", deltas, graph("Concat", *(graph("Unsqueeze", each, [1])
                                                             for each in (roi, own)), axis=1))  # fmt: skip
        boxes = self._decode(deltas, graph.take(proposals, roi), config.delta_weights)
        valid = self._is_nonempty(boxes, config.min_size)
        boxes, scores, own = graph.keep(valid, boxes, scores, own)
        by_class = graph("Unsqueeze", scores, [0])
        if not config.class_agnostic_nms:
            same = graph("Equal", np.arange(classes)[:, None], own)
            by_class = graph("Where", same, by_class, np.float32(-1))
        kept = graph("NonMaxSuppression", *(graph("Unsqueeze", each, [0]) for each in (boxes, by_class)),
                     [config.max_detections], np.float32([config.nms_iou]), np.float32([0]))  # fmt: skip
        kept = graph("Squeeze", graph.columns(kept, 2, 3), [1])
        count = graph("Min", [config.max_detections], graph.shape(kept, 0))
        kept, _ = graph.top(kept, count, ascending=True)  # candidates are best first
        return tuple(graph.take(each, kept) for each in (boxes, scores, own))
