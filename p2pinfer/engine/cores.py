"""How many threads an engine can use here: fast cores, as far as this process may use them.

Threads of one decode wait for each other after every step of a layer, so the slowest core, or one
that somebody else keeps busy, sets the pace. Linux says in files what its cores are (its
``Documentation/ABI/testing/sysfs-devices-system-cpu``); elsewhere all count as alike.
"""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from p2pinfer.engine.cgroups import processors

_FAST_SHARE = 0.75
"""Of the fastest core's speed. Boosts differ by a few per cent between cores of one kind; efficient
ones reach half to two thirds."""

NODE_CORES = 1
"""Left to the node's own process, which passes rows on while the engine computes others'."""


def own_processors() -> set[int]:
    """Return the processors that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return set(affinity(0)) if affinity else set(range(os.cpu_count() or 1))


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many threads can run at once: on the cores and in the time given to this process.

    A machine's other cores may belong to other containers, or be excluded by ``taskset``.
    """
    cores, quota = len(own_processors()), processors(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def engine_cores(root: Path = Path("/"), own: Collection[int] | None = None) -> list[int]:
    """Return a processor of each core that engines may keep busy; at least one.

    Of two threads of a core one counts, since both share its arithmetic. The node runs on a slow
    core if there is one; if not, a fast core is left to it.

    Args:
        root: of the file system.
        own: the processors that this process may run on; None: as the system says.
    """
    own = own_processors() if own is None else set(own)
    fast = _fast(own, root)
    cores = sorted({min(_siblings(each, root) & own | {each}) for each in fast})
    most = len(cores) if own - fast - _with_siblings(fast, root) else len(cores) - NODE_CORES
    quota = processors(root)
    if quota is not None:
        most = min(most, int(quota - NODE_CORES))
    return cores[: max(1, most)]


def thread_counts(most: int) -> list[int]:
    """Return the numbers of threads that an engine may run with: powers of two, and the most."""
    counts = [1]
    while 2 * counts[-1] < most:
        counts.append(2 * counts[-1])
    return counts if most == 1 else [*counts, most]


def label(threads: int, *, is_most: bool) -> str:
    """Name a number of threads, or the most that may be used, in the name of a file."""
    return f"upto{threads}" if is_most and threads > 1 else str(threads)


def _fast(own: set[int], root: Path) -> set[int]:
    """Return the processors of fast cores."""
    if hybrid := _numbers(root / "sys/devices/cpu_core/cpus") & own:  # Intel's
        return hybrid
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):  # Arm's, and anybody's
        speeds = {each: _number(_folder(each, root) / name) for each in own}
        known = [speed for speed in speeds.values() if speed]
        if len(known) == len(own):
            return {each for each, s in speeds.items() if s and s >= _FAST_SHARE * max(known)}
    return own


def _siblings(processor: int, root: Path) -> set[int]:
    return _numbers(_folder(processor, root) / "topology/thread_siblings_list")


def _with_siblings(cpus: set[int], root: Path) -> set[int]:
    return cpus.union(*(_siblings(each, root) for each in cpus))


def _folder(processor: int, root: Path) -> Path:
    return root / f"sys/devices/system/cpu/cpu{processor}"


def _number(path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return 0


def _numbers(path: Path) -> set[int]:
    """Read a list such as ``0-3,8``; empty if there is none."""
    found: set[int] = set()
    with suppress(OSError, ValueError):
        for each in path.read_text().strip().split(","):
            first, _, last = each.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found
