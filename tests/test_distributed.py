"""Joining of a run's processes, without starting any (tests/slow does)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax import distributed
from mrcnn_jax.errors import InputError, Interrupted


@pytest.fixture
def initialize_calls(monkeypatch):
    """Records the arguments of jax.distributed.initialize, on a machine without launcher and TPU."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: [])
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_SKIP_MDS_QUERY", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_single_process_joins_nothing(initialize_calls):
    distributed.initialize()
    assert initialize_calls == []


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize("tasks, joins", [("1", False), ("16", True)])
def test_launchers_are_recognised(initialize_calls, monkeypatch, name, tasks, joins):
    monkeypatch.setenv(name, tasks)
    distributed.initialize()
    assert initialize_calls == [(None, None, None)] * joins
    distributed.initialize("none")
    assert len(initialize_calls) == joins


def test_tpu_hosts_may_be_part_of_a_pod(initialize_calls, monkeypatch):
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/accel0"] * ("accel" in pattern))
    monkeypatch.setattr(distributed, "_has_libtpu", lambda: True)
    distributed.initialize()
    assert initialize_calls == [(None, None, None)]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    distributed.initialize()
    assert len(initialize_calls) == 1


def test_explicit_arguments_are_passed_on(initialize_calls):
    distributed.initialize("host:1234", 4, 0)
    assert initialize_calls == [("host:1234", 4, 0)]


@pytest.mark.parametrize(
    "given",
    [
        ("host:1234", None, None), (None, 2, None), (None, None, 1), ("host:1234", 2, None), ("host", 2, 0),
        ("host:1234", 2, 2), ("host:1234", 2, -1),
    ],
)  # fmt: skip
def test_incomplete_arguments_are_rejected(initialize_calls, given):
    with pytest.raises(InputError, match="--coordinator .*HOST:PORT.*--process"):
        distributed.initialize(*given)
    assert not initialize_calls


def test_unreachable_processes_interrupt_the_run(initialize_calls, monkeypatch):
    def fail(*_):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(Interrupted, match="cannot reach each other: DEADLINE_EXCEEDED: nobody there$"):
        distributed.initialize("host:1234", 2, 0)


def test_single_process_gathers_its_own_value():
    value = {"a": [1.5, None]}
    assert distributed.is_primary() and distributed.all_gather_object(value) == [value]
    assert not distributed.spans_processes(jnp.ones(3)) and not distributed.spans_processes(3.0)
    distributed.barrier()


def test_objects_of_several_processes_are_gathered_in_order(monkeypatch):
    """Exchanges with itself, as if both processes had sent the same bytes."""
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        distributed.multihost_utils, "process_allgather", lambda array, tiled: np.concatenate([array, array])
    )
    first, second = distributed.all_gather_object({1: np.arange(3), "empty": None})
    for gathered in (first, second):
        assert gathered[1].tolist() == [0, 1, 2] and gathered["empty"] is None
