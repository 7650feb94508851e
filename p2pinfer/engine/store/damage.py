"""What can be wrong with a chunk: it is not here, it is not what it was, or it never was."""

from collections.abc import Iterable
from pathlib import Path

from p2pinfer.core.errors import EXIT_DAMAGED, BadModelFile, P2pinferError
from p2pinfer.core.manifest import Part


class WrongSha256(BadModelFile):
    """A model's file is not what its publisher says it is."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} has another SHA-256 than its publisher states: remove it, and download it"
            " again"
        )
        self.path = path


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
