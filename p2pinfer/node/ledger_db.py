"""The ledger on disk, in SQLite, shared by processes: work done, and the statements about it."""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Any

import trio
from attrs import asdict, astuple, evolve, frozen

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.ledger import LedgerAccount, LedgerEntry, accounts
from p2pinfer.core.manifest import Manifest, layer_part
from p2pinfer.core.statement import NOTHING, Amounts, Statement
from p2pinfer.node import ledger_tables as tables
from p2pinfer.node.sponsors import clock_ms
from p2pinfer.places import data_dir
from scheduler.credit import Debts, Passed

_log = logging.getLogger("p2pinfer.ledger")

LOCKED_S_MAX = 5.0
"""How long to wait while another process writes."""

ENTRIES_MAX = 10_000
"""Of sessions, each with its terms; the oldest are folded into sums by day and peer, of which there
are as many. 5 MB, and read in some milliseconds, which each minute is done twice."""

QUEUED_ENTRIES_MAX = 1024
"""Ended sessions that are not written yet: more than a peer has at once."""

_KEEP = """
INSERT INTO work VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET rows = max(rows, excluded.rows)
"""
_MOVED = """
INSERT INTO moved VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET sent = sent + excluded.sent, kept = kept + excluded.kept
"""
_PASSED = """
INSERT INTO passed VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET work = work + excluded.work
"""
_LAYER_ROWS = """
SELECT server, user, terms, first, last, rows, weights FROM work WHERE side = ?
"""
_FOLDED_ROWS = "SELECT peer, sum(rows) FROM folded WHERE side = ? GROUP BY 1"
_OWN_PEERS = "SELECT DISTINCT server FROM work WHERE side = ?"

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
    UNNAMED = "unnamed"
    """It asked without naming a peer of its own, so no statement may say what it had."""


_SIDES = ((Side.USED, Side.UNNAMED), "server"), ((Side.SERVED,), "user")


@frozen
class Moved:
    """Parts and space, between this machine and a peer."""

    side: Side
    peer: PeerId
    sent_bytes: int = 0
    kept_byte_s: int = 0


