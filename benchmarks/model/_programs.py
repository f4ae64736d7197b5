"""Programs of the model's benchmark: inference and the training step, as a whole and stage by stage."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.model._synthetic import make_step, synthetic_batch
from benchmarks.tpu._product_flops import static_flops
from mrcnn_jax.config import Experiment
from mrcnn_jax.data.transforms import inference_sizes, resize_and_pad
from mrcnn_jax.detections import Detections
from mrcnn_jax.distributed import DEVICE_AXIS
from mrcnn_jax.inference.postprocess import to_detections
from mrcnn_jax.inference.program import compiled
from mrcnn_jax.models.detection import select_candidates, suppress
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.structures import Predictions, TrainState
from mrcnn_jax.training.losses import batch_losses
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.sharding import REPLICATED, SHARDED, device_mesh
from mrcnn_jax.training.step import create_state
from mrcnn_jax.training.targets import max_positives
from mrcnn_jax.typing import UInt8

Images = UInt8[np.ndarray, "B H W 3"]
CACHE_HIT = "/jax/compilation_cache/cache_hits"


class Timed:
    """Calls a function, waits for its result, keeps it as ``result``, and returns the seconds.

    Args:
        function: of arrays.
        first: its first arguments.
    """

    def __init__(self, function: Callable[..., Any], *first: Any):
        self._function, self._first, self.result = function, first, None

    def __call__(self, *arguments: Any) -> float:
        begin = time.perf_counter()
        self.result = jax.block_until_ready(self._function(*self._first, *arguments))
        return time.perf_counter() - begin


class _Program:
    """A compiled program."""

    def __init__(self, function: Any, arguments: Sequence[Any]):
        hits = []
        jax.monitoring.register_event_listener(lambda event, **_: hits.append(event == CACHE_HIT))
        begin = time.perf_counter()
        self.compiled = function.lower(*arguments).compile()
        seconds = round(time.perf_counter() - begin, 2)
        self._compile_seconds = None if any(hits) else seconds
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tuple(arguments))
        self._trace = lambda: jax.make_jaxpr(function)(*shapes)

    def facts(self) -> dict[str, Any]:
        """Returns FLOPs of products, bytes of memory, and seconds of tracing and compiling.

        The seconds are None if the program came from the compilation cache.
        """
        memory = self.compiled.memory_analysis()
        sizes = (getattr(memory, f"{kind}_size_in_bytes") for kind in ("argument", "output", "temp"))
        return {
            "flops": static_flops(self._trace()), "memory_bytes": sum(sizes) - memory.alias_size_in_bytes,
            "compile_seconds": self._compile_seconds,
        }  # fmt: skip


class Inference(_Program):
    """Inference of a batch, from images on the host to detections with run-length masks.

    Attributes:
        detections: of the last run, by image.
    """

    def __init__(self, experiment: Experiment, variables: Any, images: Images):
        self.experiment, self.variables, self.images = experiment, variables, images
        self.config = experiment.model
        size = inference_sizes(*images.shape[1:3], experiment.data, self.config.conventions)
        self.size, self.padded_size = size
        self.sizes = np.tile(np.int32([self.size]), (len(images), 1))
        predict = compiled(self.config, experiment.train.dtype)
        super().__init__(jax.jit(lambda *given: predict(*given)), (variables, self._pad(), self.sizes))
        self.detections: list[Detections] = []

    @property
    def objects(self) -> list[int]:
        """Numbers of detections of the last run."""
        return list(map(len, self.detections))

    def __call__(self) -> float:
        """Returns the seconds of a run."""
        begin = time.perf_counter()
        self.detections = self._paste(self.compiled(self.variables, self._pad(), self.sizes))
        return time.perf_counter() - begin

    def _pad(self) -> np.ndarray:
        conventions = self.config.conventions
        return np.stack([resize_and_pad(i, self.size, self.padded_size, conventions) for i in self.images])

    def _paste(self, predictions: Predictions) -> list[Detections]:
        found, original = jax.device_get(predictions), self.images.shape[1:3]
        images = map(found.image, range(len(self.images)))
        return [to_detections(image, self.size, original, self.config) for image in images]

    def make_stages(self) -> Callable[[], dict[str, float]]:
        """Compiles every stage on its own; returns a function that returns the seconds of each."""
        config, sizes = self.config, self.sizes
        model = MaskRCNN(config, np.dtype(self.experiment.train.dtype))

        def stage(function: Callable[..., Any]) -> Timed:
            return Timed(jax.jit(nn.apply(function, model)), self.variables)

        def proposals(model, pyramid, logits, deltas):
            anchors = model.anchors(pyramid, self.padded_size)
            return model.proposals(logits, deltas, anchors, sizes)

        def masks(model, features, classes):
            return model.mask_probabilities(model.mask_logits(features), classes)

        def detect(model, logits, deltas, proposals):
            found = select_candidates(logits, deltas, proposals, sizes, config.box, config.max_box_scale)
            return suppress(found, config.box)

        def pool(branch):
            return lambda model, pyramid, boxes: model.roi_features(pyramid, boxes, config.pool_of(branch))

        pad, paste = Timed(self._pad), Timed(self._paste)
        pyramid, rpn = stage(MaskRCNN.pyramid), stage(MaskRCNN.objectness)
        propose, box_pool, box = stage(proposals), stage(pool("box")), stage(MaskRCNN.classify)
        detection, mask_pool, mask = stage(detect), stage(pool("mask")), stage(masks)

        def run():
            seconds = {"resize and pad": pad()}
            seconds["pyramid"] = pyramid(pad.result, sizes)
            seconds["RPN head"] = rpn(pyramid.result)
            seconds["proposals"] = propose(pyramid.result, *rpn.result)
            seconds["RoI pooling, boxes"] = box_pool(pyramid.result, propose.result.boxes)
            seconds["box head"] = box(box_pool.result)
            seconds["detection"] = detection(*box.result, propose.result)
            seconds["RoI pooling, masks"] = mask_pool(pyramid.result, detection.result.boxes)
            seconds["mask head"] = mask(mask_pool.result, detection.result.classes)
            seconds["pasting"] = paste(replace(detection.result, masks=mask.result))
            return seconds

        return run


class Training(_Program):
    """The training step of a batch on one device, which the batch already is on.

    Attributes:
        objects: numbers of RoIs that the mask head is computed for, by image.
    """

    def __init__(self, experiment: Experiment, variables: Any, images: Images, boxes: np.ndarray):
        train = replace(experiment.train, images_per_device=len(images), learning_rate=1e-6)
        self.experiment = replace(experiment, train=train)
        config, objects = self.experiment.model, boxes.shape[1]
        batch = synthetic_batch(self.experiment, 1, objects)
        batch.boxes[0, :, :objects] = boxes
        padded, sizes = batch.images.shape[2:4], np.int32([[images.shape[1:3]]])
        padded_images = [resize_and_pad(i, i.shape[:2], padded, config.conventions) for i in images]
        batch = replace(batch, images=np.stack(padded_images)[None], sizes=np.repeat(sizes, len(images), 1))
        self.batch, self.state = self._place(batch, SHARDED), self._make_state(variables)
        step, _ = make_step(self.experiment, jax.devices()[:1])
        super().__init__(step, (self.state, self.batch))
        self.objects = [max_positives(config.roi)] * len(images)

    def __call__(self) -> float:
        """Returns the seconds of a step."""
        begin = time.perf_counter()
        self.state, self.metrics = jax.block_until_ready(self.compiled(self.state, self.batch))
        return time.perf_counter() - begin

    @staticmethod
    def _place(tree: Any, spec: PartitionSpec) -> Any:
        return jax.device_put(tree, NamedSharding(device_mesh(jax.devices()[:1]), spec))

    def _make_state(self, variables: Any) -> TrainState:
        config = self.experiment.train
        optimizer = make_optimizer(config, self.experiment.model, config.images_per_device)
        return self._place(create_state(variables, optimizer, bool(config.ema_decay)), REPLICATED)

    def make_stages(self) -> Callable[[], dict[str, float]]:
        """Compiles losses, gradient and update on their own; returns a function that returns their seconds.

        The backward pass is what the gradient takes longer than the losses.
        """
        config, images = self.experiment.train, self.experiment.train.images_per_device
        model = MaskRCNN(self.experiment.model, np.dtype(config.dtype), config.remat)
        optimizer = make_optimizer(config, self.experiment.model, images)

        def loss(params, model_state, batch):
            keys = jax.random.split(jax.random.key(0), images)
            losses = nn.apply(batch_losses, model, mutable=["batch_stats"])
            return losses({"params": params, **model_state}, batch, keys)[0]["loss"]

        def update(gradient, state):
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            return optax.apply_updates(state.params, updates), opt_state

        mapped = partial(
            jax.pmap, axis_name=DEVICE_AXIS, in_axes=(None, None, 0), out_axes=None, devices=jax.devices()[:1]
        )
        forward, gradient = Timed(mapped(loss)), Timed(mapped(jax.grad(loss)))
        apply = Timed(jax.jit(update))

        def run():
            given = self.state.params, self.state.model_state, self.batch
            forward_seconds, gradient_seconds = forward(*given), gradient(*given)
            update_seconds = apply(gradient.result, self.state)
            backward_seconds = gradient_seconds - forward_seconds
            return {"forward": forward_seconds, "backward": backward_seconds, "update": update_seconds}

        return run
