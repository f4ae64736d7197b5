"""The training step compiled for all chips of a TPU slice, on a machine without one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from benchmarks.model._synthetic import standalone
from benchmarks.tpu._hlo import all_reduces, cycles_by_part, estimated_cycles
from benchmarks.tpu._programs import compile_for, figures, first_sentence, topology
from benchmarks.tpu._step_flops import step_and_arguments, step_flops
from mrcnn_jax.config import Experiment
from mrcnn_jax.data.transforms import padded_size

CLASSES, KEYPOINTS = 80, 17
"""COCO's, for experiments that take them from their data set."""


def compile_step(experiment: Experiment, slice_name: str, effort: float = 0.0) -> dict[str, Any]:
    """Returns the figures of a chip for an experiment's training step, with the images and dtype of a chip.

    For a step that does not compile: the reason as ``unavailable``. ``slice_name`` is such as v5e:2x4,
    ``effort`` the compiler's, from -1 to 0.
    """
    devices, config = list(topology(slice_name)), experiment.train
    experiment = standalone(experiment, CLASSES, KEYPOINTS)
    row = {
        "topology": slice_name, "chips": len(devices), "experiment": experiment.name,
        "images_per_chip": config.images_per_device,
        "image_size": padded_size(experiment.data, portrait=False),
        "dtype": config.dtype, "parallel": config.parallel, "accumulate": config.accumulate,
        "remat": config.remat, "reduce_dtype": config.reduce_dtype, "effort": effort,
        "product_flops": step_flops(experiment),
    }  # fmt: skip
    step, arguments = step_and_arguments(experiment, devices)
    start = time.process_time()
    try:
        with _compiler_effort(effort):
            program = compile_for(step, arguments)
    except (RuntimeError, NotImplementedError) as error:
        return row | {"unavailable": first_sentence(error)}
    row["compile_cpu_seconds"] = round(time.process_time() - start)
    text = program.compiled.as_text()
    cycles, parts = estimated_cycles(text), cycles_by_part(text)
    return row | figures(program) | {"all_reduces": all_reduces(text), "cycles": cycles, "parts": parts}


@contextmanager
def _compiler_effort(effort: float) -> Iterator[None]:
    """Sets how hard the compiler tries to make programs fast, from -1 to 0, as a setting of jax."""
    before = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", effort)
    try:
        yield
    finally:
        jax.config.update("jax_exec_time_optimization_effort", before)
