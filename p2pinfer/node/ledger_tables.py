"""The ledger's tables: their columns, and how rows become statements and sums.

Tables and columns are added to ledgers of earlier releases when these are opened.
"""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from p2pinfer.core.ids import PeerId
from p2pinfer.core.statement import BYTES_PER_UNIT, NOTHING, Amounts, Statement

_TABLES = """
CREATE TABLE IF NOT EXISTS work (
    side TEXT NOT NULL, server TEXT NOT NULL, user TEXT NOT NULL, terms BLOB NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL, rows INTEGER NOT NULL,
    PRIMARY KEY (side, server, terms, first, last)
);
CREATE TABLE IF NOT EXISTS statements (
    user TEXT NOT NULL, server TEXT NOT NULL, count INTEGER NOT NULL, work INTEGER NOT NULL,
    signature BLOB NOT NULL, PRIMARY KEY (user, server)
);
CREATE TABLE IF NOT EXISTS moved (
    side TEXT NOT NULL, peer TEXT NOT NULL, day INTEGER NOT NULL,
    sent INTEGER NOT NULL, kept INTEGER NOT NULL, PRIMARY KEY (side, peer, day)
);
CREATE TABLE IF NOT EXISTS folded (
    side TEXT NOT NULL, peer TEXT NOT NULL, day INTEGER NOT NULL,
    work INTEGER NOT NULL, rows INTEGER NOT NULL, PRIMARY KEY (side, peer, day)
);
CREATE TABLE IF NOT EXISTS passed (
    asker TEXT NOT NULL, debtor TEXT NOT NULL, work INTEGER NOT NULL, PRIMARY KEY (asker, debtor)
);
"""
"""``moved``: parts sent, in bytes, and shares kept, in byte-seconds. ``folded``: the sums of
entries that were deleted. ``passed``: what an asker had on another's account."""

_ADDED = {
    "work": (("weights", "INTEGER NOT NULL DEFAULT 0"), ("day", "INTEGER NOT NULL DEFAULT 0")),
    "statements": (
        ("sent", "INTEGER NOT NULL DEFAULT 0"),
        ("kept", "INTEGER NOT NULL DEFAULT 0"),
        ("agreed", "BLOB NOT NULL DEFAULT x''"),
    ),
}
"""Columns that ledgers of earlier releases lack: the bytes of the layers' weights, and the day
since 1970 on which the session ended; amounts beside work, and the server's signature."""

_STATEMENT = "SELECT user, server, count, work, signature, sent, kept FROM statements"
_PUT = "REPLACE INTO statements VALUES (?, ?, ?, ?, ?, ?, ?, ?)"

_TRIM = "DELETE FROM {0} WHERE rowid <= (SELECT max(rowid) FROM {0}) - ?"
_FOLD = """
INSERT INTO folded
SELECT side, iif(side = ?, user, server), day, sum({unit}), sum(rows * (last - first)) FROM work
WHERE rowid <= (SELECT max(rowid) FROM work) - ? GROUP BY 1, 2, 3
ON CONFLICT DO UPDATE SET work = work + excluded.work, rows = rows + excluded.rows
"""
_UNIT = f"(rows * weights / {BYTES_PER_UNIT})"

BYTE_S_PER_UNIT = BYTES_PER_UNIT * 86_400
"""In a megabyte-day."""


def make(database: sqlite3.Connection) -> None:
    """Create what the file lacks."""
    for each in _TABLES.split(";"):
        database.execute(each)
    for table, columns in _ADDED.items():
        known = {name for _, name, *_ in database.execute(f"PRAGMA table_info({table})")}
        for name, kind in columns:
            if name not in known:
                database.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")


def trim(database: sqlite3.Connection, served: str, entries_max: int) -> None:
    """Delete the oldest entries of work beyond a number; their sums by day and peer stay.

    Of these and of parts and space, as many days stay, and the rest in sums by peer.
    """
    database.execute(_FOLD.format(unit=_UNIT), (served, entries_max))
    database.execute(_TRIM.format("work"), (entries_max,))
    for table, one, two in (("folded", "work", "rows"), ("moved", "sent", "kept")):
        ((count,),) = database.execute(f"SELECT count(*) FROM {table}")  # noqa: S608 -- ours
        if count > entries_max:
            _join_days(database, table, one, two)
            database.execute(_TRIM.format(table), (entries_max,))


def _join_days(database: sqlite3.Connection, table: str, one: str, two: str) -> None:
    """Put the older half of a table's days together, into a day before all days."""
    half = f"day <= (SELECT (min(day) + max(day)) / 2 FROM {table} WHERE day > 0)"  # noqa: S608
    query = f"SELECT side, peer, sum({one}), sum({two}) FROM {table} WHERE {half} GROUP BY 1, 2"  # noqa: S608
    sums = database.execute(query).fetchall()
    database.execute(f"DELETE FROM {table} WHERE {half}")  # noqa: S608
    rows = [(side, peer, 0, first, second) for side, peer, first, second in sums]
    database.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?)", rows)  # noqa: S608


