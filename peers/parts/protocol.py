"""The protocol "parts": its name, access to the disk, and bitmaps.

Why not libp2p's Bitswap: over loopback it moved 53 MB/s, in blocks of at most 512 KiB, and by
default it waits 90 s before it gives up on a block. Its use is to find out which peer has what;
here a fetcher knows every chunk from the manifest and every holder from the directory, so one
question and its answers on a plain channel suffice. In several runs of ``p2pinfer bench fetch`` on
two busy cores this moved 0.3 to 0.7 times as much as a plain stream of the same bytes, as fast as
the disk was at the time, and 1.2 to 2.2 times as much as a stream on libp2p's own muxer: checked,
written and synced.
"""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import trio

from p2pinfer.core.ids import PeerId

PARTS = "parts"

DISK_THREADS_MAX = 4
"""Enough to keep a disk busy while chunks are hashed; few enough to leave the rest alone."""

T = TypeVar("T")

Moved = Callable[[PeerId, int], object]
"""Called with a peer, and bytes that went to it or came from it."""

_disk = trio.CapacityLimiter(DISK_THREADS_MAX)


class Run(Protocol):
    """Runs a function that waits for a disk: in a thread, or in place under simulated time."""

    async def __call__(self, function: Callable[..., T], /, *args: object) -> T:
        """Return what the function returns."""
        ...


class Tally:
    """Counts what was given and had; this one forgets it."""

    def sent(self, peer: PeerId, count: int) -> None:
        """Note bytes that a peer took."""

    def had(self, peer: PeerId, count: int) -> None:
        """Note bytes of right chunks that a peer gave."""

    def kept(self, peer: PeerId, byte_s: int) -> None:
        """Note bytes times seconds that a peer has kept of a model, as a check showed."""


async def in_thread(function: Callable[..., T], /, *args: object) -> T:
    """Run a function in one of a few threads, so that a slow disk does not stop the event loop."""
    return await trio.to_thread.run_sync(function, *args, limiter=_disk)


async def in_place(function: Callable[..., T], /, *args: object) -> T:
    """Run a function in this thread: to a mock clock, another thread would look like idle time."""
    await trio.lowlevel.checkpoint()
    return function(*args)


def pack_bits(numbers: Iterable[int]) -> bytes:
    """Return a bitmap: bit ``i % 8`` of byte ``i // 8`` stands for ``i``; no longer than needed."""
    found = set(numbers)
    bits = bytearray(max(found, default=-1) // 8 + 1)
    for number in found:
        bits[number >> 3] |= 1 << (number & 7)
    return bytes(bits)


def unpack_bits(bits: bytes, count: int) -> set[int]:
    """Return the numbers in a bitmap; raises ValueError if one is ``count`` or more."""
    found = {8 * at + bit for at, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1}
    if max(found, default=-1) >= count:
        raise ValueError(f"a bitmap of {max(found) + 1} chunks for a part of {count}")
    return found
