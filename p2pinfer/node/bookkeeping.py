"""What a serving peer signs, counts and tells about the work that it does."""

from functools import partial

from p2pinfer.core.advertisement import State
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.ledger import LedgerEntry
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.node.ledger_db import LedgerKeeper, open_books, weighed
from p2pinfer.node.sponsors import clock_ms
from p2pinfer.node.swarm_connection import SwarmConnection
from peers.discovery.directory import Directory
from peers.receipts.signer import ReceiptSigner
from peers.serving.accounts import Accounts
from peers.serving.credit import Credit


def keep_accounts(
    swarm: SwarmConnection, model: PartsModel, network: str, bookkeeper: LedgerKeeper
) -> tuple[ReceiptSigner, Accounts]:
    """Sign for work and count it, and tell others what is owed, from now on."""
    transport, directory, identity = swarm.transport, swarm.directory, swarm.identity
    others = partial(directory.serving, model.id)
    credit = Credit(transport, identity.sign, open_books(), others, swarm.chance)
    credit.listen()
    swarm.nursery.start_soon(credit.run)
    serves = partial(_serves, directory, transport.peer_id, model.id)
    accounts = Accounts(network, clock_ms, serves, credit.places)

    def served(entry: LedgerEntry) -> None:
        bookkeeper.served(weighed(accounts.booked(entry), model.manifest))

    signer = ReceiptSigner(transport, identity.sign, served)
    signer.listen()
    return signer, accounts


def _serves(directory: Directory, me: PeerId, model: ModelId, peer: PeerId) -> bool:
    serving = (other for other in directory.serving(model) if other.state is State.SERVING)
    return peer == me or any(other.peer == peer for other in serving)
