"""Virtual time: sleeps and calls happen in order."""

import trio

from sim.clock import call_at, run_virtual


def test_calls_and_sleeps_come_in_order() -> None:
    """Each at its own moment, those of one moment in the order of request; late ones at once."""
    seen: list[tuple[float, str]] = []

    def see(name: str) -> None:
        seen.append((trio.current_time(), name))

    async def main() -> None:
        call_at(2.0, lambda: see("second"))
        call_at(1.0, lambda: see("first"))
        call_at(2.0, lambda: see("third"))
        await trio.sleep(1.5)
        see("slept")
        lot = trio.lowlevel.ParkingLot()
        call_at(3.0, lot.unpark_all)
        await lot.park()
        see("woken")
        call_at(0.0, lambda: see("late"))
        await trio.sleep(1.0)

    run_virtual(main, 1)
    assert seen == [
        (1.0, "first"),
        (1.5, "slept"),
        (2.0, "second"),
        (2.0, "third"),
        (3.0, "woken"),
        (3.0, "late"),
    ]
