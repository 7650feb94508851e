"""Return memory to the system that was filled with zeros and not used yet.

llama.cpp clears the cells of all sessions when it allocates them, and so takes their memory at
once: several times the weights of a small model, though most sessions are short and many never
open. A page of zeros that is returned still reads as zeros, and is allocated again when written to.
"""

import ctypes
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BLOCK_BYTES = 2 << 20
"""Checked and returned as a whole: a huge page, so that none is split into small ones."""

_MAPS = Path("/proc/self/maps")
_ANONYMOUS = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0 *(\[heap\])?")


def give_back_zeros() -> int:
    """Return whole blocks of zeros in this process's memory to the system; return their bytes.

    No other thread may write meanwhile: data written to a block between the check and its return
    would be lost. Only Linux lists a process's memory; on other systems nothing is returned.
    """
    if not _MAPS.exists():
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    given = 0
    for start, end in _ranges(_MAPS.read_text()):
        if _is_zero(start, end - start):
            done = libc.madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED
            )
            given += 0 if done else end - start
    return given


def _ranges(maps: str) -> Iterator[tuple[int, int]]:
    """Yield the addresses of all whole blocks in private memory that is not backed by a file."""
    for line in maps.splitlines():
        found = _ANONYMOUS.fullmatch(line)
        if found is None:
            continue
        first, end = int(found[1], 16), int(found[2], 16)
        first = -(-first // BLOCK_BYTES) * BLOCK_BYTES
        for start in range(first, end - BLOCK_BYTES + 1, BLOCK_BYTES):
            yield start, start + BLOCK_BYTES


def _is_zero(start: int, count: int) -> bool:
    words = np.ctypeslib.as_array((ctypes.c_uint64 * (count // 8)).from_address(start))
    # Most blocks of weights begin with nonzero words: check a few before all.
    return not words[:64].any() and not words.any()