def totals(database: sqlite3.Connection, sides: Iterable[str], whose: str) -> dict[PeerId, Amounts]:
    """Return what was done on some sides, by the peer at the other end.

    Args:
        database: the ledger.
        sides: as in the tables.
        whose: the column of ``work`` that names the other end.
    """
    found: defaultdict[PeerId, Amounts] = defaultdict(Amounts)
    work = f"SELECT {whose}, sum{_UNIT} FROM work WHERE side = ? GROUP BY 1"  # noqa: S608 -- ours
    folded = "SELECT peer, sum(work) FROM folded WHERE side = ? GROUP BY 1"
    moved = "SELECT peer, sum(sent), sum(kept) FROM moved WHERE side = ? GROUP BY 1"
    for side in sides:
        for query in (work, folded):
            for peer, done in database.execute(query, (side,)):
                found[PeerId(peer)] += Amounts(work=done)
        for peer, sent, kept in database.execute(moved, (side,)):
            units = Amounts(sent=sent // BYTES_PER_UNIT, kept=kept // BYTE_S_PER_UNIT)
            found[PeerId(peer)] += units
    return {peer: amounts for peer, amounts in found.items() if amounts != NOTHING}


def daily(
    database: sqlite3.Connection, sides: Iterable[str], whose: str
) -> dict[tuple[int, PeerId], Amounts]:
    """Return what was done on some sides, by day and peer."""
    found: defaultdict[tuple[int, PeerId], Amounts] = defaultdict(Amounts)
    work = f"SELECT day, {whose}, sum{_UNIT} FROM work WHERE side = ? GROUP BY 1, 2"  # noqa: S608
    folded = "SELECT day, peer, work FROM folded WHERE side = ?"
    moved = "SELECT day, peer, sent, kept FROM moved WHERE side = ?"
    for side in sides:
        for query in (work, folded):
            for day, peer, done in database.execute(query, (side,)):
                found[day, PeerId(peer)] += Amounts(work=done)
        for day, peer, sent, kept in database.execute(moved, (side,)):
            units = Amounts(sent=sent // BYTES_PER_UNIT, kept=kept // BYTE_S_PER_UNIT)
            found[day, PeerId(peer)] += units
    return dict(found)


def statements(database: sqlite3.Connection, whose: str, peer: PeerId) -> list[Statement]:
    """Return the statements by a peer, or in its favour, the largest first."""
    found = database.execute(f"{_STATEMENT} WHERE {whose} = ?", (peer,))
    return sorted(map(_statement, found), key=lambda each: -each.amounts.worth)


def all_statements(database: sqlite3.Connection) -> list[tuple[Statement, bytes]]:
    """Return all statements, the largest first, each with the server's signature if it is here."""
    found = database.execute(_STATEMENT.replace(" FROM", ", agreed FROM"))
    pairs = [(_statement(each[:-1]), bytes(each[-1])) for each in found]
    return sorted(pairs, key=lambda pair: -pair[0].amounts.worth)


def agreed(database: sqlite3.Connection, user: PeerId) -> set[PeerId]:
    """Return the servers that have signed the newest statement of a user, too."""
    query = "SELECT server FROM statements WHERE user = ? AND length(agreed) > 0"
    return {PeerId(server) for (server,) in database.execute(query, (user,))}


def put(database: sqlite3.Connection, made: Statement, agreed: bytes = b"") -> None:
    """Keep a pair's newest statement."""
    values = (made.user, made.server, made.count, made.work, made.signature)
    database.execute(_PUT, (*values, made.sent, made.kept, agreed))


def drop(database: sqlite3.Connection, gone: Iterable[Statement]) -> None:
    """Forget statements."""
    for each in gone:
        database.execute(
            "DELETE FROM statements WHERE user = ? AND server = ?", (each.user, each.server)
        )


def stated_by_server(database: sqlite3.Connection) -> dict[PeerId, Amounts]:
    """Return what all peers of this machine have stated, by the server."""
    found: defaultdict[PeerId, Amounts] = defaultdict(Amounts)
    for server, *sums in database.execute("SELECT server, work, sent, kept FROM statements"):
        found[PeerId(server)] += Amounts(*sums)
    return found


def passed(database: sqlite3.Connection) -> Mapping[tuple[PeerId, PeerId], int]:
    """Return what askers had on others' accounts."""
    found: Counter[tuple[PeerId, PeerId]] = Counter()
    for asker, debtor, work in database.execute("SELECT asker, debtor, work FROM passed"):
        found[PeerId(asker), PeerId(debtor)] = work
    return found


def _statement(row: tuple[Any, ...]) -> Statement:
    user, server, *rest = row
    return Statement(PeerId(user), PeerId(server), *rest)
