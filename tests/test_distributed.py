"""How the processes of a run find each other, and what is said where they cannot. Real ones, two of them, are started by tests/test_scaling.py and tests/test_faults.py."""

import jax
import jax.numpy as jnp
import pytest

from mrcnn_jax import distributed
from mrcnn_jax.errors import InputError, Interrupted


@pytest.fixture
def joined(monkeypatch):
    """What would be given to jax.distributed.initialize, call by call, on a machine that nothing is known of."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: [])
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_SKIP_MDS_QUERY", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_a_process_alone_joins_nobody(joined):
    distributed.initialize()
    assert joined == []


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize("tasks, joins", [("1", False), ("16", True)])
def test_launchers_are_recognised(joined, monkeypatch, name, tasks, joins):
    monkeypatch.setenv(name, tasks)
    distributed.initialize()
    assert joined == [(None, None, None)] * joins
    distributed.initialize("none")
    assert len(joined) == joins


def test_the_host_of_a_tpu_asks_whether_it_is_part_of_a_pod(joined, monkeypatch):
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: ["/dev/accel0"] * ("accel" in pattern))
    monkeypatch.setattr(processes, "_has_libtpu", lambda: True)
    distributed.initialize()
    assert joined == [(None, None, None)]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    distributed.initialize()
    assert len(joined) == 1


def test_processes_are_given_by_hand(joined):
    distributed.initialize("host:1234", 4, 0)
    assert joined == [("host:1234", 4, 0)]


@pytest.mark.parametrize(
    "given", [("host:1234", None, None), (None, 2, None), (None, None, 1), ("host:1234", 2, None), ("host", 2, 0), ("host:1234", 2, 2), ("host:1234", 2, -1)]
)
def test_what_does_not_go_together_is_refused(joined, given):
    with pytest.raises(InputError, match="--coordinator .*HOST:PORT.*--process"):
        distributed.initialize(*given)
    assert not joined


def test_processes_that_do_not_come_are_worth_another_start(joined, monkeypatch):
    def fail(*_):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(Interrupted, match="cannot find each other: DEADLINE_EXCEEDED: nobody there$"):
        distributed.initialize("host:1234", 2, 0)


def test_one_process_is_all_there_are():
    assert distributed.is_primary() and distributed.all_gather_object({"a": [1.5, None]}) == [{"a": [1.5, None]}]
    assert not distributed.spans_processes(jnp.ones(3)) and not distributed.spans_processes(3.0)
    distributed.barrier()
