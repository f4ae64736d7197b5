"""Cores and memory that this process may use, which a container or a scheduler may have limited."""

import os
from collections.abc import Sequence

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def usable_cores() -> int:
    """Returns the number of CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_memory(limits: Sequence[str] = _CGROUP_LIMITS) -> int:
    """Returns the bytes of memory of this machine, or of its container if that has less.

    Args:
        limits: files with the limit of a container, as Linux's control groups have them.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in limits:
        try:
            with open(file) as stream:
                memory = min(memory, int(stream.read()))
        except (OSError, ValueError):  # "max" is no limit
            continue
    return memory
