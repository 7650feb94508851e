"""The tags of vouchers on disk, in SQLite: who showed each first, for as long as it counts."""

import sqlite3
from pathlib import Path

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.places import data_dir
from peers.serving.vouchers import TAGS_MAX

LOCKED_S_MAX = 5.0
"""How long to wait while another process writes."""

_MAKE = """
CREATE TABLE IF NOT EXISTS tags (
    stage TEXT NOT NULL, epoch INTEGER NOT NULL, tag BLOB NOT NULL, requester TEXT NOT NULL,
    PRIMARY KEY (stage, epoch, tag)
)
"""
_FIND = "SELECT requester FROM tags WHERE stage = ? AND epoch = ? AND tag = ?"


class TagsDb:
    """The file; each call opens it, so that processes can share it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def first(self, stage: PeerId, epoch: int, tag: bytes, requester: PeerId) -> PeerId | None:
        """Return who showed a tag first, which is this requester if nobody did, durably.

        None: there is no room for more in this epoch. Tags of two epochs ago are forgotten.

        Raises:
            UserError: the file cannot be used.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self._path, timeout=LOCKED_S_MAX, isolation_level=None)
            try:
                database.execute("BEGIN IMMEDIATE")
                database.execute(_MAKE)
                database.execute("DELETE FROM tags WHERE epoch < ?", (epoch - 1,))
                found = database.execute(_FIND, (stage, epoch, tag)).fetchone()
                if found is None:
                    count = "SELECT count(*) FROM tags WHERE stage = ? AND epoch = ?"
                    ((known,),) = database.execute(count, (stage, epoch))
                    if known < TAGS_MAX:
                        row = (stage, epoch, tag, requester)
                        database.execute("INSERT INTO tags VALUES (?, ?, ?, ?)", row)
                        found = (requester,)
                database.execute("COMMIT")
            finally:
                database.close()
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"the list of vouchers {self._path} cannot be used: {error}; move it away"
            ) from error
        return PeerId(found[0]) if found else None


def open_tags() -> TagsDb:
    """Return the list in the data directory."""
    return TagsDb(data_dir() / "vouchers.sqlite3")
