"""The ledger on disk, in SQLite, shared by processes: work done, and the statements about it."""

import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import trio
from attrs import asdict, evolve

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.ledger import LedgerAccount, LedgerEntry, accounts
from p2pinfer.core.manifest import Manifest, layer_part
from p2pinfer.core.statement import Statement, work_of
from p2pinfer.places import data_dir
from scheduler.credit import Debts

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
_ADDED = ("weights", "day")
"""Columns that ledgers of earlier releases lack: the bytes of the layers' weights, and the day
since 1970 on which the session ended."""

_ADD = "ALTER TABLE work ADD COLUMN {} INTEGER NOT NULL DEFAULT 0"

_STATEMENTS = """
CREATE TABLE IF NOT EXISTS statements (
    user TEXT NOT NULL, server TEXT NOT NULL, count INTEGER NOT NULL, work INTEGER NOT NULL,
    signature BLOB NOT NULL, PRIMARY KEY (user, server)
)
"""
_KEEP = """
INSERT INTO work VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET rows = max(rows, excluded.rows)
"""
_TRIM = """
DELETE FROM work WHERE rowid <= (SELECT max(rowid) FROM work) - ?
"""

_ALL_STATEMENTS = "SELECT user, server, count, work, signature FROM statements ORDER BY work DESC"
_OWN_PEERS = "SELECT DISTINCT server FROM work WHERE side = ?"
_DAILY = "SELECT side, day, rows, weights FROM work"
_LARGEST_WORK = (
    "SELECT user, server, count, work, signature FROM statements WHERE {} = ? ORDER BY work DESC"
)

_DROP = "DELETE FROM statements WHERE user = ? AND server = ?"

DAYS_SHOWN = 30

STATEMENTS_KEPT_MAX = 10_000
"""Of peers in this one's favour; the smallest are dropped first, 3 MB."""


_DAY_NS = 86_400 * 10**9


def today() -> int:
    """Return the day, counted from 1970, as Greenwich has it."""
    return time.time_ns() // _DAY_NS


class Side(StrEnum):
    """Whether this machine did the work or asked for it."""

    SERVED = "served"
    USED = "used"


_SIDES = ((Side.USED, "server"), (Side.SERVED, "user"))


