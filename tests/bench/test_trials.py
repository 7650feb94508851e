"""Trials that were made stay, whatever ends a long benchmark."""

from pathlib import Path

import pytest

from p2pinfer.bench.false_rows import FalseRows
from p2pinfer.bench.trials import Trial, TrialFile, summary
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId

MODEL = ModelId("ab" * 32)


def trial(number: int, *, caught: bool = True, cheat: str = "stale KV") -> Trial:
    """Return a trial in which a third of the rows was false."""
    by = ["out"] if caught else []
    rows = FalseRows(73, 24, 0.0, 0.2)
    return Trial(cheat, number, caught, caught, caught, int(caught), by, [], rows)


def test_a_run_goes_on_behind_the_last_whole_trial(tmp_path: Path) -> None:
    """A line that was half written is made again; cheats are kept apart."""
    path = tmp_path / "trials"
    made = [trial(0), trial(1, caught=False), trial(0, cheat="noise")]
    file = TrialFile(path, MODEL, 1)
    for each in made:
        assert file.held(each.cheat) == []
        file.add(each)
    assert TrialFile(path, MODEL, 1).held("stale KV") == made[:2]
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    again = TrialFile(path, MODEL, 1)
    assert (again.held("stale KV"), again.held("noise")) == (made[:2], [])
    again.add(made[2])
    assert path.read_bytes() == data


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """Of another model, of another seed, or of no trials at all."""
    path = tmp_path / "trials"
    TrialFile(path, MODEL, 1).add(trial(0))
    data = path.read_bytes()
    with pytest.raises(UserError, match="another model or seed"):
        TrialFile(path, MODEL, 2)
    with pytest.raises(UserError, match="another model or seed"):
        TrialFile(path, ModelId("cd" * 32), 1)
    assert path.read_bytes() == data
    for other in ("hello\n", '[1]\n{"cheat": 1}\n'):
        path.write_text(other)
        with pytest.raises(UserError, match="no file of trials"):
            TrialFile(path, MODEL, 1)
        assert path.read_text() == other
    with pytest.raises(UserError, match="cannot be used"):
        TrialFile(tmp_path / "none" / "trials", MODEL, 1)


def test_the_summary_counts(tmp_path: Path) -> None:
    """What was missed counts as neither named nor proven."""
    found = summary([trial(0), trial(1, caught=False), trial(2)])
    assert (found["caught"], found["of"], found["caught_more_often_than"]) == (2, 3, None)
    assert (found["right_stage_named"], found["right_layer_named"]) == (2, 2)
    assert (found["proven_by_that_layer_alone"], found["layers_in_a_proof"]) == (2, 1)
    assert found["false_rows"]["least_percent"] == 32.9
    assert summary([trial(number) for number in range(20)])["caught_more_often_than"] == 0.861
