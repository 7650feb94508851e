"""The ledger on disk: one row per peer, session and layers, in SQLite, shared by processes."""

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path

import trio

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.ledger import LedgerAccount, LedgerEntry, accounts
from p2pinfer.places import data_dir

_log = logging.getLogger("p2pinfer.ledger")

LOCKED_S_MAX = 5.0
"""How long to wait while another process writes."""

ENTRIES_MAX = 100_000
"""The oldest are deleted first: 20 MB, a year with many answers a day."""

QUEUED_ENTRIES_MAX = 1024
"""Ended sessions that are not written yet: more than a peer has at once."""

_TABLE = """
CREATE TABLE IF NOT EXISTS work (
    side TEXT NOT NULL, server TEXT NOT NULL, user TEXT NOT NULL, terms BLOB NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL, rows INTEGER NOT NULL,
    PRIMARY KEY (side, server, terms, first, last)
)
"""
_KEEP = """
INSERT INTO work VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET rows = max(rows, excluded.rows)
"""
_TRIM = """
DELETE FROM work WHERE rowid <= (SELECT max(rowid) FROM work) - ?
"""

_WORKERS = "SELECT DISTINCT server FROM work WHERE side = ?"


class Side(StrEnum):
    """Whether this machine did the work or asked for it."""

    SERVED = "served"
    USED = "used"


class LedgerDb:
    """The ledger's file; each call opens it, so that processes can share it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self, side: Side, entries: Iterable[LedgerEntry]) -> None:
        """Add entries durably; a known entry's rows only grow, so nothing counts twice.

        Raises:
            UserError: the file cannot be written.
        """
        rows = [
            (side, e.server, e.user, e.terms, e.first, e.end, e.rows) for e in entries if e.rows
        ]
        if rows:
            with self._open() as database:
                database.executemany(_KEEP, rows)
                database.execute(_TRIM, (ENTRIES_MAX,))

    def accounts(self) -> list[LedgerAccount]:
        """Return the work between this machine and each peer; raises UserError."""
        with self._open() as database:
            found = database.execute("SELECT * FROM work").fetchall()
        sides: dict[str, list[LedgerEntry]] = {Side.SERVED: [], Side.USED: []}
        for side, server, user, *rest in found:
            sides[side].append(LedgerEntry(PeerId(server), PeerId(user), *rest))
        return accounts(sides[Side.SERVED], sides[Side.USED])

    def workers(self) -> frozenset[PeerId]:
        """Return the peers that have worked for this machine; raises UserError."""
        with self._open() as database:
            found = database.execute(_WORKERS, (Side.USED,)).fetchall()
        return frozenset(PeerId(server) for (server,) in found)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self._path, timeout=LOCKED_S_MAX)
            try:
                with database:  # one transaction
                    database.execute(_TABLE)
                    yield database
            finally:
                database.close()
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"the ledger {self._path} cannot be used: {error}; move it away to start a new one"
            ) from error


def open_books() -> LedgerDb:
    """Return the ledger in the data directory."""
    return LedgerDb(data_dir() / "ledger.sqlite3")


class LedgerKeeper:
    """Writes a peer's served work in a thread, so that no session waits for the disk."""

    def __init__(self, books: LedgerDb) -> None:
        self._books = books
        self._send, self._receive = trio.open_memory_channel[LedgerEntry](QUEUED_ENTRIES_MAX)

    def served(self, entry: LedgerEntry) -> None:
        """Queue an entry; if the queue is full, it is lost, and a warning is logged."""
        try:
            self._send.send_nowait(entry)
        except trio.WouldBlock:
            _log.warning("the ledger is behind: the work of one session is not counted")

    async def run(self) -> None:
        """Write entries for ever."""
        async for entry in self._receive:
            await trio.to_thread.run_sync(self._keep, [entry])

    def finish(self) -> None:
        """Write the queued entries."""
        waiting = []
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                waiting.append(self._receive.receive_nowait())
        self._keep(waiting)

    def _keep(self, entries: Iterable[LedgerEntry]) -> None:
        try:
            self._books.keep(Side.SERVED, entries)
        except UserError as error:  # serving goes on without a ledger
            _log.warning("%s", error)
