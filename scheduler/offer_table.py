"""The advertisements of a swarm as columns of numbers, so that many peers are judged at once.

A table holds one row per peer, of one model. It is updated advertisement by advertisement:
a decision over 100,000 peers then reads columns and touches no object.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from attrs import frozen

from p2pinfer.core.advertisement import ADVERTISEMENTS_MAX, LINKS_MAX, Advertisement, State
from p2pinfer.core.ids import PeerId
from p2pinfer.core.ways import is_behind_relays, relays_in

NUMBER_OF_STATE = {State.JOINING: 0, State.SERVING: 1, State.DRAINING: 2, State.LEFT: 3}

ROW_US_DEFAULT = 1000.0
"""Assumed for a layer where no time is known: that of a laptop and a model of 2B weights."""

FASTER_MAX = 10.0
"""No peer is believed to be faster than the median by more than this, unless it was observed."""

STANDING_NEW = 0.5
"""Of a peer not yet seen at work; see ``scheduler.standing``."""

LIE_FACTOR = 2.0
"""Work that takes more than this times the claim contradicts it; less may be other load."""

US_PER_S = 1e6

CHUNK_ROWS = 32
"""Rows in the decode that ``chunk_us`` measures."""

ROWS_MIN = 16
"""Rows that a new table has room for."""

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@frozen
class Experience:
    """This node's own observations, which outrank claims; peers not listed are new."""

    round_trip_s: Mapping[PeerId, float] = MappingProxyType({})
    """Measured from here, in seconds."""
    standing: Mapping[PeerId, float] = MappingProxyType({})
    """From 0, which is never used, to 1; see ``scheduler.standing``."""
    row_us: Mapping[PeerId, float] = MappingProxyType({})
    """What a layer really took, per row."""
    joining_s: Mapping[PeerId, float] = MappingProxyType({})
    """For how long peers have been joining."""
    sessions: Mapping[PeerId, int] = MappingProxyType({})
    """Sessions of this node open there, which other peers learn of later."""
    is_sample: bool = False
    """There are more peers than this node has room to know."""


NOTHING_SEEN = Experience()


def peer_key(peer: PeerId) -> int:
    """Return a peer's number, the same in every process."""
    return int.from_bytes(
        hashlib.blake2b(peer.encode(), digest_size=8).digest(), "big", signed=True
    )


_COLUMNS = (
    "key", "first", "end", "state", "row_us", "chunk_us", "layers_max", "sessions_max",
    "sessions_free", "queued_rows", "context", "hidden", "lone_relay", "relay_us",
)  # fmt: skip
"""The advertisement's own names, and what its addresses tell: whether relays bring all callers
(0 or 1), the key of the relay if there is just one, and the round trip to the nearest of them in
microseconds (0: not stated)."""

_ROW = struct.Struct(f"={len(_COLUMNS) + 2 * LINKS_MAX}q")
"""One row of the table: the columns, then keys and round trips of the links."""


