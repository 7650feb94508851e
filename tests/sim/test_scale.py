"""Swarms without messages: peers settle, cover every layer, and recover from losses."""

from sim.scale import Scale, scale

LAYERS = 40


def test_a_crowd_that_joins_at_once_serves_soon_and_settles() -> None:
    """All serve half a minute after the last joined, all layers are safe, hardly any peer moves."""
    run = Scale(200, LAYERS, seed=3)
    run.run(3, lambda _: None)
    joined = next(look for look in run.looks if look.at_s == 90)
    assert joined.serving == 200
    assert joined.least_holders > 1
    assert joined.balance > 0.5
    assert run.moves.mean() < 1


def test_a_seed_is_a_run_and_a_loss_is_recovered_from() -> None:
    """The report is the same except for times; routes are found before and after the loss."""
    first, again = (scale(30, 16, 2, 5, lambda _: None) for _ in range(2))
    timed = ("wall_s", "ms_per_decision")
    assert {k: v for k, v in first.items() if k not in timed} == {
        k: v for k, v in again.items() if k not in timed
    }
    assert first["after_loss"]["least_holders"] > 0
    routes = first["routes"]
    assert routes["at_first_try"] > 0.5 * routes["asked"] > 0


def test_progress_is_reported() -> None:
    """Progress is reported at every step, the last one being the whole."""
    told: list[float] = []
    Scale(12, 16, seed=1).run(0.2, told.append)
    assert told == sorted(told)
    assert told[-1] == 1
