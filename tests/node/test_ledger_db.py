"""The ledger's file: durable, shared, and never counting twice."""

import sqlite3
from pathlib import Path

import pytest
from attrs import asdict, evolve
from trio.testing import MockClock

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.ledger import LedgerAccount, LedgerEntry
from p2pinfer.core.statement import KEPT_WORTH, SENT_WORTH, Amounts, Contradiction, Statement
from p2pinfer.node.ledger_db import ENTRIES_MAX, LedgerDb, LedgerKeeper, Moved, Side

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
    """The oldest entries are folded into sums first."""
    assert ENTRIES_MAX >= 1000
    monkeypatch.setattr("p2pinfer.node.ledger_db.ENTRIES_MAX", 3)
    books = LedgerDb(tmp_path / "ledger")
    for session in range(5):
        books.keep(Side.SERVED, [entry(1 + session, session)])
    assert len(sqlite3.connect(tmp_path / "ledger").execute("SELECT * FROM work").fetchall()) == 3
    assert books.accounts() == [LedgerAccount(YOU, (1 + 2 + 3 + 4 + 5) * 9, 0)]


def test_days_are_joined_where_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost of the sums; the latest days still stand by themselves."""
    monkeypatch.setattr("p2pinfer.node.ledger_db.ENTRIES_MAX", 4)
    day = 1000
    books = LedgerDb(tmp_path / "ledger", lambda: day)
    for day in range(1000, 1030):
        books.keep(Side.USED, [used(10, session=day - 1000)])
        books.move([Moved(Side.USED, YOU, 2 * MIB)])
    with sqlite3.connect(tmp_path / "ledger") as database:
        counts = [database.execute(f"SELECT count(*) FROM {t}") for t in ("folded", "moved")]
        assert all(0 < count.fetchone()[0] <= 5 for count in counts)
    database.close()
    assert books.debts(ME).had == {YOU: 300 + 60 * SENT_WORTH}
    assert books.report()["days"][-1]["had"] == 10 + 2 * SENT_WORTH


def test_what_is_owed_is_not_forgotten_with_old_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New work is stated beyond what was stated before, however many entries were folded."""
    monkeypatch.setattr("p2pinfer.node.ledger_db.ENTRIES_MAX", 2)
    books = LedgerDb(tmp_path / "ledger")
    for session in range(1, 9):
        books.keep(Side.USED, [used(10, session=session)])
        (made,) = books.state(ME, sign)
        assert made.work == 10 * session
    assert books.debts(ME).had == {YOU: 80}


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


THIRD = PeerId("third".ljust(52, "x"))
OTHER_OWN = PeerId("another of mine".ljust(52, "x"))
MIB = 1_000_000


def sign(body: bytes) -> bytes:
    """Sign as anybody."""
    return body[-64:].rjust(64)


def used(rows: int, server: PeerId = YOU, session: int = 1) -> LedgerEntry:
    """Return work that another peer did for this machine, through a megabyte of weights."""
    return LedgerEntry(server, ME, bytes([session]) * 32, 1, 10, rows, MIB)


def test_statements_grow_with_the_work(tmp_path: Path) -> None:
    """One number more each, only where there is more; what is stated survives the process."""
    books = LedgerDb(tmp_path / "ledger")
    books.keep(Side.USED, [used(10), used(3, THIRD)])
    first = {each.server: each for each in books.state(ME, sign)}
    assert {server: each.work for server, each in first.items()} == {YOU: 10, THIRD: 3}
    books.keep(Side.USED, [used(25), used(5, session=2)])
    later = {each.server: each for each in LedgerDb(tmp_path / "ledger").state(ME, sign)}
    assert later[YOU].work == 30
    assert later[YOU].follows(first[YOU])
    assert later[THIRD] == first[THIRD]
    assert later[YOU].signature == sign(later[YOU].to_sign())
    assert books.debts(ME).had == {YOU: 30, THIRD: 3}


def test_two_peers_of_one_machine_state_its_work_once(tmp_path: Path) -> None:
    """They share the books: the second one adds nothing."""
    books = LedgerDb(tmp_path / "ledger")
    books.keep(Side.USED, [used(10)])
    assert books.state(ME, sign)
    assert books.state(OTHER_OWN, sign) == []
    books.keep(Side.USED, [used(16)])
    (made,) = books.state(OTHER_OWN, sign)
    assert made.work == 6


