"""What a serving peer signs, counts and tells about the work that it does."""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial

import trio

from p2pinfer.core.advertisement import State
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.ledger import LedgerEntry
from p2pinfer.core.manifest import Manifest
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.node.ledger_db import LedgerDb, LedgerKeeper, Moved, Side, open_books, weighed
from p2pinfer.node.sponsors import clock_ms
from p2pinfer.node.swarm_connection import SwarmConnection
from peers.discovery.directory import Directory
from peers.parts.protocol import Tally
from peers.receipts.signer import ReceiptSigner
from peers.serving.accounts import Accounts
from peers.serving.credit import Credit

_log = logging.getLogger("p2pinfer.ledger")

WRITE_S = 60.0
"""How often what was counted is written: chunks come by the hundred a second."""


class BooksTally(Tally):
    """Counts parts that were sent and shares that were kept, and writes sums into the books."""

    def __init__(self, books: LedgerDb) -> None:
        self._books = books
        self._sums: Counter[tuple[Side, PeerId, str]] = Counter()

    def sent(self, peer: PeerId, count: int) -> None:
        """Note bytes that a peer took."""
        self._sums[Side.SERVED, peer, "sent_bytes"] += count

    def had(self, peer: PeerId, count: int) -> None:
        """Note bytes of right chunks that a peer gave."""
        self._sums[Side.USED, peer, "sent_bytes"] += count

    def kept(self, peer: PeerId, byte_s: int) -> None:
        """Note bytes times seconds that a peer has kept of a model, as a check showed."""
        self._sums[Side.USED, peer, "kept_byte_s"] += byte_s

    async def run(self) -> None:
        """Write sums for ever."""
        while True:
            await trio.sleep(WRITE_S)
            await trio.to_thread.run_sync(self.write)

    def write(self) -> None:
        """Write what was counted since the last time; waits for the disk, and raises nothing."""
        sums, self._sums = self._sums, Counter()
        moved = [Moved(side, peer, **{unit: n}) for (side, peer, unit), n in sums.items() if n]
        try:
            self._books.move(moved)
        except UserError as error:  # all else goes on without a ledger
            _log.warning("%s", error)


async def keep_used(done: Iterable[LedgerEntry], manifest: Manifest) -> None:
    """Write down what others did for this machine; the answer itself never fails for that."""
    try:
        weighted = [weighed(each, manifest) for each in done]
        await trio.to_thread.run_sync(open_books().keep, Side.USED, weighted)
    except UserError as error:
        _log.warning("%s", error)


@asynccontextmanager
async def counting(
    nursery: trio.Nursery | None = None, *, is_kept: bool = True
) -> AsyncIterator[Tally]:
    """Provide a tally that is written at the end of the block; in a nursery, now and then, too.

    Who hides keeps none: a peer of this machine would state what is owed, under its lasting id.
    """
    if not is_kept:
        yield Tally()
        return
    tally = BooksTally(open_books())
    if nursery:
        nursery.start_soon(tally.run)
    try:
        yield tally
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(tally.write)


def tell_credit(swarm: SwarmConnection, model: ModelId) -> Credit:
    """State what is owed to others that hold a model, and hear what they owe, from now on."""
    others = partial(swarm.directory.holding, model)
    credit = Credit(swarm.transport, swarm.identity.sign, open_books(), others, swarm.chance)
    credit.listen()
    swarm.nursery.start_soon(credit.run)
    return credit


def keep_accounts(
    swarm: SwarmConnection, model: PartsModel, network: str, bookkeeper: LedgerKeeper
) -> tuple[ReceiptSigner, Accounts, Credit]:
    """Sign for work and count it, and tell others what is owed, from now on."""
    transport, directory, identity = swarm.transport, swarm.directory, swarm.identity
    credit = tell_credit(swarm, model.id)
    serves = partial(_serves, directory, transport.peer_id, model.id)
    accounts = Accounts(network, clock_ms, serves, credit.places)

    def served(entry: LedgerEntry) -> None:
        bookkeeper.served(weighed(accounts.booked(entry), model.manifest))

    signer = ReceiptSigner(transport, identity.sign, served)
    signer.listen()
    return signer, accounts, credit


def _serves(directory: Directory, me: PeerId, model: ModelId, peer: PeerId) -> bool:
    serving = (other for other in directory.serving(model) if other.state is State.SERVING)
    return peer == me or any(other.peer == peer for other in serving)
