"""The command line of simulations: errors before a run, and JSON."""

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import sim.hunt
import sim.pictures
import sim.run
from p2pinfer.core.errors import UserError
from p2pinfer.engine.llama.process import HUGE_PAGES
from sim.hunt import FoundFailure, draw
from sim.scenario import Scenario, load_scenario
from tests.support.command_line import run
from tests.support.sim_runs import run_short


@pytest.fixture(autouse=True)
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a scenario runs: errors must come before."""

    def refuse(*_: object) -> None:
        raise AssertionError("it runs")

    monkeypatch.setattr(sim.run, "run_scenario", refuse)


def test_missing_matplotlib_is_reported_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not minutes later; and no folder is left behind."""
    monkeypatch.setattr(sim.pictures, "find_spec", lambda _: None)
    assert run(monkeypatch, "sim", "home", "--out", str(tmp_path / "out")) == 2
    assert "matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["home"], ["--hunt", "3"]])
def test_an_impossible_folder_is_reported_before_the_run(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file is in the way."""
    monkeypatch.setattr(sim.pictures, "find_spec", lambda _: object())
    (tmp_path / "file").write_text("")
    assert run(monkeypatch, "sim", *words, "--out", str(tmp_path / "file" / "out")) == 2
    assert "cannot create the folder" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [None, 7])
def test_a_hunt_is_reported_as_json(
    seed: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On one line, whether or not it found a failure; a failure is in the file that it names."""

    def hunt(runs: int, first_seed: int, on_run: Callable[[int], None]) -> FoundFailure | None:
        on_run(runs)
        assert first_seed == 5
        return None if seed is None else FoundFailure(draw(seed), ("lost",), "it broke")

    monkeypatch.setattr(sim.hunt, "hunt", hunt)
    monkeypatch.setattr(sim.hunt, "shrink", lambda found, _: found)
    words = ["sim", "--hunt", "3", "--seed", "5", "--json", "--out", str(tmp_path)]
    assert run(monkeypatch, *words) == (0 if seed is None else 1)
    told = json.loads(capsys.readouterr().out)
    assert (told["runs"], told["from_seed"]) == (3, 5)
    if seed is None:
        assert told["found"] is None
    else:
        assert (told["found"]["seed"], told["found"]["checks"]) == (seed, ["lost"])
        assert Path(told["found"]["file"]).exists()


def test_a_scenario_can_run_with_fewer_peers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind keeps its share, and the duration stays; more peers than it has are refused."""
    begun: list[Scenario] = []

    def begin(scenario: Scenario, *_: object) -> None:
        begun.append(scenario)
        raise UserError("it has begun")

    monkeypatch.setattr(sim.run, "run_scenario", begin)
    assert run(monkeypatch, "sim", "world", "--peers", "200") == 2
    assert [group.count for group in begun[0].peers] == [40, 160]
    assert begun[0].duration_s == load_scenario("world").duration_s
    assert run(monkeypatch, "sim", "home", "--peers", "6") == 2
    assert "--peers must be from 1 to 5" in capsys.readouterr().err


@pytest.mark.parametrize("allocator", [None, "pymalloc"])
def test_a_simulation_restarts_on_huge_pages(
    allocator: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, with the same words; not if the person has chosen an allocator."""
    begun: list[tuple[list[str], str]] = []

    def begin(_: str, words: list[str], environment: Mapping[str, str]) -> None:
        begun.append((words, environment["GLIBC_TUNABLES"]))
        raise UserError("it has restarted")

    for name in ("PYTHONMALLOC", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    if allocator:
        monkeypatch.setenv("PYTHONMALLOC", allocator)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(os, "execve", begin)
    monkeypatch.setattr(sim.run, "run_scenario", run_here)
    words = ["sim", "home", "--seed", "2"]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "p2pinfer", *words])
    assert run(monkeypatch, *words) == 2
    again = [sys.executable, "-m", "p2pinfer", *words]
    assert begun == ([] if allocator else [(again, HUGE_PAGES)])


def run_here(*_: object) -> None:
    """Stand in for a run in this process."""
    raise UserError("it has begun here")


def test_a_run_beside_a_plain_one_says_what_drafts_bring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same world runs a second time, in which nobody drafts."""
    begun: list[bool] = []

    def begin(scenario: Scenario, *_: object) -> sim.run.Outcome:
        begun.append(scenario.requests.drafts)
        return run_short("home")

    monkeypatch.undo()
    monkeypatch.setattr("p2pinfer.cli.sim._tune_memory", lambda: None)
    monkeypatch.setattr(sim.run, "run_scenario", begin)
    assert run(monkeypatch, "sim", "far", "--beside-plain", "--json") == 0
    assert begun == [True, False]
    told = json.loads(capsys.readouterr().out)
    assert told["drafts_times"] == 1.0
    assert told["plain"]["digest"] == told["digest"]
