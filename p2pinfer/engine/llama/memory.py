"""How much memory things need and how much there is, to warn a person before it runs out."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from p2pinfer.core.errors import UserError
from p2pinfer.engine.cgroups import memory_left_bytes, processors
from p2pinfer.engine.gguf.reader import GgufHeader
from p2pinfer.engine.gguf.values import Array

_NUMBER_BYTES = 2
"""Keys and values are kept in float16 or bfloat16."""

WORKER_BYTES = 96 << 20
"""What an engine process needs besides weights and cells: Python, llama.cpp, compute buffers."""

NODE_BYTES = 128 << 20
"""What a peer's own process needs, without its engine: Python, libp2p and NumPy."""

ASIDE_MAX = 2
"""Sessions of a stage whose prompts are read aside at once, in cells besides those of all sessions
(see ``aside``); of a third one's prompt, whole blocks are waited for."""

MEMORY_SHARE = 0.5
"""Of free memory: the machine is only lent, and its owner needs the rest."""


def sessions_bytes(header: GgufHeader, layers: int, sessions: int, context: int) -> int:
    """Estimate the bytes of KV cells for sessions of ``context`` positions in ``layers`` layers.

    If a model's layers differ, each is assumed to need as much as the model's width allows.
    """
    architecture = header.string("general.architecture")

    def whole(name: str) -> int | None:
        key = f"{architecture}.attention.{name}"
        return None if isinstance(header.metadata.get(key), Array) else header.integer(key)

    width = header.integer(f"{architecture}.embedding_length") or 0
    heads = whole("head_count")
    row = 2 * width
    if heads:
        kv_heads = whole("head_count_kv") or heads
        keys = whole("key_length") or width // heads
        values = whole("value_length") or width // heads
        row = kv_heads * (keys + values)
    return _NUMBER_BYTES * row * layers * sessions * context


def aside_sessions(sessions: int) -> int:
    """Return for how many sessions a stage of ``sessions`` has cells aside of theirs.

    One at least: rows are run again there when they are opened.
    """
    return min(ASIDE_MAX, max(sessions - 1, 1))


def host_bytes() -> int:
    """Return how much memory the machine can give without swapping, in bytes."""
    return int(psutil.virtual_memory().available)


def available_bytes(root: Path = Path("/"), host_bytes: Callable[[], int] = host_bytes) -> int:
    """Return how much memory this process and its helpers may still take, in bytes.

    The machine may have more than the container, the cgroup or ``ulimit -v`` allows.
    """
    found = [host_bytes(), memory_left_bytes(root), _rlimit_bytes()]
    return min(each for each in found if each is not None)


def _rlimit_bytes() -> int | None:
    """Return how much one process may map; None if that is not limited."""
    with suppress(ImportError, OSError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        return None if soft == resource.RLIM_INFINITY else soft
    return None


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many threads can run at once: on the cores and in the time given to this process.

    A machine's other cores may belong to other containers, or be excluded by ``taskset``.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = processors(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def budget_bytes(named: int | None) -> int:
    """Return how many bytes a peer may use: ``named`` if given, else a share of what is free."""
    if named is not None:
        return named
    return int(MEMORY_SHARE * available_bytes())


def swap_bytes() -> int:
    """Return how many bytes the machine can still swap out."""
    return int(psutil.swap_memory().free)


def check_runs(what: str, needed: int, available: int, swap: int) -> None:
    """Raise UserError if something cannot fit in memory, even with everything else swapped out."""
    if needed > available + swap:
        raise UserError(
            f"{what} needs at least {mib(needed)} of memory, and {mib(available)} are free: end"
            " other programs, raise the limit if a container sets one, or choose a smaller model"
        )


def check_fits(needed: int, available: int, sessions: int, context: int) -> None:
    """Raise UserError if sessions need more memory than there is."""
    if needed > available:
        raise UserError(
            f"{sessions} sessions of {context:,} positions need {_gib(needed)} of memory, and"
            f" {_gib(available)} are free: choose a smaller --context, or fewer --sessions"
        )


def mib(count: int) -> str:
    """Format a number of bytes as MiB."""
    return f"{count / (1 << 20):,.0f} MiB"


def _gib(count: int) -> str:
    return f"{count / (1 << 30):,.1f} GiB"
