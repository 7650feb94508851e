"""Give memory back to the system that was filled with zeros and not used yet.

llama.cpp clears the cells of all sessions when it makes them, and by that takes their memory at
once: several times the weights of a small model, though most sessions are short and many never
open. A page of zeros that is given back reads as zeros, and comes again when it is written to.
"""

import ctypes
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BLOCK_BYTES = 2 << 20
"""Looked at and given back as a whole: a huge page, so that none is torn into small ones."""

_MAPS = Path("/proc/self/maps")
_ANONYMOUS = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0 *(\[heap\])?")


def give_back_zeros() -> int:
    """Give back whole blocks of zeros in this process's own memory; return how many bytes.

    Nothing may write meanwhile: a block is lost that another thread fills between the look at it
    and the giving back. Only Linux says where the memory is; elsewhere nothing is given back.
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
    """Yield the addresses of all whole blocks in private memory that no file is behind."""
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
    # Most blocks of weights differ from zero at once: look there before looking at all.
    return not words[:64].any() and not words.any()