def test_the_newest_statement_counts_and_a_contradiction_does_not(tmp_path: Path) -> None:
    """An older one that comes late changes nothing."""
    books = LedgerDb(tmp_path / "ledger")
    statement = Statement(YOU, ME, 2, 50, bytes(64))
    for each in (statement, evolve(statement, count=1, work=20), statement):
        books.note(each)
    assert books.in_favour(ME) == [statement]
    for count, work in ((2, 51), (3, 50), (3, 49), (1, 60)):
        with pytest.raises(Contradiction) as caught:
            books.note(evolve(statement, count=count, work=work))
        assert caught.value.before == statement
    newest = evolve(statement, count=7, work=90)
    assert books.note(newest) == books.note(statement) == newest


def test_unsigned_work_is_what_was_given_beyond_statements(tmp_path: Path) -> None:
    """Of work alone: who fetches parts need not be of a release that states them."""
    books = LedgerDb(tmp_path / "ledger")
    books.keep(Side.SERVED, [LedgerEntry(ME, YOU, bytes(32), 1, 10, 90, MIB)])
    books.note(Statement(YOU, ME, 2, 50, bytes(64)))
    books.move([Moved(Side.SERVED, YOU, 7 * MIB)])
    assert books.debts(ME).unstated == {YOU: 40}
    assert books.debts(ME).given == {YOU: 90 + 7 * SENT_WORTH}


def test_parts_and_space_are_stated_beside_work(tmp_path: Path) -> None:
    """In whole megabytes and megabyte-days; what is left over waits for the next statement."""
    books = LedgerDb(tmp_path / "ledger")
    books.keep(Side.USED, [used(10)])
    for _ in range(2):
        books.move([Moved(Side.USED, YOU, 1_500_000), Moved(Side.USED, YOU, 0, 86_400 * 9 * MIB)])
    (made,) = books.state(ME, sign)
    assert made.amounts == Amounts(10, 3, 18)
    assert books.debts(ME).had == {YOU: 10 + 3 * SENT_WORTH + 18 * KEPT_WORTH}
    books.move([Moved(Side.USED, YOU, 400_000)])
    assert books.state(ME, sign) == [made]
    books.move([Moved(Side.USED, YOU, 600_000)])
    (more,) = books.state(ME, sign)
    assert more.amounts == Amounts(10, 4, 18)
    assert more.follows(made)
    books.note(evolve(more, user=YOU, server=ME))  # kept shares count by the user's word alone
    assert books.debts(ME).given == {YOU: 18 * KEPT_WORTH}


def test_a_countersigned_statement_is_stated_no_more(tmp_path: Path) -> None:
    """Until there is more; and then its number is that of the agreed one, or later."""
    books = LedgerDb(tmp_path / "ledger", clock_ms=lambda: 5)
    books.keep(Side.USED, [used(10)])
    (made,) = books.state(ME, sign)
    assert made.count == 5
    assert books.agree(made, b"s" * 64)
    assert books.state(ME, sign) == []
    assert books.report()["peers"][0]["agreed"]
    books.keep(Side.USED, [used(16)])
    (more,) = books.state(ME, sign)
    assert (more.count, more.work) == (6, 16)
    assert not books.agree(made, b"s" * 64)  # an old answer, that comes late
    assert books.state(ME, sign) == [more]


def test_books_put_back_from_a_copy_go_on_from_what_both_signed(tmp_path: Path) -> None:
    """The server's answer holds what this peer signed since; nothing is signed twice."""
    books = LedgerDb(tmp_path / "ledger", clock_ms=lambda: 100)
    books.keep(Side.USED, [used(10)])
    (old,) = books.state(ME, sign)
    copy = (tmp_path / "ledger").read_bytes()
    books.keep(Side.USED, [used(70)])
    (new,) = books.state(ME, sign)
    (tmp_path / "ledger").write_bytes(copy)
    books = LedgerDb(tmp_path / "ledger", clock_ms=lambda: 200)
    assert books.state(ME, sign) == [old]
    assert books.agree(new, b"s" * 64)
    books.keep(Side.USED, [used(90)])
    (later,) = books.state(ME, sign)
    assert (later.count, later.work) == (200, 90)
    assert later.follows(new)


