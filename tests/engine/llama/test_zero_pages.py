"""Pages of zeros go back to the system, and nothing else does."""

import ctypes
import mmap
import re
import sys
from pathlib import Path

import pytest

from p2pinfer.engine.llama.zero_pages import BLOCK_BYTES, give_back_zeros

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists it")

BLOCKS = 8


def resident_bytes(address: int) -> int:
    """Return how much of the mapping around an address is in memory."""
    within = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            within = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif within and line.startswith("Rss:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no such mapping")


def test_blocks_of_zeros_are_given_back_and_read_as_zeros() -> None:
    """Cleared memory is free again; data written to it stays."""
    with mmap.mmap(-1, BLOCKS * BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        view = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(view)
        ctypes.memset(address, 0, len(memory))
        middle = 3 * BLOCK_BYTES + 77_777
        memory[middle : middle + 5] = b"kept!"
        before = resident_bytes(address)
        given = give_back_zeros()
        assert given >= (BLOCKS - 3) * BLOCK_BYTES
        assert resident_bytes(address) <= before - (BLOCKS - 3) * BLOCK_BYTES
        assert memory[middle : middle + 5] == b"kept!"
        assert memory[:middle].strip(b"\0") == b""
        memory[0:3] = b"new"
        assert memory[0:3] == b"new"
        del view
