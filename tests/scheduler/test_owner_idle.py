"""When a peer rests for the sake of its machine's owner."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler.owner_idle import BUSY_S, BUSY_SHARE, CALM_S, CALM_SHARE, MachineUse, Rest, judge

IDLE, BUSY, BATTERY = MachineUse(False, 0.0), MachineUse(False, 0.9), MachineUse(True, 0.0)

STEP_S = 5.0


def run(*uses: MachineUse, rest: Rest = Rest(), at_s: float = 0.0) -> list[bool]:  # noqa: B008 -- frozen
    """Look every few seconds; gives whether it rests behind each look."""
    found = []
    for number, use in enumerate(uses):
        rest = judge(rest, use, at_s + STEP_S * number)
        found.append(bool(rest.why))
    return found


def test_battery_power_counts_at_once() -> None:
    """And the reason is given."""
    assert run(IDLE, BATTERY) == [False, True]
    assert "battery" in judge(Rest(), BATTERY, 0.0).why


def test_a_moment_of_work_does_not_count() -> None:
    """Only lasting work counts."""
    looks = int(BUSY_S / STEP_S) + 1
    assert run(*[BUSY] * looks) == [False] * (looks - 1) + [True]
    assert not any(run(*[BUSY, IDLE] * 20))


def test_it_resumes_after_a_while_of_calm() -> None:
    """A short calm does not count, and neither does a load between the two thresholds."""
    resting = Rest("busy")
    looks = int(CALM_S / STEP_S) + 1
    assert run(*[IDLE] * looks, rest=resting) == [True] * (looks - 1) + [False]
    assert all(run(*[IDLE, IDLE, BUSY] * 20, rest=resting))
    between = MachineUse(False, (BUSY_SHARE + CALM_SHARE) / 2)
    assert all(run(*[between] * 50, rest=resting))
    assert not any(run(*[between] * 50))


def test_the_reason_is_the_present_one() -> None:
    """Unplugged while busy, busy while plugged in again: it rests throughout."""
    rest = judge(Rest("this machine is busy with other work"), BATTERY, 0.0)
    assert "battery" in rest.why
    assert "busy" in judge(rest, BUSY, STEP_S).why


@given(st.lists(st.sampled_from([IDLE, BUSY, BATTERY]), max_size=60))
def test_it_never_flickers(uses: list[MachineUse]) -> None:
    """Between beginning again and resting, and the other way round, lies the time that it must."""
    found = run(*uses)
    began_to_rest = [i for i in range(1, len(found)) if found[i] and not found[i - 1]]
    for start in began_to_rest:
        calm = [i for i in range(start, len(found)) if not found[i]]
        assert not calm or STEP_S * (calm[0] - start) >= CALM_S
