"""Repairing damaged parts of a model from the swarm."""

from collections.abc import Iterable, Sequence

from p2pinfer.core.manifest import Manifest
from p2pinfer.engine.store.store import Store
from p2pinfer.node.swarm_connection import open_swarm_connection
from peers.parts.describe import Tell
from peers.parts.fetch import fetch_parts
from peers.parts.link import Holder
from transports.base import Reach


async def repair(
    store: Store,
    manifest: Manifest,
    names: Iterable[str],
    bootstrap: Sequence[str],
    reach: Reach,
    tell: Tell,
) -> None:
    """Fetch the chunks of some parts that the store lacks; waits for their holders.

    Args:
        store: where the parts are kept.
        manifest: the model's.
        names: the parts' names.
        bootstrap: multiaddrs of peers in the swarm.
        reach: which swarm it is.
        tell: called with the progress of the transfer, and what it waits for.

    Raises:
        NobodyServes: none of the addresses answers.
        UserError: an address cannot be used, or the disk is full.
    """
    async with open_swarm_connection(bootstrap, reach) as swarm:

        def holders() -> Iterable[Holder]:
            return swarm.directory.holding(manifest.id)

        await swarm.enter(None)
        start = swarm.chance.random()
        await fetch_parts(swarm.transport, holders, store, manifest, names, tell, start=start)
