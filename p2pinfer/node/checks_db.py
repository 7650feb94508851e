"""What checks of answers found about each peer, in SQLite, shared by processes of this machine."""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from p2pinfer.core.ids import PeerId
from p2pinfer.core.trust import AuditVerdict, Trust
from p2pinfer.places import data_dir

_log = logging.getLogger("p2pinfer.openings")

LOCKED_S_MAX: Final = 5.0
"""How long to wait while another process writes."""

CHECKS_MAX: Final = 20_000
"""Of stages, the oldest of which are deleted first: 2 MB."""

_TENTH: Final = 0.1

_TABLE = """
CREATE TABLE IF NOT EXISTS checks (
    peer TEXT NOT NULL, at_s INTEGER NOT NULL, rows INTEGER NOT NULL, of_rows INTEGER NOT NULL,
    why_not TEXT NOT NULL
)
"""
_TRIM = "DELETE FROM checks WHERE rowid <= (SELECT max(rowid) FROM checks) - ?"
_ALL = "SELECT peer, at_s, rows, of_rows, why_not FROM checks ORDER BY rowid"


def clock_s() -> float:
    """Return the time in seconds since 1970."""
    return time.time_ns() / 1e9


@frozen
class ProvedRows:
    """What this machine has seen of the rows that a peer opened."""

    rows: float
    """Every step of which held; of a row that was opened in part, the part of its layers."""
    of_rows: int
    """That it computed in the answers in which it was asked."""
    at_s: float
    """When that was last, in seconds since 1970."""
    why_not: str
    """Why nothing was learned the last time that it was to open rows; empty if something was."""

    @property
    def chance(self) -> float:
        """How likely a peer that computes a tenth of its rows falsely had been caught so far."""
        return float(1 - (1 - _TENTH) ** self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "rows": self.rows,
            "of_rows": self.of_rows,
            "at": self.at_s,
            "chance_if_a_tenth_is_false": round(self.chance, 4),
            "not_proved": self.why_not or None,
        }


class ChecksDb:
    """The file; each call opens it, so that processes can share it."""

    def __init__(self, path: Path, now_s: Callable[[], float] = clock_s) -> None:
        self._path, self._now_s = path, now_s

    def keep(self, trust: Trust) -> None:
        """Add what was found of the stages that were to open rows; a failure is only logged."""
        now_s = int(self._now_s())
        rows: list[tuple[str, int, float, int, str]] = []
        for each in trust.audits:
            if each.verdict is AuditVerdict.PROVED:
                seen = each.rows_seen(trust.positions)
                rows.append((each.peer, now_s, seen, trust.positions, ""))
        rows += [(each.peer, now_s, 0, 0, each.why) for each in trust.unproved]
        if not rows:
            return
        try:
            with self._open() as database:
                database.executemany("INSERT INTO checks VALUES (?, ?, ?, ?, ?)", rows)
                database.execute(_TRIM, (CHECKS_MAX,))
        except (sqlite3.Error, OSError) as error:
            _log.warning("what was proved is not written down: %s", error)

    def by_peer(self) -> Mapping[PeerId, ProvedRows]:
        """Return what is known of each peer; nothing if the file cannot be read."""
        found: dict[PeerId, ProvedRows] = {}
        try:
            with self._open() as database:
                for peer, at_s, rows, of_rows, why_not in database.execute(_ALL):
                    before = found.get(PeerId(peer), ProvedRows(0, 0, 0.0, ""))
                    found[PeerId(peer)] = ProvedRows(
                        before.rows + rows, before.of_rows + of_rows, at_s, why_not
                    )
        except (sqlite3.Error, OSError, TypeError) as error:
            _log.warning("what was proved cannot be read: %s", error)
        return found

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._path, timeout=LOCKED_S_MAX)
        try:
            with database:  # one transaction
                database.execute(_TABLE)
                yield database
        finally:
            database.close()


def open_checks() -> ChecksDb:
    """Return the checks in the data directory."""
    return ChecksDb(data_dir() / "checks.sqlite3")
