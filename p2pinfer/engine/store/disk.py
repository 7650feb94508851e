"""Chunks in open files, and making sure that they are on disk."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

from p2pinfer.core.manifest import CHUNK_BYTES, Part
from p2pinfer.engine.store.pieces import Pieces, data_ranges


def chunk_at(file: int, part: Part, index: int) -> bytes | None:
    """Read a chunk; None if the bytes there do not match its hash."""
    try:
        data = os.pread(file, part.chunk_size(index), index * CHUNK_BYTES)
    except OSError as error:
        if error.errno != errno.EIO:  # how the disk reports damage
            raise
        return None
    return data if blake3(data).digest() == part.chunks[index] else None


def linked_chunk(pieces: Pieces, part: Part, index: int) -> bytes | None:
    """Read a chunk from where it lies; None if the bytes there do not match its hash."""
    try:
        data = pieces.read(index * CHUNK_BYTES, part.chunk_size(index))
    except OSError:  # the file is gone, or its disk is
        return None
    return data if blake3(data).digest() == part.chunks[index] else None


def good_chunks(file: int, part: Part) -> set[int]:
    """Hash every chunk of a file, and return those that are correct; holes are not read."""
    written = {
        index
        for start, end in data_ranges(file, 0, part.size)
        for index in range(start // CHUNK_BYTES, -(-end // CHUNK_BYTES))
    }
    return {index for index in written if chunk_at(file, part, index) is not None}


def write_at(file: int, data: bytes, offset: int) -> None:
    """Write all of the bytes at a place in the file."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def keep_only(file: int, part: Part, chunks: Iterable[int], path: Path) -> None:
    """Put a file with these chunks of another in the place of ``path``; none removes it."""
    new, left = path.with_name(".new"), False
    with new.open("wb") as copy:
        copy.truncate(part.size)
        for index in chunks:
            if data := chunk_at(file, part, index):
                write_at(copy.fileno(), data, index * CHUNK_BYTES)
                left = True
    new.replace(path)
    if not left:
        path.unlink()


def is_named(path: Path, file: int) -> bool:
    """Return whether the path still names this open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_text(count: int) -> str:
    """Format a number of bytes for a person."""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


def nearest_folder(folder: Path) -> Path:
    """Return a folder, or where it will be made: the nearest one above it that exists."""
    return next(each for each in (folder, *folder.parents) if each.exists())
