"""Making damaged parts of a model whole again, from the swarm."""

import random
from collections.abc import Iterable, Sequence

import trio

from p2pinfer.core.errors import NobodyServes, lone_errors
from p2pinfer.core.manifest import Manifest
from p2pinfer.engine.store.store import Store
from p2pinfer.node.requester import open_transport
from peers.discovery.directory import Directory
from peers.parts.fetch import Tell, fetch_parts
from peers.parts.link import Holder
from transports.base import Reach
from transports.identity import ephemeral_identity


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
    chance = random.Random()  # noqa: S311 -- picks whom to ask, and where to begin
    identity = ephemeral_identity()

    def holders() -> Iterable[Holder]:
        return directory.holding(manifest.id)

    with lone_errors():
        async with (
            open_transport("libp2p", identity, [], reach) as transport,
            trio.open_nursery() as nursery,
        ):
            directory = Directory(transport, identity, chance)
            failures = await directory.enter(bootstrap)
            if len(failures) == len(bootstrap):
                reasons = "; ".join(str(failure) for failure in failures)
                raise NobodyServes(f"no peer answers: {reasons}")
            nursery.start_soon(directory.run, bootstrap)
            await fetch_parts(
                transport, holders, store, manifest, names, tell, start=chance.random()
            )
            nursery.cancel_scope.cancel()