class LedgerDb:
    """The ledger's file; each call opens it, so that processes can share it."""

    def __init__(
        self,
        path: Path,
        today: Callable[[], int] = today,
        clock_ms: Callable[[], int] = clock_ms,
    ) -> None:
        self._path, self._today, self._clock_ms = path, today, clock_ms

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
                tables.trim(database, Side.SERVED, ENTRIES_MAX)

    def move(self, moved: Iterable[Moved]) -> None:
        """Add parts that were sent and shares that were kept, durably; raises UserError."""
        day = self._today()
        rows = [(m.side, m.peer, day, m.sent_bytes, m.kept_byte_s) for m in moved]
        if rows:
            with self._open() as database:
                database.executemany(_MOVED, rows)
                tables.trim(database, Side.SERVED, ENTRIES_MAX)

    def accounts(self) -> list[LedgerAccount]:
        """Return the work between this machine and each peer; raises UserError."""
        sides: list[list[LedgerEntry]] = []
        with self._open() as database:
            for one in ((Side.SERVED,), (Side.USED, Side.UNNAMED)):
                found = [row for each in one for row in database.execute(_LAYER_ROWS, (each,))]
                entries = [LedgerEntry(PeerId(s), PeerId(u), *rest) for s, u, *rest in found]
                folded = [row for each in one for row in database.execute(_FOLDED_ROWS, (each,))]
                # One layer stands for those of the entries whose sum it is.
                entries += [
                    LedgerEntry(PeerId(peer), PeerId(peer), b"", 0, 1, rows)
                    for peer, rows in folded
                ]
                sides.append(entries)
        return accounts(*sides)

    def debts(self, me: PeerId) -> Debts:
        """Return what was done by and for this machine, as credit counts it; raises UserError."""
        with self._open() as database:
            had, given = (tables.totals(database, *each) for each in _SIDES)
            stated = {s.user: s.amounts for s in tables.statements(database, "server", me)}
            passed = tables.passed(database)
        kept = {peer: Amounts(kept=said.kept) for peer, said in stated.items()}
        return Debts(
            {peer: amounts.worth for peer, amounts in had.items()},
            {
                # Only the user of kept shares looks whether they are there, so its word counts.
                peer: (given.get(peer, NOTHING) + kept.get(peer, NOTHING)).worth
                for peer in given.keys() | kept.keys()
            },
            {
                peer: max(0, amounts.work - stated.get(peer, NOTHING).work)
                for peer, amounts in given.items()
            },
            passed,
        )

    def pass_on(self, charges: Passed) -> None:
        """Add what askers had on others' accounts; raises UserError."""
        with self._open() as database:
            rows = [(*pair, work) for pair, work in charges.items()]
            database.executemany(_PASSED, rows)

    def state(self, me: PeerId, sign: Callable[[bytes], bytes]) -> list[Statement]:
        """Sign for what no peer of this machine has stated yet.

        Returns:
            The newest statements to servers that have not countersigned them.

        Raises:
            UserError: the file cannot be used.
        """
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")  # another process may be stating, too
            stated = tables.stated_by_server(database)
            mine = {each.server: each for each in tables.statements(database, "user", me)}
            for server, had in tables.totals(database, (Side.USED,), "server").items():
                more = had.beyond(stated.get(server, NOTHING))
                if server == me or more == NOTHING:
                    continue
                last = mine.get(server)
                number = max(last.count + 1 if last else 1, self._clock_ms())
                work, sent, kept = astuple((last.amounts if last else NOTHING) + more)
                made = Statement(me, server, number, work, sent=sent, kept=kept)
                mine[server] = evolve(made, signature=sign(made.to_sign()))
                tables.put(database, mine[server])
            agreed = tables.agreed(database, me)
        return [each for server, each in mine.items() if server not in agreed]

    def agree(self, statement: Statement, countersignature: bytes) -> bool:
        """Keep a server's word for a statement of a peer of this machine; raises UserError.

        One that the books lack, since they were put back from a copy, is taken over.

        Returns:
            Whether the books hold it now; not where they hold a newer one.
        """
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            known = tables.statements(database, "user", statement.user)
            own = next((each for each in known if each.server == statement.server), None)
            is_newest = own is None or own.count <= statement.count
            if is_newest:
                tables.put(database, statement, countersignature)
            return is_newest

    def export(self) -> Iterator[dict[str, Any]]:
        """Yield what was given and had by day and peer, then all statements; raises UserError."""
        with self._open() as database:
            had, given = (tables.daily(database, *each) for each in _SIDES)
            found = tables.all_statements(database)
        for day, peer in sorted(had.keys() | given.keys()):
            sides = (("given", given), ("had", had))
            sums = {
                f"{side}_{name}": amount
                for side, by_day in sides
                for name, amount in asdict(by_day.get((day, peer), NOTHING)).items()
            }
            yield {"kind": "day", "day": _date(day), "peer": peer, **sums}
        for statement, countersignature in found:
            yield {"kind": "statement", **_shown(statement, countersignature)}

    def report(self) -> dict[str, Any]:
        """Return what was given and had, per peer and day, and all statements; raises UserError.

        All in megabyte-rows (see ``Amounts.worth``), but for the amounts beside work, which stand
        by themselves, too; days are counted from 1970, the last ``DAYS_SHOWN`` alone. Of what was
        had, ``had_unnamed`` is what no statement says, since it was asked for without a name.
        """
        with self._open() as database:
            had, given = (tables.totals(database, *each) for each in _SIDES)
            days = {at: [0, 0] for at in range(self._today() - DAYS_SHOWN + 1, self._today() + 1)}
            for place, each in enumerate(reversed(_SIDES)):
                for (day, _), amounts in tables.daily(database, *each).items():
                    if day in days:
                        days[day][place] += amounts.worth
            unnamed = tables.totals(database, (Side.UNNAMED,), "server")
            found = tables.all_statements(database)
            here = {server for (server,) in database.execute(_OWN_PEERS, (Side.SERVED,))}
        sums = {
            peer: (given.get(peer, NOTHING), had.get(peer, NOTHING))
            for peer in had.keys() | given.keys()
        }
        peers = sorted(sums, key=lambda peer: (-sum(each.worth for each in sums[peer]), peer))
        stated = {s.user: s.amounts.worth for s, _ in found if s.user not in here}
        owned = {s.server: s.amounts.worth for s, _ in found if s.server not in here}
        by_both = {s.server for s, agreed in found if agreed}
        return {
            "given": sum(one.worth for one, _ in sums.values()),
            "had": sum(two.worth for _, two in sums.values()),
            "had_unnamed": sum(each.worth for each in unnamed.values()),
            "days": [{"day": day, "given": one, "had": two} for day, (one, two) in days.items()],
            "peers": [
                {
                    "peer": peer,
                    "given": sums[peer][0].worth,
                    "had": sums[peer][1].worth,
                    "signed_by_it": stated.get(peer, 0),
                    "signed_to_it": owned.get(peer, 0),
                    "agreed": peer in by_both,
                    "amounts": {
                        "given": asdict(sums[peer][0]),
                        "had": asdict(sums[peer][1]),
                    },
                }
                for peer in peers
            ],
            "statements": [_shown(*each) for each in found],
        }

    def statements(self) -> list[Statement]:
        """Return all statements, the largest first; raises UserError."""
        with self._open() as database:
            return [each for each, _ in tables.all_statements(database)]

    def in_favour(self, me: PeerId) -> list[Statement]:
        """Return the newest statement of each peer in one's favour, the largest first."""
        with self._open() as database:
            return tables.statements(database, "server", me)

    def note(self, statement: Statement) -> Statement:
        """Keep a statement that was made to a peer of this machine; return the newest of its pair.

        Raises:
            Contradiction: it and an earlier one cannot both be true.
            UserError: the file cannot be used.
        """
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            known = tables.statements(database, "server", statement.server)
            before = next((each for each in known if each.user == statement.user), None)
            if before and not statement.follows(before):
                return before
            tables.put(database, statement)
            tables.drop(database, known[STATEMENTS_KEPT_MAX:])
        return statement

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self._path, timeout=LOCKED_S_MAX)
            try:
                with database:  # one transaction
                    tables.make(database)
                    yield database
            finally:
                database.close()
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"the ledger {self._path} cannot be used: {error}; move it away to start a new one"
            ) from error


def _shown(statement: Statement, countersignature: bytes) -> dict[str, Any]:
    """Return a statement as text and numbers; without a countersignature, that is empty."""
    said = {**asdict(statement), "signature": statement.signature.hex()}
    return said | {"countersignature": countersignature.hex()}


def _date(day: int) -> str:
    """Return a day counted from 1970 as a date; empty for work of before days were kept."""
    return date.fromordinal(date(1970, 1, 1).toordinal() + day).isoformat() if day else ""


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
