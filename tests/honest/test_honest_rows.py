"""What ``make honest`` counts: a few rows each time, and all of them once in a while."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from p2pinfer.core.layer_key import LayerKey, LayerShape
from p2pinfer.core.opening import OpenedTrace
from p2pinfer.core.traced import Traced
from p2pinfer.core.verdict import Verdict, judge_row
from tests.honest import __main__ as honest
from tests.support.openings import attention_of


def measured(rows: int, seed: int, folder: Path, *, threaded: bool = False) -> dict[str, Any]:
    """Open rows."""
    return honest.measure(rows, seed, folder, lambda _: None, threaded=threaded)


def test_honest_rows_hold(tmp_path: Path) -> None:
    """No alarm, and every step is among those that were checked."""
    found = measured(40, 5, tmp_path)
    assert found["false_alarms"] == 0, found["alarms"]
    assert found["rows"] == 3 / found["false_alarm_rate_below"]
    used = found["tolerance_used"]
    assert isinstance(used, dict)
    assert set(used) >= set(Traced)
    assert all(share < 1 for share in used.values())
    assert "which experts run" in str(found["experts"])


def test_an_alarm_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is found false is told with all that it takes to see it again."""

    def altered(opening: OpenedTrace, shape: LayerShape, keys: dict[int, LayerKey]) -> Verdict:
        first, *rest = opening.layers
        *steps, last = first.steps
        return judge_row(
            evolve(opening, layers=(evolve(first, steps=(*steps, last[4:] + last[:4])), *rest)),
            shape,
            keys,
        )

    monkeypatch.setattr(honest, "judge_row", altered)
    found = measured(10, 5, tmp_path)
    assert found["false_alarms"] == found["rows"]
    assert found["false_alarm_rate_below"] is None
    alarms = found["alarms"]
    assert isinstance(alarms, list)
    assert {"session", "position", "regime", "said", "model", "settings"} <= set(alarms[0])
    assert "layer 0: out" in alarms[0]["said"]


def test_several_threads_can_be_asked_for() -> None:
    """In each session, of all models and both shapes; never where rows depend on their batch."""
    drawn = [
        honest.draw(np.random.default_rng([7, number]), number, threaded=True)
        for number in range(400)
    ]
    assert {each.settings.threads for each in drawn} == set(honest.THREADS)
    assert len({each.model for each in drawn}) == 16
    assert len({each.shape for each in drawn}) == 2
    far = [each.settings for each in drawn if each.positions > honest.SPLIT_FROM]
    assert {attention_of(each) for each in far} == {"bf16", "plain"}


@pytest.mark.long
def test_a_thousand_rows_by_several_threads_raise_no_alarm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Work is shared among threads by rows of matrices, and by heads."""
    seed = int.from_bytes(os.urandom(4), "little")
    found = measured(1000, seed, tmp_path, threaded=True)
    with capsys.disabled():
        print(json.dumps(found, indent=1))  # noqa: T201 -- the figures are what it is for
    assert found["false_alarms"] == 0, found["alarms"]
    assert set(found["rows_by"]["threads"]) == set(map(str, honest.THREADS))


@pytest.mark.long
def test_ten_thousand_honest_rows_raise_no_alarm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three architectures, five quantisations, all regimes, up to 4,096 positions."""
    found = measured(honest.ROWS, int.from_bytes(os.urandom(4), "little"), tmp_path)
    with capsys.disabled():
        print(json.dumps(found, indent=1))  # noqa: T201 -- the figures are what it is for
    assert found["false_alarms"] == 0, found["alarms"]
