"""The lists of chunks that long manifests leave out, kept beside them by the part's hash."""

import threading
from contextlib import suppress
from pathlib import Path

from p2pinfer.core.ids import PartHash
from p2pinfer.core.manifest import Part, WrongList

LISTS_MAX = 8
"""Kept in memory, at 5 MiB for the longest part: a peer reads or writes a few parts at a time."""


class Lists:
    """Files named by parts' hashes, each with the hashes of the part's chunks joined."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._recent: dict[PartHash, Part] = {}
        self._reading = threading.Lock()

    def of(self, part: Part) -> Part | None:
        """Return the part with its chunks' hashes, or None if they are not here; raises OSError."""
        if part.chunks:
            return part
        with self._reading:
            found = self._recent.pop(part.hash, None)
            if found is None:
                path = self.folder / part.hash
                try:
                    found = part.listed(path.read_bytes())
                except FileNotFoundError:
                    return None
                except WrongList:  # damaged on disk; it can be fetched again
                    path.unlink(missing_ok=True)
                    return None
            self._recent[part.hash] = found
            while len(self._recent) > LISTS_MAX:
                del self._recent[next(iter(self._recent))]
        return found

    def keep(self, part: Part) -> None:
        """Write a part's list; raises OSError. The caller holds the store's lock."""
        path = self.folder / part.hash
        if not path.exists():
            temporary = self.folder / ".new"
            temporary.write_bytes(b"".join(part.chunks))
            temporary.replace(path)

    def forget_all_but(self, kept: set[PartHash]) -> None:
        """Remove the lists of other parts."""
        with self._reading:
            self._recent.clear()
        for path in self.folder.iterdir():
            if path.name not in kept:
                with suppress(FileNotFoundError):
                    path.unlink()
