"""An observer of one hop: it links what is not hidden, and no more than by chance what is."""

from typing import Any

import pytest

from sim import observer
from sim.observer import MARGIN, Mode, link, modes

USERS = 36
PAIRS = USERS // 2 * observer.SESSIONS * (observer.SESSIONS - 1)
SPREAD = 4 * (0.25 / PAIRS) ** 0.5
"""Of a guess, with so few pairs: the margin itself is for more of them."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have short answers."""
    monkeypatch.setattr(observer, "ANSWER_S", (0.6, 1.5))


def linked(mode: Mode, seed: int = 1, users: int = USERS, *, habits: bool = False) -> Any:
    """Return the shares of pairs that an attack judges rightly."""
    return link(users, mode, seed, lambda _: None, habits=habits)


def test_the_attack_works_where_nothing_is_done() -> None:
    """By sizes alone, and by times alone: else what follows would mean nothing."""
    found = linked(modes(20)[0])
    assert found["sizes"] > 0.7
    assert found["times"] > 0.8
    assert found == linked(modes(20)[0])


def test_padding_hides_sizes_and_not_times() -> None:
    """As documented: how soon somebody reacts shows who it is."""
    found = linked(modes(20)[1])
    assert found["sizes"] <= 0.5 + SPREAD
    assert found["times"] > 0.8


def test_a_pace_hides_both() -> None:
    """No better than a guess, by all that is seen."""
    assert linked(modes(20)[2])["all"] <= 0.5 + SPREAD


def test_relays_end_a_lines_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without beats of their own it would show whose line it is."""

    class NoBeats:
        def __init__(self, _: float) -> None:
            pass

        def wait_s(self, _: float, __: int) -> float:
            return 0.0

    monkeypatch.setattr(observer, "Beats", NoBeats)
    assert linked(modes(20)[2])["times"] > 0.5 + 2 * MARGIN


@pytest.mark.long  # minutes: thousands of pairs, so that 5 % is more than they scatter
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_more_than_five_percent_beyond_a_guess(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """With answers as long as they are, and many users."""
    monkeypatch.undo()
    assert linked(modes(20)[2], seed, 150)["all"] <= 0.5 + MARGIN
