"""How much memory sessions take, so that a person hears of it before llama.cpp runs out."""

import os
from pathlib import Path

from p2pinfer.core.errors import UserError
from p2pinfer.engine.gguf.reader import GgufHeader
from p2pinfer.engine.gguf.values import Array

_NUMBER_BYTES = 2
"""Keys and values are kept in float16 or bfloat16."""

WORKER_BYTES = 96 << 20
"""What an engine's process takes besides weights and cells: Python, llama.cpp, compute buffers."""

MEMORY_SHARE = 0.5
"""Of what is free: a peer lends, and whoever sits at the machine has work to do."""

_MEMINFO = Path("/proc/meminfo")


def sessions_bytes(header: GgufHeader, layers: int, sessions: int, context: int) -> int:
    """Estimate the KV cells of so many sessions of ``context`` positions in so many layers.

    Where a model's layers differ, the most that its width allows is assumed of each.
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


def available_bytes(meminfo: Path = _MEMINFO) -> int | None:
    """Return how much memory programs may still take; None where the system does not say."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else 1024 * int(kib)


def budget_bytes(named: int | None) -> int:
    """Return how much a peer may use: what a person named, or a share of what is free."""
    if named is not None:
        return named
    free = available_bytes()
    if free is None:  # not Linux: of all that there is
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(MEMORY_SHARE * free)


def check_fits(needed: int, available: int | None, sessions: int, context: int) -> None:
    """Raise UserError if sessions need more memory than there is; unknown is enough."""
    if available is not None and needed > available:
        raise UserError(
            f"{sessions} sessions of {context:,} positions need {_gib(needed)} of memory, and"
            f" {_gib(available)} are free: choose a smaller --context, or fewer --sessions"
        )


def mib(count: int) -> str:
    """Write a number of bytes."""
    return f"{count / (1 << 20):,.0f} MiB"


def _gib(count: int) -> str:
    return f"{count / (1 << 30):,.1f} GiB"
