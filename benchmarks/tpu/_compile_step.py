"""The training step compiled for all chips of a TPU slice, on a machine without one."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.model.train_step import standalone, synthetic_batch
from benchmarks.tpu._hlo import all_reduces, estimated_cycles
from benchmarks.tpu._programs import compile_for, figures, first_sentence, topology
from benchmarks.tpu._step_flops import step_flops
from mrcnn_jax.config import Experiment
from mrcnn_jax.data.transforms import padded_size
from mrcnn_jax.models.mask_rcnn import MaskRCNN, init_variables
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.step import create_state, make_train_step

CLASSES, KEYPOINTS = 80, 17
"""COCO's, for experiments that take them from their data set."""
REFUSAL = re.compile(
    r"(?:Used|required for [\w ]+ \()\s*([\d.]+)([MGT])\)?.*?(?:of|available HBM \()\s*([\d.]+)([MGT])"
)
UNITS = {"M": 2**20, "G": 2**30, "T": 2**40}


def compile_step(experiment: Experiment, slice_name: str, effort: float = 0.0) -> tuple[dict[str, Any], str]:
    """Compiles the training step of an experiment.

    Args:
        experiment: with the images and data type of a chip.
        slice_name: such as v5e:2x4.
        effort: of the compiler, from -1 to 0.

    Returns:
        The figures of a chip, and the program's text. For a step that does not fit: the reason as
        ``unavailable``, and no text.
    """
    devices, config = list(topology(slice_name)), experiment.train
    experiment = standalone(experiment, CLASSES, KEYPOINTS)
    row = {
        "topology": slice_name, "chips": len(devices), "experiment": experiment.name,
        "images_per_chip": config.images_per_device,
        "image_size": padded_size(experiment.data, portrait=False),
        "dtype": config.dtype, "parallel": config.parallel, "accumulate": config.accumulate,
        "remat": config.remat, "reduce_dtype": config.reduce_dtype, "effort": effort,
        "product_flops": _flops(experiment),
    }  # fmt: skip
    step, arguments = step_and_arguments(experiment, devices)
    start = time.process_time()
    try:
        with compiler_effort(effort):
            program = compile_for(step, arguments)
    except (RuntimeError, NotImplementedError) as error:
        return row | {"unavailable": first_sentence(error), "missing_bytes": missing_bytes(str(error))}, ""
    row["compile_cpu_seconds"] = round(time.process_time() - start)
    text = program.compiled.as_text()
    return row | figures(program) | {"all_reduces": all_reduces(text), "cycles": estimated_cycles(text)}, text


def step_and_arguments(experiment: Experiment, devices: list[jax.Device]) -> tuple[Any, tuple[Any, Any]]:
    """Returns the training step for devices, and the shapes of its state and batch."""
    config = experiment.train
    model = MaskRCNN(experiment.model, jnp.dtype(config.dtype), config.remat)
    optimizer = make_optimizer(config, experiment.model, config.images_per_device * len(devices))
    state = jax.eval_shape(lambda: create_state(init_variables(model, jax.random.key(0)), optimizer))
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((len(devices), *leaf.shape[1:]), leaf.dtype),
        synthetic_batch(experiment, devices=1, objects=1),
    )
    return make_train_step(model, optimizer, experiment, devices=devices), (state, batch)


@contextmanager
def compiler_effort(effort: float) -> Iterator[None]:
    """Sets how hard the compiler tries to make programs fast, from -1 to 0, as a setting of jax."""
    before = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", effort)
    try:
        yield
    finally:
        jax.config.update("jax_exec_time_optimization_effort", before)


def missing_bytes(message: str) -> int | None:
    """Returns how much more HBM a chip would need, by a compiler's refusal; None if it has another reason."""
    if match := REFUSAL.search(message):
        needed, available = (float(match[i]) * UNITS[match[i + 1]] for i in (1, 3))
        return max(0, round(needed - available))
    return None


@lru_cache(maxsize=4)
def _flops(experiment: Experiment) -> int:
    # the computation of one device does not depend on the number of devices
    step, arguments = step_and_arguments(experiment, jax.devices()[:1])
    return step_flops(step, arguments, experiment)
