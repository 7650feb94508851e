"""What ``make honest`` counts: a few rows each time, and all of them once in a while."""

import json
import os
from pathlib import Path

import pytest
from attrs import evolve

from p2pinfer.core.layer_key import LayerKey, LayerShape
from p2pinfer.core.opening import OpenedTrace
from p2pinfer.core.traced import Traced
from p2pinfer.core.verdict import Verdict, judge_row
from tests.honest import __main__ as honest


def measured(rows: int, seed: int, folder: Path) -> dict[str, object]:
    """Open rows."""
    return honest.measure(rows, seed, folder, lambda _: None)


def test_honest_rows_hold(tmp_path: Path) -> None:
    """No alarm, and every step is among those that were checked."""
    found = measured(40, 5, tmp_path)
    assert found["false_alarms"] == 0, found["alarms"]
    assert found["rows"] == 3 / found["false_alarm_rate_below"]  # type: ignore[operator]
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


@pytest.mark.long
def test_ten_thousand_honest_rows_raise_no_alarm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three architectures, five quantisations, all regimes, up to 4,096 positions."""
    found = measured(honest.ROWS, int.from_bytes(os.urandom(4), "little"), tmp_path)
    with capsys.disabled():
        print(json.dumps(found, indent=1))  # noqa: T201 -- the figures are what it is for
    assert found["false_alarms"] == 0, found["alarms"]