class LedgerDb:
    """The ledger's file; each call opens it, so that processes can share it."""

    def __init__(self, path: Path, today: Callable[[], int] = today) -> None:
        self._path, self._today = path, today

    def keep(self, side: Side, entries: Iterable[LedgerEntry]) -> None:
        """Add entries durably; a known entry's rows only grow, so nothing counts twice.

        Raises:
            UserError: the file cannot be written.
        """
        day = self._today()
        rows = [
            (side, e.server, e.user, e.terms, e.first, e.end, e.rows, e.weights, day)
            for e in entries
            if e.rows
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
        for side, server, user, *rest, _ in found:
            sides[side].append(LedgerEntry(PeerId(server), PeerId(user), *rest))
        return accounts(sides[Side.SERVED], sides[Side.USED])

    def debts(self, me: PeerId) -> Debts:
        """Return the work done by and for this machine, in megabyte-rows; raises UserError."""
        with self._open() as database:
            had, given = (_totals(database, *each) for each in _SIDES)
            stated = {each.user: each.work for each in _statements(database, "server", me)}
        return Debts(had, given, stated)

    def state(self, me: PeerId, sign: Callable[[bytes], bytes]) -> list[Statement]:
        """Sign for work that no peer of this machine has stated yet; return the newest of each.

        Raises:
            UserError: the file cannot be used.
        """
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")  # another process may be stating, too
            stated: Counter[str] = Counter()
            for server, work in database.execute("SELECT server, work FROM statements"):
                stated[server] += work
            mine = {each.server: each for each in _statements(database, "user", me)}
            for server, work in _totals(database, *_SIDES[0]).items():
                if server == me or work <= stated[server]:
                    continue
                last = mine.get(server)
                count, before = (last.count, last.work) if last else (0, 0)
                made = Statement(me, server, count + 1, before + work - stated[server])
                mine[server] = evolve(made, signature=sign(made.to_sign()))
                _put(database, mine[server])
        return list(mine.values())

    def report(self) -> dict[str, Any]:
        """Return what was given and had, per peer and day, and all statements; raises UserError.

        Work is in megabyte-rows; days are counted from 1970, the last ``DAYS_SHOWN`` alone.
        """
        with self._open() as database:
            had, given = (_totals(database, *each) for each in _SIDES)
            days = {at: [0, 0] for at in range(self._today() - DAYS_SHOWN + 1, self._today() + 1)}
            for side, day, rows, weights in database.execute(_DAILY):
                if day in days:
                    days[day][side == Side.USED] += work_of(rows, weights)
            found = [_stated(each) for each in database.execute(_ALL_STATEMENTS)]
            here = {server for (server,) in database.execute(_OWN_PEERS, (Side.SERVED,))}
        peers = sorted(had | given, key=lambda peer: (-had[peer] - given[peer], peer))
        stated = {each.user: each.work for each in found if each.user not in here}
        owned = {each.server: each.work for each in found if each.server not in here}
        return {
            "given": sum(given.values()),
            "had": sum(had.values()),
            "days": [{"day": day, "given": one, "had": two} for day, (one, two) in days.items()],
            "peers": [
                {
                    "peer": peer,
                    "given": given[peer],
                    "had": had[peer],
                    "signed_by_it": stated.get(peer, 0),
                    "signed_to_it": owned.get(peer, 0),
                }
                for peer in peers
            ],
            "statements": [{**asdict(each), "signature": each.signature.hex()} for each in found],
        }

    def in_favour(self, me: PeerId) -> list[Statement]:
        """Return the newest statement of each peer in one's favour, the largest first."""
        with self._open() as database:
            return _statements(database, "server", me)

    def note(self, statement: Statement) -> None:
        """Keep a statement that was made to a peer of this machine.

        Raises:
            Contradiction: it and an earlier one cannot both be true.
            UserError: the file cannot be used.
        """
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            known = _statements(database, "server", statement.server)
            before = next((each for each in known if each.user == statement.user), None)
            if before is None or statement.follows(before):
                _put(database, statement)
                for each in known[STATEMENTS_KEPT_MAX:]:
                    database.execute(_DROP, (each.user, each.server))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self._path, timeout=LOCKED_S_MAX)
            try:
                with database:  # one transaction
                    database.execute(_TABLE)
                    database.execute(_STATEMENTS)
                    known = {name for _, name, *_ in database.execute("PRAGMA table_info(work)")}
                    for name in _ADDED:
                        if name not in known:
                            database.execute(_ADD.format(name))
                    yield database
            finally:
                database.close()
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"the ledger {self._path} cannot be used: {error}; move it away to start a new one"
            ) from error


def _totals(database: sqlite3.Connection, side: Side, whose: str) -> Counter[PeerId]:
    """Return the work of one side by the peer at the other end, in megabyte-rows."""
    found: Counter[PeerId] = Counter()
    query = f"SELECT {whose}, rows, weights FROM work WHERE side = ?"  # noqa: S608 -- a column of ours
    for peer, rows, weights in database.execute(query, (side,)):
        found[PeerId(peer)] += work_of(rows, weights)
    return found


def _statements(database: sqlite3.Connection, whose: str, peer: PeerId) -> list[Statement]:
    """Return the statements by a peer, or in its favour, the largest first."""
    found = database.execute(_LARGEST_WORK.format(whose), (peer,))
    return [_stated(each) for each in found]


def _stated(row: tuple[Any, ...]) -> Statement:
    user, server, *rest = row
    return Statement(PeerId(user), PeerId(server), *rest)


def _put(database: sqlite3.Connection, made: Statement) -> None:
    values = (made.user, made.server, made.count, made.work, made.signature)
    database.execute("REPLACE INTO statements VALUES (?, ?, ?, ?, ?)", values)


def weighed(entry: LedgerEntry, manifest: Manifest) -> LedgerEntry:
    """Return an entry with the weights of its layers, in bytes."""
    layers = range(entry.first, entry.end)
    return evolve(entry, weights=sum(manifest.part(layer_part(each)).size for each in layers))


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
