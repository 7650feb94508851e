"""Trials of cheats whose rows were opened, kept in a file so that a long benchmark can go on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from p2pinfer.bench.false_rows import FalseRows
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId


@dataclass(frozen=True)
class Trial:
    """What came out of one answer in which a stage cheated."""

    cheat: str
    number: int
    caught: bool
    right_stage: bool
    """It was named, and no honest one."""
    right_layer: bool | None
    """None where a cheat shows nothing of any."""
    proven: int
    """By how many layers others find it false, who have nothing but these; 0 if they do not."""
    by: Sequence[str]
    wrongly: Sequence[str]
    """What was said of honest stages."""
    false_rows: FalseRows


class TrialFile:
    """A line of JSON for each trial, behind one that says what they are of.

    Args:
        path: of the file; None keeps nothing.
        model: that is tried.
        seed: that draws trials.

    Raises:
        UserError: the file is about something else, or cannot be written.
    """

    def __init__(self, path: Path | None, model: ModelId, seed: int) -> None:
        self._path = path
        self._held: dict[str, list[Trial]] = {}
        if path is None:
            return
        head = {"model": model, "seed": seed}
        try:
            text = path.read_text() if path.exists() else ""
            lines = text[: text.rfind("\n") + 1].splitlines()  # the last one may be half written
            if len(text) > sum(len(line) + 1 for line in lines):
                path.write_text("".join(f"{line}\n" for line in lines))
            if not lines:
                path.write_text(f"{json.dumps(head)}\n")
                return
            found = [json.loads(line) for line in lines]
            trials = [_trial(each) for each in found[1:]]
        except OSError as error:
            raise UserError(f"{path} cannot be used: {error.strerror}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is no file of trials: name another one") from error
        if found[0] != head:
            raise UserError(f"{path} is of another model or seed: name another file")
        for each in trials:
            self._held.setdefault(each.cheat, []).append(each)

    def held(self, cheat: str) -> list[Trial]:
        """Return the trials of a cheat that were made before, the first ones first."""
        return list(self._held.get(cheat, ()))

    def add(self, trial: Trial) -> None:
        """Write a trial down at once; raises UserError."""
        if self._path is None:
            return
        try:
            with self._path.open("a") as file:
                file.write(f"{json.dumps(asdict(trial))}\n")
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error.strerror}") from error


def _trial(found: Mapping[str, Any]) -> Trial:
    return Trial(**{**found, "false_rows": FalseRows(**found["false_rows"])})


def summary(found: Sequence[Trial]) -> dict[str, Any]:
    """Describe all trials of one cheat."""
    caught, trials = sum(each.caught for each in found), len(found)
    layers = [each.right_layer for each in found if each.right_layer is not None]
    false = [each.false_rows for each in found]
    return {
        "cheat": found[0].cheat,
        "caught": caught,
        "of": trials,
        "caught_more_often_than": round(0.05 ** (1 / trials), 3) if caught == trials else None,
        "right_stage_named": sum(each.right_stage for each in found),
        "right_layer_named": sum(layers) if layers else None,
        "proven_by_that_layer_alone": sum(bool(each.proven) for each in found),
        "layers_in_a_proof": max(each.proven for each in found),
        "by": sorted({text for each in found for text in each.by}),
        "said_of_honest_stages": sorted({text for each in found for text in each.wrongly}),
        "false_rows": {
            "answers_without": sum(not each.false for each in false),
            "least_percent": round(min(100 * each.false / each.rows for each in false), 1),
            "least_apart": float(f"{min(each.apart for each in false):.2g}"),
            "missed_with_a_chance_up_to": float(f"{max(each.missed for each in false):.2g}"),
        },
    }
