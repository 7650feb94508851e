"""How a peer notices that its machine's owner needs it."""

import os
import time
from collections.abc import Iterator

import psutil
import pytest
import trio
from trio.testing import MockClock

from p2pinfer.node import idle_monitor
from p2pinfer.node.idle_monitor import ActivityMeter, WhenIdle, heed_owner
from scheduler.owner_idle import CALM_S, MachineUse

BURN_S = 0.3


def test_own_work_does_not_count_as_other_work() -> None:
    """Of two meters over the same time, only one knows that this process is ours."""
    stranger, own = ActivityMeter(list), ActivityMeter(lambda: [os.getpid()])
    until = time.process_time() + BURN_S
    while time.process_time() < until:
        pass
    others, ours = stranger.look().busy_share, own.look().busy_share
    assert others - ours > BURN_S / 4 / (os.cpu_count() or 1)


def test_ended_processes_are_tolerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not make the share negative."""
    pids: Iterator[list[int]] = iter([[os.getpid()], [], [2**22 - 1]])
    meter = ActivityMeter(lambda: next(pids))
    assert 0 <= meter.look().busy_share <= 1
    assert 0 <= meter.look().busy_share <= 1


@pytest.mark.parametrize(("plugged", "on_battery"), [(True, False), (False, True), (None, False)])
def test_battery(monkeypatch: pytest.MonkeyPatch, plugged: bool | None, on_battery: bool) -> None:
    """If the machine does not say, it counts as plugged in; many have no battery."""
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    assert ActivityMeter(list).look().on_battery is False

    class Battery:
        power_plugged = plugged

    monkeypatch.setattr(psutil, "sensors_battery", Battery)
    assert ActivityMeter(list).look().on_battery is on_battery


async def test_a_peer_rests_from_the_first_measurement_on(autojump_clock: MockClock) -> None:
    """Before anything starts, and for as long as the machine is on battery."""
    said: list[tuple[float, bool]] = []
    unplugged_s = 2 * CALM_S

    async def look() -> MachineUse:
        return MachineUse(trio.current_time() - began_at < unplugged_s, 0.0)

    def rest(why: str) -> None:
        said.append((trio.current_time() - began_at, bool(why)))

    began_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(heed_owner, rest, look)
        assert said == [(0.0, True)]
        await trio.sleep(unplugged_s + 2 * CALM_S)
        nursery.cancel_scope.cancel()
    begins_again_s = min(at for at, is_resting in said if not is_resting)
    assert unplugged_s + CALM_S <= begins_again_s <= unplugged_s + CALM_S + 2 * idle_monitor.LOOK_S


async def test_work_is_held_up_and_goes_on(autojump_clock: MockClock) -> None:
    """Once for each reason to rest, however often it is judged."""
    told: list[str] = []
    idle = WhenIdle(told.append)
    await idle.wait()
    done: list[float] = []

    async def work() -> None:
        await idle.wait()
        done.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for why in ("busy", "on its battery"):
            idle.rest(why)
        nursery.start_soon(work)
        await trio.sleep(30)
        assert done == []
        idle.rest("")
    assert done == [trio.current_time()]
    assert told == ["busy", ""]
