"""Cores and memory that limits leave to a process."""

import os

from mrcnn_jax.machine import usable_cores, usable_memory


def test_cores_are_those_of_the_affinity():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert usable_cores() == len(allowed)


def test_memory_is_that_of_the_container(tmp_path):
    whole = usable_memory(())
    assert whole == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for text, expected in (("1000000\n", 1_000_000), ("max\n", whole), (f"{2 * whole}\n", whole)):
        (tmp_path / "memory.max").write_text(text)
        assert usable_memory((str(tmp_path / "nowhere"), str(tmp_path / "memory.max"))) == expected
