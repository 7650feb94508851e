"""What checks found is added up by peer and by process, and never stands in an answer's way."""

from pathlib import Path

import pytest

from p2pinfer.core.trust import Audited, AuditVerdict, Trust, Unproved
from p2pinfer.node import checks_db as module
from p2pinfer.node.checks_db import ChecksDb, ProvedRows
from tests.support.swarm import peer

ONE, TWO = peer("one"), peer("two")


def trust(*verdicts: AuditVerdict, why: str = "", positions: int = 50) -> Trust:
    """Return what was found of a stage of one, and why another was not proven."""
    audits = tuple(Audited(ONE, 0, 5, verdict) for verdict in verdicts)
    unproved = (Unproved(TWO, 5, 9, why),) if why else ()
    return Trust(2, positions, 0.1, None, audits, 1.0, unproved)


def test_rows_add_up(tmp_path: Path) -> None:
    """Over answers and processes; stages that were run again do not count."""
    path = tmp_path / "new" / "checks.sqlite3"
    proved = AuditVerdict.PROVED
    ChecksDb(path, lambda: 5.0).keep(trust(proved, AuditVerdict.SAME, why="no key"))
    ChecksDb(path, lambda: 6.0).keep(trust(proved, positions=3))
    ChecksDb(path, lambda: 7.0).keep(trust(AuditVerdict.CHEATED))
    assert ChecksDb(path).by_peer() == {
        ONE: ProvedRows(7, 53, 6.0, ""),
        TWO: ProvedRows(0, 0, 5.0, "no key"),
    }


def test_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many answers there are."""
    monkeypatch.setattr(module, "CHECKS_MAX", 3)
    checks = ChecksDb(tmp_path / "checks.sqlite3", lambda: 5.0)
    for _ in range(9):
        checks.keep(trust(AuditVerdict.PROVED))
    assert checks.by_peer()[ONE].rows == 12


def test_a_file_that_cannot_be_used_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer has been checked all the same; a line in the log says what is wrong."""
    path = tmp_path / "checks.sqlite3"
    path.write_bytes(b"nonsense" * 100)
    checks = ChecksDb(path)
    checks.keep(trust(AuditVerdict.PROVED))
    assert checks.by_peer() == {}
    assert "is not written down" in caplog.text
    assert "cannot be read" in caplog.text
