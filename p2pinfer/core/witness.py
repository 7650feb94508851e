"""What is remembered of a session at one end: both trees, and rows that are kept nowhere else.

A step costs one append while a token waits for it; rows are hashed later, when a receipt is due.
Rows go in and out in lockstep, so a receipt never mixes dropped rows with those that replaced
them.
"""

from collections.abc import Callable, Iterable

from attrs import frozen

from p2pinfer.core.merkle import Tree
from p2pinfer.core.receipts import CHECKPOINT_POSITIONS, SIGNED_AS, Receipt, Signed

UNHASHED_STEPS_MAX = 4 * CHECKPOINT_POSITIONS
"""Hashed at once when this many wait: even without receipts, memory must stay bounded."""


@frozen
class Seat:
    """Whose receipts these are, and what they say besides roots."""

    terms: bytes
    """Digest of the session's terms."""
    first: int
    end: int
    numerics: bytes
    sign: Callable[[bytes], bytes]


@frozen
class OpenedRows:
    """Rows at consecutive positions, as on the wire, and which of them ran wide."""

    regimes: tuple[bool, ...]
    rows: bytes


def runs_of(regimes: Iterable[bool]) -> tuple[int, ...]:
    """Return run lengths, wide and narrow alternating, wide first; the first may be 0."""
    found, wide = [0], True
    for each in regimes:
        if each is not wide:
            found.append(0)
            wide = each
        found[-1] += 1
    return tuple(found)


def regimes_of(runs: Iterable[int]) -> tuple[bool, ...]:
    """Return for each position whether it ran wide: the inverse of ``runs_of``."""
    return tuple(index % 2 == 0 for index, length in enumerate(runs) for _ in range(length))


class Rows:
    """Rows of one direction, by position, and the tree over them."""

    def __init__(self, *, keep: bool) -> None:
        self.tree = Tree()
        self._kept: list[bytes] | None = [] if keep else None
        self._wide: list[bool] = []

    def put(self, position: int, count: int, rows: bytes, *, wide: bool) -> None:
        """Put rows at consecutive positions, replacing what was there and after."""
        self.tree.truncate(position)
        del self._wide[position:]
        self._wide += [wide] * count
        if self._kept is not None:
            del self._kept[position:]
        size = len(rows) // count
        for start in range(0, len(rows), size):
            row = rows[start : start + size]
            self.tree.append(row, wide=wide)
            if self._kept is not None:
                self._kept.append(row)

    def regimes(self, count: int) -> tuple[bool, ...]:
        """Return which of the first ``count`` rows ran wide."""
        return tuple(self._wide[:count])

    def open(self, position: int, count: int) -> OpenedRows:
        """Return rows that are in the tree."""
        assert self._kept is not None
        kept = self._kept[position : position + count]
        return OpenedRows(tuple(self._wide[position : position + count]), b"".join(kept))


class Witness:
    """Both directions of a session at one end: what came in, what went out."""

    def __init__(self, *, keep: bool) -> None:
        self._received, self._sent = Rows(keep=keep), Rows(keep=keep)
        self._unhashed: list[tuple[int, int, bool, bytes, bytes]] = []
        self._checkpoint = CHECKPOINT_POSITIONS
        self._length = self._number = 0
        self.rows = 0
        """Computed so far, dropped ones too."""

    @property
    def length(self) -> int:
        """How many positions it holds."""
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

    def add(self, position: int, count: int, received: bytes, sent: bytes, *, wide: bool) -> bool:
        """Remember a step; return whether a checkpoint is due."""
        assert position <= self._length
        if len(self._unhashed) == UNHASHED_STEPS_MAX:
            self._hash()
        self._unhashed.append((position, count, wide, received, sent))
        self._length = position + count
        self.rows += count
        if position < self._checkpoint - CHECKPOINT_POSITIONS:
            self._checkpoint = position // CHECKPOINT_POSITIONS * CHECKPOINT_POSITIONS
            self._checkpoint += CHECKPOINT_POSITIONS
        return self._length >= self._checkpoint

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
        for position, count, wide, received, sent in self._unhashed:
            self._received.put(position, count, received, wide=wide)
            self._sent.put(position, count, sent, wide=wide)
        self._unhashed.clear()
