"""Who worked for whom: a fold over receipts, in rows times layers.

A receipt counts all that its signer did in a session so far, so only the newest of a signer and
session stands, and the same one twice changes nothing. Terms name the requester: nobody else can
show the receipt as its own.
"""

from collections.abc import Iterable

from attrs import frozen

from p2pinfer.core.ids import PeerId
from p2pinfer.core.receipts import BadReceipt, Receipt, Terms

Key = tuple[PeerId, bytes, int, int]


@frozen
class LedgerEntry:
    """What one peer did for another in one session."""

    server: PeerId
    user: PeerId
    terms: bytes
    """Digest of the session's terms."""
    first: int
    end: int
    rows: int

    @property
    def key(self) -> Key:
        """What it stands under: a later entry of the same key takes its place."""
        return self.server, self.terms, self.first, self.end

    @property
    def layer_rows(self) -> int:
        """The work."""
        return self.rows * (self.end - self.first)


@frozen
class LedgerAccount:
    """What passed between this machine and one peer, in layer-rows."""

    peer: PeerId
    served: int
    """To the peer."""
    used: int
    """Of its work."""


def entry_of(terms: Terms, server: PeerId, receipt: Receipt, rows_max: int) -> LedgerEntry:
    """Return what a receipt, whose signature was checked, is worth.

    Args:
        terms: of the session.
        server: who signed.
        receipt: its word.
        rows_max: how many rows the requester knows that it sent; more are not counted.

    Raises:
        BadReceipt: it is not about this session.
    """
    if receipt.terms != terms.digest():
        raise BadReceipt("a receipt about another session")
    rows = min(receipt.rows, rows_max)
    return LedgerEntry(server, terms.requester, receipt.terms, receipt.first, receipt.end, rows)


def fold(entries: Iterable[LedgerEntry]) -> dict[Key, LedgerEntry]:
    """Return what counts of many entries, in any order: the largest of each key."""
    found: dict[Key, LedgerEntry] = {}
    for entry in entries:
        known = found.get(entry.key)
        if known is None or known.rows < entry.rows:
            found[entry.key] = entry
    return found


def accounts(served: Iterable[LedgerEntry], used: Iterable[LedgerEntry]) -> list[LedgerAccount]:
    """Return what passed between this machine and each peer, the busiest first."""
    totals: dict[PeerId, list[int]] = {}
    for entry in fold(served).values():
        totals.setdefault(entry.user, [0, 0])[0] += entry.layer_rows
    for entry in fold(used).values():
        totals.setdefault(entry.server, [0, 0])[1] += entry.layer_rows
    found = [LedgerAccount(peer, *both) for peer, both in totals.items()]
    return sorted(found, key=lambda each: (-each.served - each.used, each.peer))
