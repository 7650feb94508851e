"""How much memory things need and how much there is, to warn a person before it runs out."""

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from p2pinfer.core.errors import UserError
from p2pinfer.engine.cgroups import memory_left_bytes
from p2pinfer.engine.gguf.architectures import RULES, Memory
from p2pinfer.engine.gguf.layer_facts import layer_memories
from p2pinfer.engine.gguf.model_header import model_info
from p2pinfer.engine.gguf.reader import GgufHeader
from p2pinfer.engine.gguf.values import Array
from p2pinfer.engine.gpu import Gpu

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


GPU_SHARE = 0.9
"""Of a GPU's free memory: little else wants it, but a screen's contents change."""

GPU_BYTES = 384 << 20
"""What a process takes of a GPU besides weights and cells: the driver's context, compiled kernels,
compute buffers."""


def sessions_bytes(header: GgufHeader, layers: int, sessions: int, context: int) -> int:
    """Estimate the bytes of KV cells for sessions of ``context`` positions in ``layers`` layers.

    If a model's layers differ, each is assumed to need as much as the model's width allows. Of a
    hybrid, whose layers keep states of one size or cells, the mean is taken.
    """
    if states := _states(header):
        share, state_bytes = states
        cells = _NUMBER_BYTES * _row_numbers(header) * context
        mean = share * state_bytes + (1 - share) * cells
        return math.ceil(mean * layers * sessions)
    return _NUMBER_BYTES * _row_numbers(header) * layers * sessions * context


def _row_numbers(header: GgufHeader) -> int:
    """Return how many numbers a position has in one layer's cells."""
    architecture = header.string("general.architecture")
    rules = RULES.get(architecture or "")
    hybrid = rules is not None and rules.is_hybrid  # some of its layers have no cells at all

    def whole(name: str) -> int | None:
        key = f"{architecture}.attention.{name}"
        found = header.metadata.get(key)
        if isinstance(found, Array):
            return max(map(int, found.decode())) if hybrid else None
        return header.integer(key)

    width = header.integer(f"{architecture}.embedding_length") or 0
    heads = whole("head_count")
    row = 2 * width
    if heads:
        kv_heads = whole("head_count_kv") or heads
        keys = whole("key_length") or width // heads
        values = whole("value_length") or width // heads
        row = kv_heads * (keys + values)
    return row


def _states(header: GgufHeader) -> tuple[float, int] | None:
    """Return which share of a hybrid's layers has no cells, and a state's bytes; None of others."""
    architecture = header.string("general.architecture") or ""
    rules = RULES.get(architecture)
    if rules is None or not rules.is_hybrid:
        return None
    memories = layer_memories(header, model_info(header)) or [Memory.CELLS]

    def whole(name: str) -> int:
        return header.integer(f"{architecture}.ssm.{name}") or 0

    inner, size = whole("inner_size"), whole("state_size")
    before = (whole("conv_kernel") - 1) * (inner + 2 * whole("group_count") * size)
    if kept := header.integer(f"{architecture}.shortconv.l_cache"):
        before = (kept - 1) * (header.integer(f"{architecture}.embedding_length") or 0)
    share = 1 - memories.count(Memory.CELLS) / len(memories)
    return share, 4 * (before + inner * size)


def aside_sessions(sessions: int) -> int:
    """Return for how many sessions a stage of ``sessions`` has cells aside of theirs.

    One at least is counted: a session that is opened has cells beside it for that time.
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


def budget_bytes(named: int | None, gpu: Gpu | None = None) -> int:
    """Return how many bytes a peer may use: ``named`` if given, else a share of what is free.

    On a GPU its own memory counts, which has to hold more than weights and cells.
    """
    if gpu:
        room = int(GPU_SHARE * gpu.free_bytes) - GPU_BYTES
        return max(0, room if named is None else min(named, room))
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
