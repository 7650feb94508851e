"""Standings outlive the process that saw the peers."""

from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pinfer.node.reputation_file import KEEP_S, keep_standings, load_standings
from scheduler.offer_table import STANDING_NEW
from scheduler.standing import RECOVERY_S, Standing, Standings
from tests.support.swarm import peer

A, B, C = peer("a"), peer("b"), peer("c")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the standings' file."""
    return tmp_path / "standings.json"


async def keep(standings: Standings, path: Path) -> None:
    """Save standings as a process does when it ends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(keep_standings, standings, path))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


def seen(value: float) -> Standing:
    """Return a standing as of now."""
    return Standing(value, trio.current_time())


async def test_a_low_standing_is_remembered_and_recovers_slowly(
    path: Path, autojump_clock: MockClock
) -> None:
    """The next process starts with the last one's standings; after an hour half is recovered."""
    await keep(Standings({A: seen(0.1), B: seen(0.9)}), path)
    found = load_standings(path)
    now = trio.current_time()
    assert found.of(A, now).value == pytest.approx(0.1, abs=0.01)
    assert found.of(B, now).value == pytest.approx(0.9, abs=0.01)
    assert found.of(C, now).value == STANDING_NEW
    assert found.of(A, now + RECOVERY_S).value == pytest.approx(0.3, abs=0.01)


async def test_a_proven_cheat_never_recovers(path: Path, autojump_clock: MockClock) -> None:
    """Its standing stays 0."""
    await keep(Standings({A: seen(0.5).cheated(trio.current_time())}), path)
    assert load_standings(path).of(A, trio.current_time() + 100 * RECOVERY_S).value == 0


async def test_processes_share_standings(path: Path, autojump_clock: MockClock) -> None:
    """Each adds its own, and the newest standing of a peer counts, whichever process ends last."""
    old = Standings({A: seen(0.2), B: seen(0.2)})
    await trio.sleep(1)
    await keep(Standings({A: seen(0.8), C: seen(0.3)}), path)
    await keep(old, path)
    values = {p: load_standings(path).of(p, trio.current_time()).value for p in (A, B, C)}
    assert values == pytest.approx({A: 0.8, B: 0.2, C: 0.3}, abs=0.01)


async def test_a_long_running_process_saves_regularly(
    path: Path, autojump_clock: MockClock
) -> None:
    """So that not everything is lost if it is killed."""
    standings = Standings({A: seen(0.3)})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(keep_standings, standings, path))
        await trio.sleep(KEEP_S + 1)
        assert set(load_standings(path).known) == {A}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("said", ["", "[]", '{"a": 1}', '{"a": [2, 0]}', '{"a": ["x", 0]}'])
async def test_a_malformed_file_is_ignored(
    path: Path, said: str, autojump_clock: MockClock
) -> None:
    """It counts as empty, and is written again."""
    path.write_text(said)  # noqa: ASYNC240 -- nothing else runs
    assert len(load_standings(path)) == 0
    await keep(Standings({A: seen(0.3)}), path)
    assert len(load_standings(path)) == 1


async def test_an_unwritable_file_is_tolerated(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The chat goes on."""
    await keep(Standings({A: seen(0.3)}), tmp_path / "no such folder" / "file")
