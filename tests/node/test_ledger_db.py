"""The ledger's file: durable, shared, and never counting twice."""

from pathlib import Path

import pytest
from trio.testing import MockClock

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.ledger import LedgerAccount, LedgerEntry
from p2pinfer.node.ledger_db import ENTRIES_MAX, LedgerDb, LedgerKeeper, Side

ME, YOU = (PeerId(name.ljust(52, "x")) for name in ("me", "you"))


def entry(rows: int, session: int = 1) -> LedgerEntry:
    """Return an entry of one peer's work for another in a session."""
    return LedgerEntry(ME, YOU, bytes([session]) * 32, 1, 10, rows)


def test_kept_entries_are_durable(tmp_path: Path) -> None:
    """The largest receipt of a session counts, in whatever order they come."""
    books = LedgerDb(tmp_path / "home" / "ledger")
    books.keep(Side.SERVED, [entry(10), entry(30), entry(20)])
    books.keep(Side.SERVED, [entry(30), entry(5, session=2)])
    books.keep(Side.USED, [LedgerEntry(YOU, ME, bytes(32), 10, 12, 7)])
    assert LedgerDb(tmp_path / "home" / "ledger").accounts() == [LedgerAccount(YOU, 35 * 9, 14)]


def test_the_number_of_entries_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest entries are deleted first."""
    assert ENTRIES_MAX >= 1000
    monkeypatch.setattr("p2pinfer.node.ledger_db.ENTRIES_MAX", 3)
    books = LedgerDb(tmp_path / "ledger")
    for session in range(5):
        books.keep(Side.SERVED, [entry(1 + session, session)])
    assert books.accounts() == [LedgerAccount(YOU, (3 + 4 + 5) * 9, 0)]


def test_a_file_that_is_no_ledger_is_a_user_error(tmp_path: Path) -> None:
    """The sentence says what to do."""
    path = tmp_path / "ledger"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="move it away"):
        LedgerDb(path).accounts()


async def test_queued_entries_are_written_at_the_end(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Sessions that end with the peer count; entries beyond the queue are lost with a warning."""
    books = LedgerDb(tmp_path / "ledger")
    keeper = LedgerKeeper(books)
    for session in range(1025):
        keeper.served(LedgerEntry(ME, YOU, session.to_bytes(32, "little"), 1, 2, 1))
    keeper.finish()
    assert books.accounts() == [LedgerAccount(YOU, 1024, 0)]
    assert "not counted" in caplog.text
