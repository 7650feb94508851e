"""Fetching parts: what others hold is brought here, and what nobody holds is rebuilt."""

from collections.abc import Iterable

from p2pinfer.core.errors import lone_errors
from p2pinfer.core.ids import ChunkId
from p2pinfer.core.manifest import Manifest
from p2pinfer.engine.store.store import Store
from peers.parts.describe import Blame, Holders, Tell, fetch_lists, log_blame
from peers.parts.mend import Mender
from peers.parts.progress import Meter
from peers.parts.protocol import Moved, Run, in_thread
from peers.parts.transfer import Transfer
from scheduler.fetching import Fetching
from transports.base import Transport


async def fetch_parts(
    transport: Transport,
    holders: Holders,
    store: Store,
    manifest: Manifest,
    names: Iterable[str],
    tell: Tell = lambda _: None,
    *,
    start: float = 0.0,
    blame: Blame = log_blame,
    run: Run = in_thread,
    had: Moved = lambda *_: None,
) -> None:
    """Fetch the parts of a model that the store lacks, and return once all are complete.

    It may be cancelled, or the process killed, at any moment: stored chunks stay. Waits while no
    peer online holds what is missing, and reports that to ``tell``. ``blame`` gets the error of
    each holder that lied, which is not asked again in this transfer; ``had`` each one that gave
    chunks, and their bytes. A chunk that nobody has held
    for a while is rebuilt from other shares of its stripe, where the model is kept in stripes.

    ``start``, from 0 to 1 and best drawn at random, is where in the parts to begin, so that peers
    fetching the same ones soon have something for each other.

    Raises:
        MissingChunk: something else removed stored chunks meanwhile.
        UserError: the disk is full; stored chunks stay.
    """
    wanted = {part.hash: part for part in map(manifest.part, names)}
    unheld = [part for part in wanted.values() if not await run(store.held, part)]
    found = await fetch_lists(
        transport, holders, store, manifest.id, unheld, tell, blame=blame, run=run
    )
    wanted |= {part.hash: part for part in found}
    sizes: dict[ChunkId, int] = {}
    for part in wanted.values():
        if await run(store.held, part):
            continue
        chunks = set(range(part.chunk_count)) - await run(store.chunks_held, part)
        if not chunks:
            await run(store.finish, part)
        sizes |= {ChunkId(part.hash, n): part.chunk_size(n) for n in sorted(chunks)}
    meter = Meter(sum(part.size for part in wanted.values()))
    unfinished = {chunk.part for chunk in sizes}
    parts = [part for part in wanted.values() if part.hash in unfinished]
    mender = Mender(transport, holders, store, manifest, blame, run)
    transfer = Transfer(
        transport,
        store,
        manifest.id,
        parts,
        Fetching(sizes, start),
        run,
        blame,
        whole=unfinished,
        mend=mender.mend,
        had=had,
    )
    with lone_errors():
        await transfer.run(holders, meter, tell)
