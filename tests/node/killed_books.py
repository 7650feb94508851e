"""Run by ``test_ledger_kills``: books of a user and a server, whose process dies at every step.

A child does one round of work and is killed at its first access of a file, the next one at its
second, and so on, until one comes through. After each, both books must balance.
"""

import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

from p2pinfer.core.ids import PeerId
from p2pinfer.core.ledger import LedgerEntry
from p2pinfer.core.statement import Statement
from p2pinfer.node.ledger_db import LedgerDb, Moved, Side

USER, SERVER = (PeerId(name.ljust(52, "x")) for name in ("user", "server"))
MB = 1_000_000
ROUNDS = 2

left = -1


class Mortal(sqlite3.Connection):
    """A connection that ends the process at a chosen statement."""

    def execute(self, *args: object) -> sqlite3.Cursor:
        """Die, or go on."""
        _age()
        return super().execute(*args)  # type: ignore[arg-type]

    def executemany(self, *args: object) -> sqlite3.Cursor:
        """Write, and die before it is kept, or go on."""
        found = super().executemany(*args)  # type: ignore[arg-type]
        _age()
        return found

    def commit(self) -> None:
        """Die just before, or go on."""
        _age()
        super().commit()


def _age() -> None:
    global left
    if left == 0:
        os._exit(9)
    left -= 1


def sign(body: bytes) -> bytes:
    """Sign as anybody."""
    return body[-64:].rjust(64)


def one_round(user: LedgerDb, server: LedgerDb, number: int) -> None:
    """Work, state it, take the statement, and countersign it."""
    entry = LedgerEntry(SERVER, USER, bytes([number]) * 32, 1, 9, 10 * number, MB)
    server.keep(Side.SERVED, [entry])
    user.keep(Side.USED, [entry])
    server.move([Moved(Side.SERVED, USER, 3 * MB)])
    user.move([Moved(Side.USED, SERVER, 3 * MB)])
    for statement in user.state(USER, sign):
        newest = server.note(statement)
        user.agree(newest, sign(newest.to_countersign()))


def check(user: LedgerDb, server: LedgerDb, number: int) -> None:
    """No more is stated than was had, nor less than before, and nothing counts twice."""
    had = user.debts(USER)
    told = server.debts(SERVER)
    work = 10 * sum(range(1, number + 1))
    assert max(had.had.values(), default=0) - 10 * user_sent(user) <= work
    assert told.unstated.get(USER, 0) <= work
    mine = [Statement(**fields(each)) for each in user.report()["statements"]]
    theirs = server.in_favour(SERVER)
    for held in theirs:
        assert held.amounts.worth <= mine[0].amounts.worth <= had.had[SERVER]
        held.follows(mine[0])  # raises where they contradict each other


def user_sent(user: LedgerDb) -> int:
    """Return the megabytes of parts that the user had."""
    return sum(each["amounts"]["had"]["sent"] for each in user.report()["peers"])


def fields(shown: dict[str, Any]) -> dict[str, Any]:
    """Return a shown statement's own fields."""
    own = {name: value for name, value in shown.items() if name != "countersignature"}
    return own | {"signature": bytes.fromhex(str(own["signature"]))}


def main(folder: Path) -> None:
    """Kill until each round has come through; print how often that was."""
    global left
    user, server = LedgerDb(folder / "user"), LedgerDb(folder / "server")
    real = sqlite3.connect
    kills = 0
    for number in range(1, ROUNDS + 1):
        for age in range(10_000):
            child = os.fork()
            if not child:
                left = age
                sqlite3.connect = lambda *args, **more: real(*args, factory=Mortal, **more)  # type: ignore[assignment]
                one_round(user, server, number)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            check(user, server, number)
            if os.waitstatus_to_exitcode(status) == 0:
                break
            assert os.waitstatus_to_exitcode(status) == 9
            kills += 1
        (held,) = server.in_favour(SERVER)
        assert held.work == 10 * sum(range(1, number + 1))
        assert held.amounts.worth == user.debts(USER).had[SERVER]
        assert user.state(USER, sign) == []
    sys.stdout.write(f"{kills}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
