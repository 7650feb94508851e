"""Storing received chunks: a few at a time are handed to a thread to be hashed and written.

Handing over costs as much as hashing a chunk when all cores are busy: so the first chunk waits a
moment for others, as long as others are due.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import trio

from p2pinfer.core.ids import PartHash, PeerId
from p2pinfer.core.manifest import Part

BATCH_CHUNKS_MAX = 2
"""Handed to a thread at once; with more, chunks leave the CPU caches before their turn."""

BATCH_WAIT_S = 0.01
"""For a batch to fill: on a fast line it does, and on a slow one this wait is negligible."""

KEEPERS = 2
"""Batches being written at once, so that a disk which pauses does not stop the network."""


class Sink(Protocol):
    """Where chunks are put: the store, or memory."""

    def write_chunks(self, part: Part, chunks: Mapping[int, bytes]) -> set[int]:
        """Keep those chunks that are correct; return the numbers of the others."""
        ...

    def finish(self, part: Part) -> None:
        """Take note that all chunks of a part are there."""
        ...


@dataclass(frozen=True)
class Arrived:
    """A chunk received from a peer, not yet checked."""

    peer: PeerId
    part: Part
    number: int
    data: bytes


def store_all(store: Sink, batch: Iterable[Arrived]) -> list[bool]:
    """Hash chunks and write the correct ones; return for each whether it was. Waits for the disk.

    Raises:
        UserError: the disk is full.
    """
    chunks = list(batch)
    wrong: dict[PartHash, set[int]] = {}
    for part in {chunk.part.hash: chunk.part for chunk in chunks}.values():
        given = {chunk.number: chunk.data for chunk in chunks if chunk.part is part}
        wrong[part.hash] = store.write_chunks(part, given)
    return [chunk.number not in wrong[chunk.part.hash] for chunk in chunks]


async def keep_all(
    arrived: trio.MemoryReceiveChannel[Arrived],
    more: Callable[[], bool],
    keep: Callable[[list[Arrived]], Awaitable[None]],
) -> None:
    """Store all chunks that arrive, in batches, until cancelled.

    Args:
        arrived: chunks as they come.
        more: whether others are on their way.
        keep: stores a batch.
    """
    collecting = trio.Lock()

    async def work() -> None:
        while True:
            async with collecting:
                batch = [await arrived.receive()]
                with trio.move_on_after(BATCH_WAIT_S):
                    while len(batch) < BATCH_CHUNKS_MAX and more():
                        batch.append(await arrived.receive())
            await keep(batch)

    async with trio.open_nursery() as nursery:
        for _ in range(KEEPERS):
            nursery.start_soon(work)
