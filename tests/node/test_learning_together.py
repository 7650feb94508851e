"""Where a member of a task goes on."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.learning import TaskId
from p2pinfer.node.learning_together import _keep_head, _tasks_dir, kept_head
from peers.learning.work import Head

TASK = TaskId("a" * 64)
NUMBERS = np.arange(-3, 5, dtype=np.int32)
CHILD, PEERS = ModelId("b" * 64), tuple(PeerId(f"{number:052}") for number in range(3))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "home"))


def test_a_head_is_kept_whole() -> None:
    """With who took part, and who was drawn: the next round begins with most of these."""
    assert kept_head(TASK, 8).round == 0
    _keep_head(TASK, Head(4, NUMBERS, CHILD, PEERS[:2], PEERS, {PEERS[2]: 2}))
    found = kept_head(TASK, 8)
    assert (found.round, found.child, found.members) == (4, CHILD, PEERS[:2])
    assert (found.drawn, found.waited) == (PEERS, {PEERS[2]: 2})
    np.testing.assert_array_equal(found.numbers, NUMBERS)


@pytest.mark.parametrize("drawn", [(), (PEERS,)])
def test_a_head_of_an_earlier_release_is_read(drawn: tuple[Sequence[PeerId], ...]) -> None:
    """It did not keep who was drawn, or who was left out."""
    _tasks_dir().mkdir(parents=True)
    said = np.frombuffer(json.dumps([4, CHILD, PEERS, *drawn]).encode(), np.uint8)
    np.savez(_tasks_dir() / f"{TASK}.npz", numbers=NUMBERS, said=said)
    found = kept_head(TASK, 8)
    assert (found.round, found.members, found.waited) == (4, PEERS, {})
    assert found.drawn == (drawn[0] if drawn else ())


def test_a_damaged_head_is_begun_again() -> None:
    """As if there were none."""
    _tasks_dir().mkdir(parents=True)
    (_tasks_dir() / f"{TASK}.npz").write_bytes(b"PK\x03\x04 no archive")
    assert kept_head(TASK, 8).round == 0
