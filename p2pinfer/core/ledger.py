"""How much work peers did for each other: a fold over receipts, in rows times layers.

A receipt counts all that its signer did in a session so far, so only the newest of each signer and
session counts, and seeing one twice changes nothing. Terms name the requester, so no other peer can
present the receipt as its own.
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
    weights: int = 0
    """Of these layers, in bytes; 0 where it is not known."""

    @property
    def key(self) -> Key:
        """Its key: a later entry with the same key replaces it."""
        return self.server, self.terms, self.first, self.end

    @property
    def layer_rows(self) -> int:
        """The work in layer-rows."""
        return self.rows * (self.end - self.first)


@frozen
class LedgerAccount:
    """Work exchanged between this machine and one peer, in layer-rows."""

    peer: PeerId
    served: int
    """Work done for the peer."""
    used: int
    """Work done by the peer."""


def entry_of(terms: Terms, server: PeerId, receipt: Receipt, rows_max: int) -> LedgerEntry:
    """Return what a receipt is worth, once its signature has been checked.

    Args:
        terms: of the session.
        server: the peer that signed.
        receipt: what it signed.
        rows_max: how many rows the requester knows it sent; any beyond that do not count.

    Raises:
        BadReceipt: it is not about this session.
    """
    if receipt.terms != terms.digest():
        raise BadReceipt("a receipt about another session")
    rows = min(receipt.rows, rows_max)
    return LedgerEntry(server, terms.requester, receipt.terms, receipt.first, receipt.end, rows)


def fold(entries: Iterable[LedgerEntry]) -> dict[Key, LedgerEntry]:
    """Return the entries that count, given in any order: the largest of each key."""
    found: dict[Key, LedgerEntry] = {}
    for entry in entries:
        known = found.get(entry.key)
        if known is None or known.rows < entry.rows:
            found[entry.key] = entry
    return found


def accounts(served: Iterable[LedgerEntry], used: Iterable[LedgerEntry]) -> list[LedgerAccount]:
    """Return the work exchanged between this machine and each peer, the busiest first."""
    totals: dict[PeerId, list[int]] = {}
    for entry in fold(served).values():
        totals.setdefault(entry.user, [0, 0])[0] += entry.layer_rows
    for entry in fold(used).values():
        totals.setdefault(entry.server, [0, 0])[1] += entry.layer_rows
    found = [LedgerAccount(peer, *both) for peer, both in totals.items()]
    return sorted(found, key=lambda each: (-each.served - each.used, each.peer))