def test_what_was_passed_on_adds_up(tmp_path: Path) -> None:
    """By asker and debtor, in sums that survive the process."""
    books = LedgerDb(tmp_path / "ledger")
    books.pass_on({(YOU, THIRD): 5})
    books.pass_on({(YOU, THIRD): 6, (THIRD, YOU): 1})
    assert LedgerDb(tmp_path / "ledger").debts(ME).passed == {(YOU, THIRD): 11, (THIRD, YOU): 1}


def test_the_export_has_a_row_for_each_day_and_peer(tmp_path: Path) -> None:
    """And each statement, with both signatures."""
    books = LedgerDb(tmp_path / "ledger", lambda: 20_000)
    books.keep(Side.USED, [used(10)])
    books.move([Moved(Side.SERVED, THIRD, 2 * MIB)])
    (made,) = books.state(ME, sign)
    books.agree(made, b"s" * 64)
    third, you, said = books.export()
    assert third == {
        "kind": "day",
        "day": "2024-10-04",
        "peer": THIRD,
        "given_work": 0,
        "given_sent": 2,
        "given_kept": 0,
        "had_work": 0,
        "had_sent": 0,
        "had_kept": 0,
    }
    assert (you["peer"], you["had_work"]) == (YOU, 10)
    assert (said["kind"], said["work"], said["server"]) == ("statement", 10, YOU)
    assert said["countersignature"] == (b"s" * 64).hex()


def test_statements_in_ones_favour_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest are dropped first."""
    monkeypatch.setattr("p2pinfer.node.ledger_db.STATEMENTS_KEPT_MAX", 3)
    books = LedgerDb(tmp_path / "ledger")
    for number in range(1, 9):
        books.note(Statement(PeerId(f"peer {number}".ljust(52, "x")), ME, 1, number, bytes(64)))
    assert [each.work for each in books.in_favour(ME)][:3] == [8, 7, 6]
    assert len(books.in_favour(ME)) <= 4


def test_the_report_has_days_peers_and_who_signed(tmp_path: Path) -> None:
    """In megabyte-rows; what peers of this machine signed is not what others signed."""
    day = 20_000
    books = LedgerDb(tmp_path / "ledger", lambda: day)
    given = LedgerEntry(ME, YOU, bytes(32), 1, 10, 7, MIB)
    books.keep(Side.SERVED, [given])
    day += 3
    books.keep(Side.USED, [used(4), used(2, ME, session=3)])
    books.state(ME, sign)
    books.note(Statement(YOU, ME, 1, 6, bytes(64)))
    report = books.report()
    assert (report["given"], report["had"]) == (7, 6)
    by_day = {each["day"]: (each["given"], each["had"]) for each in report["days"]}
    assert len(by_day) == 30
    assert (by_day[20_000], by_day[20_001], by_day[20_003]) == ((7, 0), (0, 0), (0, 6))
    you, me = report["peers"]
    sums = {"given": 7, "had": 4, "signed_by_it": 6, "signed_to_it": 4, "agreed": False}
    amounts = {"given": asdict(Amounts(7)), "had": asdict(Amounts(4))}
    assert you == {"peer": YOU, **sums, "amounts": amounts}
    assert (me["signed_by_it"], me["signed_to_it"]) == (0, 0)
    assert len(report["statements"]) == 2


def test_a_ledger_of_an_earlier_release_goes_on(tmp_path: Path) -> None:
    """Its rows have no weights and no day, and count as layer-rows alone."""
    path = tmp_path / "ledger"
    old = sqlite3.connect(path)
    old.execute(
        "CREATE TABLE work (side TEXT NOT NULL, server TEXT NOT NULL, user TEXT NOT NULL,"
        " terms BLOB NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, rows INTEGER NOT"
        " NULL, PRIMARY KEY (side, server, terms, first, last))"
    )
    values = (Side.USED, YOU, ME, bytes(32), 1, 10, 8)
    old.execute("INSERT INTO work VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    old.commit()
    old.close()
    books = LedgerDb(path)
    books.keep(Side.USED, [used(4)])
    assert books.accounts() == [LedgerAccount(YOU, 0, 12 * 9)]
    assert books.debts(ME).had == {YOU: 4}
