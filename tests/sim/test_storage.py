"""A model in the hands of peers that come, go and leave, in virtual time."""

from typing import Any

import pytest

from sim import storage
from sim.storage import StorageRun


@pytest.fixture(autouse=True)
def _few_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a small model: the same decisions, fewer of them."""
    monkeypatch.setattr(storage, "GROUPS", 3)


def run(days: float, up: float, seed: int = 1, peers: int = 60) -> dict[str, Any]:
    """Return a run's report."""
    return storage.storage(peers, days, up, seed, lambda _: None)


def test_the_same_seed_gives_the_same_run() -> None:
    """And another seed another one."""
    assert run(1, 0.7) == run(1, 0.7)
    assert run(1, 0.7) != run(1, 0.7, seed=2)


def test_lost_rows_are_rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the peers leave within five days, and nothing is lost."""
    monkeypatch.setattr(storage, "STAY_DAYS", 7.0)
    found = run(12, 0.85)
    assert found["chosen"] == "code"
    assert found["code"]["groups_lost"] == 0
    assert found["code"]["moved_gb"] > 0
    assert found["code"]["storage_times"] <= 2.1
    assert found["code"]["lost_gb"] > found["model_gb"]


def test_without_repair_the_model_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the run above shows something."""
    monkeypatch.setattr(storage, "STAY_DAYS", 7.0)
    monkeypatch.setattr(StorageRun, "_rebuild", lambda *_: True)
    assert run(12, 0.85)["code"]["groups_lost"] > 0


def test_code_and_copies_are_out_of_reach_by_the_same_measure() -> None:
    """A group is, where not all of it can be had; a row of it is more seldom."""
    found = run(3, 0.7)
    for way in ("code", "copies_2", "copies_3"):
        assert 0 < found[way]["rows_out_of_reach"] < found[way]["groups_out_of_reach"] < 1
    two, three = found["copies_2"], found["copies_3"]
    assert two["rows_out_of_reach"] == pytest.approx(0.3**2, abs=0.04)
    assert three["rows_out_of_reach"] == pytest.approx(0.3**3, abs=0.03)
    assert three["groups_out_of_reach"] > 4 * three["rows_out_of_reach"]


def test_copies_are_chosen_where_peers_are_seldom_up() -> None:
    """Four of them, where half are up."""
    assert run(0.1, 0.5)["chosen"] == "4 copies"


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
def test_a_month_loses_nothing_and_moves_little(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """200 peers that are there for 0.7 of the time: two thirds of the space that copies take."""
    monkeypatch.setattr(storage, "GROUPS", 48)
    found = run(30, 0.7, seed, 200)
    assert found["left_for_good"] > 50
    code, copies = found["code"], found["copies_3"]
    assert code["groups_lost"] == 0 <= copies["groups_lost"]
    assert 0 < code["moved_per_lost"] <= 2
    assert code["storage_times"] <= 2.1
    assert copies["storage_times"] > 2.7
