"""Making damaged parts of a model whole again, from the swarm."""

from collections.abc import Iterable, Sequence

from p2pinfer.core.manifest import Manifest
from p2pinfer.engine.store.store import Store
from p2pinfer.node.swarm_connection import open_swarm_connection
from peers.parts.fetch import Tell, fetch_parts
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
    """Fetch what the store lacks of some parts; waits for whoever holds it.

    Args:
        store: where they are kept.
        manifest: of the model.
        names: the parts.
        bootstrap: multiaddrs of peers in the swarm.
        reach: which swarm that is.
        tell: hears how far the transfer is, and what is waited for.

    Raises:
        NobodyServes: nobody answers at any of the addresses.
        UserError: an address cannot be used, or the disk takes no more.
    """
    async with open_swarm_connection(bootstrap, reach) as swarm:

        def holders() -> Iterable[Holder]:
            return swarm.directory.holding(manifest.id)

        await swarm.enter(None)
        start = swarm.chance.random()
        await fetch_parts(swarm.transport, holders, store, manifest, names, tell, start=start)
