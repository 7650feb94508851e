"""Models of one machine agree on its memory before any of them is served."""

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.errors import UserError, lone_errors
from p2pinfer.node.shared_memory import APPETITES_S_MAX, SharedMemory
from scheduler.memory_shares import Appetite

MIB = 1 << 20


async def shares(
    shared: SharedMemory, appetites: dict[str, tuple[float, Appetite]]
) -> dict[str, tuple[int, float]]:
    """Return what each model gets and when; each asks at a time of its own."""
    found: dict[str, tuple[int, float]] = {}

    async def one(name: str, at: float, appetite: Appetite) -> None:
        await trio.sleep(at)
        found[name] = await shared.share(name, appetite), trio.current_time() - began

    began = trio.current_time()
    with lone_errors():
        async with trio.open_nursery() as nursery:
            for name, (at, appetite) in appetites.items():
                nursery.start_soon(one, name, at, appetite)
    return found


async def test_the_last_one_to_say_decides(autojump_clock: MockClock) -> None:
    """Small models leave room for large ones, and either may be first."""
    shared = SharedMemory(100, 2)
    asked = {"small": (0.0, Appetite(5, 20)), "large": (9.0, Appetite(5, 500))}
    assert await shares(shared, asked) == {"small": (20, 9.0), "large": (80, 9.0)}


async def test_a_model_that_nobody_has_keeps_no_other_waiting(autojump_clock: MockClock) -> None:
    """After a while the others get what they would get beside it; later it gets the rest."""
    shared = SharedMemory(90, 3)
    late = APPETITES_S_MAX + 30
    asked = {
        "one": (0.0, Appetite(5, 500)),
        "other": (3.0, Appetite(5, 10)),
        "late": (late, Appetite(5, 500)),
    }
    found = await shares(shared, asked)
    assert found["one"] == (40, APPETITES_S_MAX)
    assert found["other"] == (10, APPETITES_S_MAX)
    assert found["late"] == (40, late)


async def test_too_little_for_all(autojump_clock: MockClock) -> None:
    """The sentence names them, what they need, and what to do."""
    words = r"each of A and B, .* takes 60 MiB, and there are 50 MiB: name fewer models"
    with pytest.raises(UserError, match=words):
        await shares(
            SharedMemory(50 * MIB, 2),
            {name: (0.0, Appetite(30 * MIB, 90 * MIB)) for name in ("A", "B")},
        )