class OfferTable:
    """Advertisements of one model, one row each, in no particular order."""

    def __init__(self) -> None:
        self._advertisements: list[Advertisement] = []
        self._row: dict[PeerId, int] = {}
        # Column by column in memory, since that is how it is read.
        self._table = np.zeros((ROWS_MIN, _ROW.size // 8), np.int64, order="F")

    @classmethod
    def of(cls, advertisements: "Iterable[Advertisement] | OfferTable") -> "Self | OfferTable":
        """Return a table of these; a table is returned as it is."""
        if isinstance(advertisements, OfferTable):
            return advertisements
        view = cls()
        newest = {advertisement.peer: advertisement for advertisement in advertisements}
        if newest:
            view._advertisements = list(newest.values())
            view._row = dict(zip(newest, range(len(newest)), strict=True))
            rows = np.frombuffer(b"".join(map(_row_again, view._advertisements)), np.int64)
            view._table = rows.reshape(len(newest), -1).copy(order="F")
        return view

    def __len__(self) -> int:
        return len(self._advertisements)

    def put(self, advertisement: Advertisement) -> None:
        """Add an advertisement, replacing the peer's last one."""
        row = self._row.get(advertisement.peer)
        if row is None:
            row = self._row[advertisement.peer] = len(self._advertisements)
            self._advertisements.append(advertisement)
            if row == len(self._table):
                self._table = np.asfortranarray(
                    np.vstack([self._table, np.zeros_like(self._table)])
                )
        self._advertisements[row] = advertisement
        self._table[row] = np.frombuffer(_row_of(advertisement), np.int64)

    def drop(self, peer: PeerId) -> None:
        """Forget a peer, if it is known."""
        row = self._row.pop(peer, None)
        if row is None:
            return
        last = self._advertisements.pop()
        if last.peer != peer:
            self._advertisements[row] = last
            self._table[row] = self._table[len(self._advertisements)]
            self._row[last.peer] = row

    def advertisement(self, row: int) -> Advertisement:
        """Return a row's advertisement."""
        return self._advertisements[row]

    def row_of(self, peer: PeerId) -> int | None:
        """Return a peer's row, if it is known."""
        return self._row.get(peer)

    def column(self, name: str) -> Whole:
        """Return a column by its name; the state is a number."""
        return self._table[: len(self), _COLUMNS.index(name)]

    def is_state(self, state: State) -> Flags:
        """Return which rows are in a state."""
        found: Flags = self.column("state") == NUMBER_OF_STATE[state]
        return found

    def links(self) -> tuple[Whole, Whole]:
        """Return the keys of the peers that each row has links to, and microseconds; 0 is none."""
        at = len(_COLUMNS)
        table = self._table[: len(self)]
        return table[:, at : at + LINKS_MAX], table[:, at + LINKS_MAX :]

    def fill(self, known: Mapping[PeerId, float], default: Any) -> Floats:
        """Return a column of values known by peer id."""
        values = np.full(len(self), default, np.float64)
        for peer, value in known.items():
            row = self._row.get(peer)
            if row is not None:
                values[row] = value
        return values


def _row_of(a: Advertisement) -> bytes:
    """Return an advertisement as a row of the table."""
    keys = [peer_key(link.peer) for link in a.links]
    keys += [0] * (LINKS_MAX - len(keys))
    times = [link.round_trip_us for link in a.links]
    times += [0] * (LINKS_MAX - len(times))
    hidden = is_behind_relays(a.addresses)
    relays = relays_in(a.addresses) if hidden else ()
    lone = peer_key(relays[0]) if len(relays) == 1 else 0
    legs = (link.round_trip_us for link in a.links if link.peer in relays)
    return _ROW.pack(
        peer_key(a.peer), a.first, a.end, NUMBER_OF_STATE[a.state], a.row_us, a.chunk_us,
        a.layers_max, a.sessions_max, a.sessions_free, a.queued_rows, a.context,
        hidden, lone, min(legs, default=0), *keys, *times,
    )  # fmt: skip


_row_again = lru_cache(ADVERTISEMENTS_MAX)(_row_of)
"""A peer decides many times, from mostly unchanged advertisements."""


def believed_row_us(view: OfferTable, seen: Experience = NOTHING_SEEN) -> Floats:
    """Return each peer's microseconds per row and layer.

    A claim stands until observation contradicts it; far below the median, it is cut to what is
    plausible. With neither claim nor observation, a peer is taken to be as slow as the median, or
    slower.
    """
    claimed = view.column("row_us").astype(np.float64)
    said = claimed > 0
    median = float(np.median(claimed[said])) if said.any() else ROW_US_DEFAULT
    plausible = np.where(said, np.maximum(claimed, median / FASTER_MAX), 0.0)
    seen_us = view.fill(seen.row_us, np.nan)
    contradicted = ~np.isnan(seen_us) & (seen_us > LIE_FACTOR * plausible)
    default_us = max(median, ROW_US_DEFAULT)
    return np.where(contradicted, seen_us, np.where(said, plausible, default_us))


def batched_row_us(view: OfferTable, row_us: Floats) -> Floats:
    """Return each peer's microseconds per row and layer in a batch; as alone if not stated."""
    chunk = view.column("chunk_us") / CHUNK_ROWS
    return np.where(chunk > 0, np.clip(chunk, row_us / CHUNK_ROWS, row_us), row_us)
