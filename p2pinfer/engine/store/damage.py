"""What can be wrong with a chunk: it is not here, it is not what it was, or it never was."""

from collections.abc import Iterable

from p2pinfer.core.errors import EXIT_DAMAGED, P2pinferError
from p2pinfer.core.manifest import Part


class WrongChunk(P2pinferError):
    """The bytes are not those of the given chunk; nothing was written."""


class MissingChunk(P2pinferError):
    """The chunk is not held here."""


class DamagedPart(P2pinferError):
    """A part on disk did not match its hash; it has been set aside as a partial part."""

    exit_code = EXIT_DAMAGED

    def __init__(self, part: Part, chunks: Iterable[int]) -> None:
        which = ", ".join(map(str, chunks))
        super().__init__(f"{part.name} ({part.hash[:12]}…) is damaged on disk, in chunk {which}")
        self.part = part
