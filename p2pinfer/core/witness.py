"""What is remembered of a session at one end: both trees, and rows if they are kept nowhere else.

A step costs one append while a token waits for it; rows are hashed later, when a receipt is due.
Rows go in and out in lockstep, so a receipt never mixes dropped rows with those that replaced
them.
"""

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Final

from attrs import frozen

from p2pinfer.core.merkle import Tree
from p2pinfer.core.receipts import CHECKPOINT_POSITIONS, SIGNED_AS, Receipt, Signed
from p2pinfer.core.regimes import Regime

UNHASHED_STEPS_MAX = 4 * CHECKPOINT_POSITIONS
"""When this many are waiting they are hashed at once: memory must stay bounded without receipts."""


@frozen
class Seat:
    """What a session's receipts say besides roots, and the key that signs them."""

    terms: bytes
    """Digest of the session's terms."""
    first: int
    end: int
    numerics: bytes
    sign: Callable[[bytes], bytes]


_OTHER: Final = {Regime.WIDE: Regime.NARROW, Regime.NARROW: Regime.WIDE}


@frozen
class OpenedRows:
    """Rows at consecutive positions, as on the wire, and the regime that each ran in."""

    regimes: tuple[Regime, ...]
    rows: bytes


def runs_of(regimes: Iterable[Regime]) -> tuple[int, ...]:
    """Return the lengths of runs of one regime: negative for blocks, wide and narrow in turn.

    A wide run comes first; a length of 0 keeps wide and narrow in turn.
    """
    found: list[int] = []
    due = Regime.WIDE
    for regime, same in groupby(regimes):
        length = sum(1 for _ in same)
        if regime is Regime.BLOCK:
            found.append(-length)
            continue
        found += [length] if regime is due else [0, length]
        due = _OTHER[regime]
    return tuple(found)


def regimes_of(runs: Iterable[int]) -> tuple[Regime, ...]:
    """Return each position's regime: what ``runs_of`` was given."""
    found: list[Regime] = []
    due = Regime.WIDE
    for length in runs:
        found += [Regime.BLOCK if length < 0 else due] * abs(length)
        due = due if length < 0 else _OTHER[due]
    return tuple(found)


class Rows:
    """Rows of one direction, by position, and the tree over them."""

    def __init__(self, *, keep: bool) -> None:
        self.tree = Tree()
        self._kept: list[bytes] | None = [] if keep else None
        self._regimes: list[Regime] = []

    def put(self, position: int, count: int, rows: bytes, *, regime: Regime) -> None:
        """Put rows at consecutive positions, replacing all rows from ``position`` on."""
        if position < len(self._regimes):
            self.tree.truncate(position)
            del self._regimes[position:]
            if self._kept is not None:
                del self._kept[position:]
        self._regimes += [regime] * count
        size = len(rows) // count
        for start in range(0, len(rows), size):
            row = rows[start : start + size]
            self.tree.append(row, regime=regime)
            if self._kept is not None:
                self._kept.append(row)

    def fork(self, count: int) -> "Rows":
        """Return the first ``count`` rows, to be continued apart from these."""
        found = Rows(keep=False)
        found.tree = self.tree.fork(count)
        found._kept = None if self._kept is None else self._kept[:count]
        found._regimes = self._regimes[:count]
        return found

    def regimes(self, count: int) -> tuple[Regime, ...]:
        """Return the regimes that the first ``count`` rows ran in."""
        return tuple(self._regimes[:count])

    def regime(self, position: int) -> Regime:
        """Return the regime that a row ran in."""
        return self._regimes[position]

    def open(self, position: int, count: int) -> OpenedRows:
        """Return rows that are in the tree."""
        assert self._kept is not None
        kept = self._kept[position : position + count]
        return OpenedRows(tuple(self._regimes[position : position + count]), b"".join(kept))


class Witness:
    """Both directions of a session at one end: what came in, what went out."""

    def __init__(self, *, keep: bool) -> None:
        self._received, self._sent = Rows(keep=keep), Rows(keep=keep)
        self._unhashed: list[tuple[int, int, Regime, bytes, bytes]] = []
        self._checkpoint = CHECKPOINT_POSITIONS
        self._length = self._number = 0
        self.rows = 0
        """Rows computed so far, dropped ones too."""

    @property
    def length(self) -> int:
        """How many positions it covers."""
        return self._length

    @property
    def received(self) -> Rows:
        """What came in."""
        self._hash()
        return self._received

    @property
    def sent(self) -> Rows:
        """What went out."""
        self._hash()
        return self._sent

    def add(
        self, position: int, count: int, received: bytes, sent: bytes, *, regime: Regime
    ) -> bool:
        """Remember a step; returns whether a checkpoint is due."""
        assert position <= self._length
        if len(self._unhashed) == UNHASHED_STEPS_MAX:
            self._hash()
        self._unhashed.append((position, count, regime, received, sent))
        self._length = position + count
        self.rows += count
        if position < self._checkpoint - CHECKPOINT_POSITIONS:
            self._checkpoint = position // CHECKPOINT_POSITIONS * CHECKPOINT_POSITIONS
            self._checkpoint += CHECKPOINT_POSITIONS
        return self._length >= self._checkpoint

    def fork(self, length: int) -> "Witness":
        """Return a witness of a session that begins with the first ``length`` rows of this one.

        They were not computed for it, so they count as none of its work.
        """
        found = Witness(keep=False)
        found._received, found._sent = self.received.fork(length), self.sent.fork(length)
        found._length = length
        found._checkpoint = (length // CHECKPOINT_POSITIONS + 1) * CHECKPOINT_POSITIONS
        return found

    def due(self, seat: Seat) -> list[Signed]:
        """Sign for every checkpoint passed since the last call."""
        found = []
        while self._length >= self._checkpoint:
            found.append(self.sign(seat, self._checkpoint))
            self._checkpoint += CHECKPOINT_POSITIONS
        return found

    def sign(self, seat: Seat, position: int) -> Signed:
        """Sign a receipt for the rows before a position, which it must hold."""
        self._number += 1
        receipt = Receipt(
            seat.terms,
            seat.first,
            seat.end,
            self._number,
            position,
            self.rows,
            self.received.tree.root(position),
            self.sent.tree.root(position),
            seat.numerics,
        )
        body = receipt.body()
        return Signed(body, seat.sign(SIGNED_AS + body))

    def _hash(self) -> None:
        for position, count, regime, received, sent in self._unhashed:
            self._received.put(position, count, received, regime=regime)
            self._sent.put(position, count, sent, regime=regime)
        self._unhashed.clear()
