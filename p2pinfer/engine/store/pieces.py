"""A part's bytes where they lie: in a file of the store, or in the model's own file.

A part that is served from the model's own file is a few bytes of header, ranges of that file, and
zeros between them. What it was made of is written down, with the file's size, time and inode; and
every chunk is hashed when it is read, as any other.
"""

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgpack

from p2pinfer.core.ids import PartHash
from p2pinfer.core.manifest import Part
from p2pinfer.engine.gguf.writer import Extent

Piece = bytes | int | Extent
"""Bytes themselves, a number of zeros, or a range of a file."""

_LINK_FORMAT = "p2pinfer link 1"


def length(piece: Piece) -> int:
    """Return a piece's bytes."""
    if isinstance(piece, int):
        return piece
    return piece.nbytes if isinstance(piece, Extent) else len(piece)


def data_ranges(file: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of an open file that are not holes, which read as zeros."""
    while start < end:
        try:
            start = os.lseek(file, start, os.SEEK_DATA)
        except OSError:  # a hole up to the file's end, or a file system that knows of no holes
            with suppress(OSError):
                os.lseek(file, start, os.SEEK_HOLE)
                return
            yield start, end
            return
        if start >= end:
            return
        stop = min(end, os.lseek(file, start, os.SEEK_HOLE))
        yield start, stop
        start = stop


@dataclass(frozen=True)
class Source:
    """A file that pieces lie in, as it was when they were hashed."""

    path: Path
    size: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "Source":
        """Look at a file now; raises OSError."""
        status = path.stat()
        return cls(path.resolve(), status.st_size, status.st_mtime_ns, status.st_ino)

    def is_same(self) -> bool:
        """Whether the file is still the one that it was."""
        try:
            return Source.of(self.path) == self
        except OSError:
            return False


class Pieces:
    """The bytes of a part, piece by piece."""

    def __init__(self, pieces: Iterable[Piece], sources: Sequence[Source] = ()) -> None:
        self.all = tuple(piece for piece in pieces if length(piece))
        self.sources = tuple(sources)
        self._ends = list(accumulate(map(length, self.all)))

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._ends[-1] if self._ends else 0

    def locate(self, offset: int, nbytes: int) -> Extent | None:
        """Return where in a file some bytes lie; None if not in one range of one file."""
        at = bisect_right(self._ends, offset)
        if at == len(self.all):
            return None
        piece, start = self.all[at], self._ends[at] - length(self.all[at])
        if not isinstance(piece, Extent) or offset - start + nbytes > piece.nbytes:
            return None
        return Extent(piece.path, piece.offset + offset - start, nbytes)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return some bytes, or fewer where a file ends; raises OSError."""
        found = bytearray()
        at = bisect_right(self._ends, offset)
        with ExitStack() as opened:
            while len(found) < nbytes and at < len(self.all):
                piece, start = self.all[at], self._ends[at] - length(self.all[at])
                skip = offset + len(found) - start
                count = min(nbytes - len(found), length(piece) - skip)
                if isinstance(piece, Extent):
                    file = opened.enter_context(piece.path.open("rb", buffering=0))
                    data = os.pread(file.fileno(), count, piece.offset + skip)
                    found += data
                    if len(data) < count:
                        break
                else:
                    found += bytes(count) if isinstance(piece, int) else piece[skip : skip + count]
                at += 1
        return bytes(found)

    def is_same(self) -> bool:
        """Whether the files are what they were."""
        return all(source.is_same() for source in self.sources)

    def encode(self) -> bytes:
        """Return what ``decode_pieces`` reads."""
        paths = [source.path for source in self.sources]
        told = [[str(s.path), s.size, s.changed_ns, s.inode] for s in self.sources]
        pieces = [
            [paths.index(piece.path.resolve()), piece.offset, piece.nbytes]
            if isinstance(piece, Extent)
            else piece
            for piece in self.all
        ]
        encoded: bytes = msgpack.packb([_LINK_FORMAT, told, pieces])
        return encoded


def _decoded(data: bytes, size: int) -> Pieces | None:
    """Read what was written down of a part; None if that is not it."""
    try:
        kind, told, pieces = msgpack.unpackb(data)
        sources = [Source(Path(path), *numbers) for path, *numbers in told]
        found = Pieces((_piece(piece, sources) for piece in pieces), sources)
    except Exception:  # noqa: BLE001  msgpack raises four families, and any type may be anywhere
        return None
    return found if kind == _LINK_FORMAT and found.size == size else None


def _piece(piece: Any, sources: Sequence[Source]) -> Piece:
    if isinstance(piece, list):
        source, offset, nbytes = piece
        return Extent(sources[source].path, offset, nbytes)
    assert isinstance(piece, bytes | int), piece
    return piece


class Links:
    """Where parts lie that are served from the model's own file, written down by their hashes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[PartHash, tuple[int, Pieces]] = {}
        """By the time of the file that says so."""

    def of(self, part: Part) -> Pieces | None:
        """Return where a part lies, or None; the caller checks that it still does."""
        path = self.folder / part.hash
        try:
            written_ns = path.stat().st_mtime_ns
            known_ns, found = self._known.get(part.hash, (0, None))
            if found is None or known_ns != written_ns:
                found = _decoded(path.read_bytes(), part.size)
        except FileNotFoundError:
            return None
        if found is not None:
            self._known[part.hash] = written_ns, found
        return found

    def keep(self, part: Part, pieces: Pieces) -> None:
        """Write down where a part lies; raises OSError. The caller holds the store's lock."""
        temporary = self.folder / ".new"
        temporary.write_bytes(pieces.encode())
        temporary.replace(self.folder / part.hash)

    def drop(self, part: Part) -> None:
        """Forget where a part lies."""
        (self.folder / part.hash).unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """Return what is written down, one file for each part."""
        return list(self.folder.iterdir())
