"""The messages between a node and its engine worker, over a socket pair.

A frame is four bytes of length, little-endian, and a msgpack array. The node sends a
``WorkerConfig`` first and gets ``["ready", PartReady…]`` or ``["refused", kind, sentence]``. Then:

    ["rows", number, slot, position, regime, rows, layers]
                                                        a stage: rows in, rows out
    ["embed", number, slot, position, regime, tokens]   the first end: tokens in, rows out
    ["absorb", number, slot, position, regime, rows]    the last end: only fill its KV cache
    ["next", number, slot, position, regime, rows, drafted, following]
                                                        the last end: sample what follows
    ["score", number, slot, position, regime, rows, following]
                                                        as absorb, and say how likely tokens are
    ["lengthen", slot, context]                         a session longer than usual; no answer
    ["sampling", slot, {fields of Sampling}, recent, said]
                                                        no answer
    ["close", slot]                                     no answer
    ["copy", number, slot, positions]                   a stage: keep a copy of a session's cells
    ["read", number, layer, first, end]                 the copy's K and V rows of a layer
    ["trace", number, position, regime, row, layers]    what the layers compute for a row, behind
                                                        the copy's positions before it
    ["drop"]                                            no answer: forget the copy

``layers`` is how many of the slice's layers the session runs. Answers carry the number: ``[number,
microseconds of decoding, *values]``, or ``[number, None, sentence, kind]`` when the engine refused.
``next`` answers with the token, its bytes, whether it ends the answer, the first end's rows for it,
``[token, bytes, log-probability]`` of each candidate that was asked for, and of each of the tokens
``following`` the rows such a list; ``score`` answers with these lists alone. ``copy`` answers with
the numbers in which V is kept, ``read`` with K and V rows as the cache holds them, and ``trace``
with ``[layer, step, numbers]`` of each step. Rows and numbers are float32, little-endian.
"""

import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import msgpack

from p2pinfer.engine.gpu import Gpu

RECEIVE_BYTES = 1 << 16
"""Per call: some decode steps. A larger buffer costs more to allocate than it saves in calls."""

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class PartConfig:
    """One GGUF to load."""

    path: str
    tokens: bool
    """It takes tokens: the first end, with the vocabulary."""
    logits: bool
    """It gives logits: the last end."""


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker runs: a stage's slice, or the two ends."""

    parts: tuple[PartConfig, ...]
    sessions: int
    context: int
    """Positions of a usual session."""
    threads: int | None = 1
    """None: as many as make this machine faster."""
    long_context: int = 0
    """Positions of the longest session; 0: none is longer than usual."""
    long_cells: int = 0
    """Positions that all sessions longer than usual share."""
    gpu: Gpu | None = None
    """Where layers are computed if that is exact; None: on the CPU."""

    def frame(self) -> bytes:
        """Return the first frame that a worker gets."""
        return pack([asdict(self)])

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "WorkerConfig":
        """Read back what ``frame`` wrote."""
        parts = tuple(PartConfig(**part) for part in values.pop("parts"))
        gpu = values.pop("gpu", None)
        return cls(parts, **values, gpu=Gpu(**gpu) if gpu else None)


@dataclass(frozen=True)
class PartReady:
    """What a loaded slice is and how it computes here."""

    layers: int
    width: int
    vocabulary: int
    regimes_agree: bool
    blocks: bool
    """It computes blocks exactly."""
    numerics_class: str
    repack: bool
    """It rearranges weights: see ``llama.Settings``."""
    flash_attention: bool
    device: str
    """The GPU that computes it; empty for the CPU."""
    closed: str
    """Why its sessions cannot be copied and traced; empty if they can."""


def pack(values: list[Any]) -> bytes:
    """Return one frame."""
    body: bytes = msgpack.packb(values)
    return _LENGTH.pack(len(body)) + body


class Splitter:
    """Bytes in, whole frames out."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[list[Any]]:
        """Yield each frame that the data completes."""
        self._bytes += data
        start, have = 0, len(self._bytes)
        try:
            while have - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._bytes, start)
                body = start + _LENGTH.size
                if have - body < length:
                    return
                start = body + length
                yield msgpack.unpackb(memoryview(self._bytes)[body:start])
        finally:
            del self._bytes[:start]
