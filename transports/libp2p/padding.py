"""What a connection over a path shows by sizes and times, the pure half: frames in, cells out.

Whatever is sealed is filled up to whole *cells*, each of which holds one row with its head. So one
row, a ping and an answer look alike, and a row's place in the text does not show in its length. A
message that is longer is filled up to a whole *chunk* of rows, so that a prompt's length shows in
whole chunks only: by the channel, since the end of a message must not show in how it is cut. What
fills cells is a frame that the other end drops (`yamux.PAD`). Both ends do this once they have
agreed (`padded`).

With a pace, frames wait for the next *beat*, and one cell leaves at each, full or not, in both
directions: while data goes either way, and for a second afterwards. Longer messages do not wait.
Relays pass cells on in beats of their own (`Beats`): a line's jitter ends at the next relay.

It rests on the encryption below, which hides where the filling begins. Nobody outside the project
has looked at it. It does not hide how many chunks and beats there are, or when they begin and end.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from p2pinfer.core.limits import BLOCK_ROWS, WIDE_ROWS_MAX
from transports.libp2p.yamux import DATA, FRAME_BODY_BYTES_MAX, HEADER_BYTES, padding_frame

HEAD_BYTES: Final = 128
"""Around a row or a chunk of them: its message's other fields, its frame, and room for the answer
to a ping and a window beside it."""

RECORD_PLAIN_BYTES_MAX: Final = FRAME_BODY_BYTES_MAX + HEADER_BYTES
"""In one Noise message."""

CELL_BYTES_MIN: Final = 256
CELL_BYTES_MAX: Final = 132 * 1024
"""One row of a model that is 32,768 numbers wide, in float32."""

CHUNK_BYTES_MAX: Final = 9 * 1024 * 1024
"""As much as one message may have."""

PACE_MS_MIN: Final = 5
PACE_MS_MAX: Final = 200
"""With two relays a ping takes six beats; below the least, timers are late by as much."""

PACED_BYTES_MAX: Final = 8 * 1024 * 1024
"""A second, of cells that may be empty: what one requester can have a stage send in vain."""

BULK_BYTES: Final = 48 * 1024
"""So much at once is no row, and does not wait at relays: a prompt would take seconds."""

LINGER_S: Final = 1.0
"""For how long cells leave after the last data: longer than a row takes to go round most chains."""


class BadShape(ValueError):
    """A shape that nobody should agree to."""


_SHAPE: Final = struct.Struct("!IIIH")

SHAPE_BYTES: Final = _SHAPE.size


@dataclass(frozen=True)
class CellShape:
    """What everything on one connection is to look like; sizes before encryption.

    Raises:
        BadShape: a number is out of bounds.
    """

    cell_bytes: int
    chunk_bytes: tuple[int, int]
    """What longer messages are filled up to: the first if it is enough, else whole seconds."""
    pace_ms: int = 0
    """Between two cells; 0: they leave when there is something to say."""

    def __post_init__(self) -> None:
        small, large = self.chunk_bytes
        if not CELL_BYTES_MIN <= self.cell_bytes <= CELL_BYTES_MAX:
            raise BadShape(f"cells of {self.cell_bytes} bytes")
        if not self.cell_bytes <= small <= large <= CHUNK_BYTES_MAX:
            raise BadShape(f"chunks of {small} and {large} bytes")
        if self.pace_ms and not PACE_MS_MIN <= self.pace_ms <= PACE_MS_MAX:
            raise BadShape(f"a pace of {self.pace_ms} ms")
        if self.pace_ms and self.cell_bytes * 1000 > PACED_BYTES_MAX * self.pace_ms:
            raise BadShape(f"{self.cell_bytes} bytes each {self.pace_ms} ms")

    @classmethod
    def for_rows(cls, row_bytes: int, pace_ms: int = 0) -> "CellShape":
        """Return the shape for a model with rows of this size."""
        small, large = (row_bytes * rows + HEAD_BYTES for rows in (WIDE_ROWS_MAX, BLOCK_ROWS))
        return cls(max(row_bytes + HEAD_BYTES, CELL_BYTES_MIN), (small, large), pace_ms)

    @property
    def pace_s(self) -> float:
        """Seconds between two cells; 0 without a pace."""
        return self.pace_ms / 1000

    def encode(self) -> bytes:
        """Return its bytes on the wire."""
        return _SHAPE.pack(self.cell_bytes, *self.chunk_bytes, self.pace_ms)

    @classmethod
    def decode(cls, data: bytes) -> "CellShape":
        """Return what a remote proposes; raises BadShape."""
        if len(data) != SHAPE_BYTES:
            raise BadShape(f"a shape of {len(data)} bytes")
        cell, small, large, pace_ms = _SHAPE.unpack(data)
        return cls(cell, (small, large), pace_ms)

    def is_short(self, size: int) -> bool:
        """Whether a message of this length goes in one cell."""
        return size + 2 * HEADER_BYTES <= self.cell_bytes

    def behind(self, size: int) -> int:
        """Return how many bytes follow a message of this length, so that it is a whole chunk."""
        if self.is_short(size):
            return 0
        small, large = self.chunk_bytes
        return (small if size <= small else size + -size % large) - size

    def filled(self, frames: Sequence[bytes]) -> list[bytes]:
        """Return frames filled up to whole cells, at least one, cut as records take them."""
        joined = b"".join(frames)
        left = -len(joined) % self.cell_bytes or (0 if joined else self.cell_bytes)
        if 0 < left < HEADER_BYTES:
            left += self.cell_bytes
        joined += b"".join(map(padding_frame, frames_of(left)))
        most = RECORD_PLAIN_BYTES_MAX
        return [joined[at : at + most] for at in range(0, len(joined), most)]


class Padder:
    """One end of a connection: decides what is sealed when. The clock is an argument."""

    def __init__(self, shape: CellShape) -> None:
        self.shape = shape
        self.held_bytes = 0
        """Of frames that wait for a beat."""
        self._held: list[bytes] = []
        self._until = self._next_at = -inf

    def put(self, frames: list[bytes], now: float) -> list[bytes]:
        """Take frames; return what is to be sealed at once."""
        if not self.shape.pace_ms:
            return self.shape.filled(frames)
        if has_data(frames):
            self.touch(now)
        if not self.beats(now):
            return self.shape.filled(frames)
        self._held += frames
        self.held_bytes += sum(map(len, frames))
        is_long = any(len(frame) > self.shape.cell_bytes - HEADER_BYTES for frame in frames)
        return self.flush() if is_long else []

    def touch(self, now: float) -> None:
        """Note that data went, one way or the other."""
        if not self.beats(now):
            self._next_at = now
        self._until = now + LINGER_S

    def beats(self, now: float) -> bool:
        """Whether a cell leaves at each beat."""
        return bool(self._held) or now < self._until

    def wait_s(self, now: float) -> float:
        """Return how long it is to the next beat: for ever, until data goes again."""
        return max(self._next_at - now, 0.0) if self.beats(now) else inf

    def beat(self, now: float, *, is_behind: bool = False) -> list[bytes]:
        """Return what is sealed at this beat: one cell, or nothing where the socket is behind."""
        self._next_at += self.shape.pace_s
        if self._next_at <= now:  # this process was late: the grid stays where it is
            missed = (now - self._next_at) // self.shape.pace_s + 1
            self._next_at += missed * self.shape.pace_s
        if is_behind and not self._held:
            return []
        taken: list[bytes] = []
        room = self.shape.cell_bytes - HEADER_BYTES
        while self._held and len(self._held[0]) <= room:
            taken.append(self._held.pop(0))
            room -= len(taken[-1])
        self.held_bytes -= sum(map(len, taken))
        return self.shape.filled(taken)

    def flush(self) -> list[bytes]:
        """Return all that waits, to be sealed now."""
        held, self._held, self.held_bytes = self._held, [], 0
        return self.shape.filled(held) if held else []


class Beats:
    """When a relay passes on what comes in a rhythm, so that it leaves in the relay's own.

    The first piece after a pause waits for half a beat: what comes up to that much too early or too
    late, on the line before, leaves on time.
    """

    def __init__(self, pace_s: float) -> None:
        self._pace_s, self._next_at, self._left_at = pace_s, -inf, -inf

    def wait_s(self, now: float, size: int) -> float:
        """Return how long what is here now, of that size in bytes, has to wait."""
        if size >= BULK_BYTES:
            return 0.0
        if now > self._left_at + LINGER_S:
            self._next_at = now + self._pace_s / 2
        elif self._next_at <= now:
            self._next_at += ((now - self._next_at) // self._pace_s + 1) * self._pace_s
        self._left_at = self._next_at
        self._next_at += self._pace_s
        return self._left_at - now


def frames_of(size: int) -> Iterator[int]:
    """Yield the sizes of frames that make up so much padding."""
    while size:
        piece = min(size, RECORD_PLAIN_BYTES_MAX)
        if 0 < size - piece < HEADER_BYTES:
            piece -= HEADER_BYTES
        yield piece
        size -= piece


def has_data(frames: Iterable[bytes]) -> bool:
    """Whether some frame carries bytes of a stream."""
    return any(frame[1] == DATA for frame in frames)
