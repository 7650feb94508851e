"""Settings are tried in a process of their own: for real, and with real crashes."""

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from p2pinfer.core.errors import BadModelFile, EngineError
from p2pinfer.engine.frames import PartConfig
from p2pinfer.engine.llama import candidate
from p2pinfer.engine.llama.binding import Settings, Slice, Span
from p2pinfer.engine.llama.candidate import attempt, measured
from p2pinfer.engine.llama.engine import open_stage
from p2pinfer.engine.llama.probe import Crash, Probe
from tests.support.whole import open_model

pytestmark = pytest.mark.real

WAIT_S_MAX = 300.0
"""For what takes a few seconds on an idle machine."""

CRASHER = """
import os, sys
if "p2pinfer.engine.llama.candidate" in sys.orig_argv:
    from p2pinfer.engine.llama import binding as llama
    whole = llama.Slice.decode
    def decode(self, spans, **more):
        if {condition}:
            {crash}
        return whole(self, spans, **more)
    llama.Slice.decode = decode
"""
"""Python runs it first; it crashes llama.cpp the way a faulty compiler might."""


@pytest.fixture(scope="module")
def part(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> PartConfig:
    """Give two layers of the default model."""
    path = open_model(default_model, tmp_path_factory.mktemp("slices")).stage(10, 12)
    return PartConfig(str(path), tokens=False, logits=False)


@pytest.fixture
def crash_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Make candidates crash in some way, under some condition on the slice and the spans."""

    def inject(condition: str, crash: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(CRASHER.format(condition=condition, crash=crash))
        found = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))

    return inject


def test_settings_are_tried_in_another_process(part: PartConfig) -> None:
    """Exact ones give the same probe for one thread and two; inexact ones give none."""
    one, two = (attempt(part, Settings(threads, values_bf16=True)) for threads in (1, 2))
    assert isinstance(one, Probe)
    assert isinstance(two, Probe)
    assert one.numerics_class == two.numerics_class
    assert attempt(part, Settings(2)) is None  # two threads split one row's attention


def test_plain_attention_is_exact_for_any_threads(part: PartConfig) -> None:
    """So several threads need not be slow, nor a class of their own."""
    one, two = (attempt(part, Settings(threads, flash_attention=False)) for threads in (1, 2))
    assert isinstance(one, Probe)
    assert isinstance(two, Probe)
    assert one.numerics_class == two.numerics_class


@pytest.mark.parametrize("end", ["a stage", "the first end", "the last end"])
def test_settings_are_measured_in_another_process(
    end: str, part: PartConfig, default_model: Path, tmp_path: Path
) -> None:
    """Each takes some time, whatever the slice takes in and gives out."""
    if end != "a stage":
        first, last = open_model(default_model, tmp_path).ends(1)
        is_first = end == "the first end"
        part = PartConfig(str(first if is_first else last), tokens=is_first, logits=not is_first)
    choices = [Settings(1), Settings(2), Settings(1, flash_attention=False), Settings(1, False)]
    found = measured(part, choices)
    assert len(found) == len(choices)
    assert all(0 < seconds < 60 for seconds in found)


def test_positions_are_taken_up_without_being_computed(part: PartConfig) -> None:
    """What is measured far into a session begins there at once, with what the cells held."""
    whole = Slice(Path(part.path), logits=False, settings=Settings(), sessions=1, context=128)
    with closing(whole):
        rows = np.random.default_rng(1).standard_normal((65, whole.width)).astype(np.float32)
        whole.decode([Span(0, 0, rows[:64])])
        expected = whole.decode([Span(0, 64, rows[64:])])[0].copy()
        whole.occupy(Span(0, 0, np.zeros_like(rows[:64])))
        assert whole.decode([Span(0, 64, rows[64:])])[0].tobytes() == expected.tobytes()
        with pytest.raises(EngineError, match="full"):
            whole.occupy(Span(0, 65, np.concatenate([rows, rows])))


def test_measuring_that_crashes_measures_nothing(
    part: PartConfig, crash_where: Callable[[str, str], None]
) -> None:
    """The settings that were exact are used as they are."""
    crash_where("self.settings.threads == 2", "os.kill(os.getpid(), 11)")
    assert measured(part, [Settings(1), Settings(2)]) == []
    assert measured(PartConfig("/none", tokens=False, logits=False), [Settings(1)]) == []


@pytest.mark.parametrize(
    ("crash", "how"),
    [
        ("os.kill(os.getpid(), 11)", "signal 11 (SIGSEGV)"),
        ("os.kill(os.getpid(), 4)", "signal 4 (SIGILL)"),
        ("sys.stderr.write('GGML_ASSERT(x) failed\\n'); os.abort()", "GGML_ASSERT(x) failed"),
        ("sys.exit('no reason')", "with code 1: no reason"),
    ],
)
def test_a_crash_says_how(
    crash: str, how: str, part: PartConfig, crash_where: Callable[[str, str], None]
) -> None:
    """The signal, or the last line that was printed."""
    crash_where("True", crash)
    found = attempt(part, Settings())
    assert isinstance(found, Crash)
    assert how in found.how
    assert not found.lacked_memory


def test_a_killed_candidate_lacked_memory(
    part: PartConfig, crash_where: Callable[[str, str], None]
) -> None:
    """Only the system kills it with SIGKILL."""
    crash_where("True", "os.kill(os.getpid(), 9)")
    found = attempt(part, Settings())
    assert isinstance(found, Crash)
    assert found.lacked_memory


def test_a_candidate_that_hangs_is_ended(
    part: PartConfig,
    crash_where: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A candidate that prints nothing for too long counts as hung."""
    monkeypatch.setattr(candidate, "SILENCE_S_MAX", 0.1)
    crash_where("True", "import signal; signal.pause()")
    found = attempt(part, Settings())
    assert isinstance(found, Crash)
    assert found.how == "nothing came for 0.1 s"


def test_a_slice_that_llama_cpp_refuses_is_no_crash(part: PartConfig, tmp_path: Path) -> None:
    """The error is the same as when it is loaded in this process."""
    path = tmp_path / "other.gguf"
    path.write_bytes(Path(part.path).read_bytes().replace(b"llama", b"llamb", 1))
    with pytest.raises(BadModelFile, match="cannot load"):
        attempt(PartConfig(str(path), tokens=False, logits=False), Settings())


def test_a_candidate_ends_with_its_parent(part: PartConfig) -> None:
    """Its standard input closes, and it ends in the middle of its work."""
    command = [*candidate.COMMAND, json.dumps([asdict(part), [asdict(Settings())], False])]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (1, b"")


def read_report(path: Path) -> dict[str, Any]:
    """Read the probe report beside a slice, for one thread."""
    found: dict[str, Any] = json.loads(Path(f"{path}.probe-1.json").read_text())
    return found


CANDIDATES = [
    (repack, bf16, flash)
    for bf16, flash in ((False, True), (False, False), (True, True))
    for repack in (True, False)
]


@pytest.mark.parametrize("crashed", range(1, len(CANDIDATES)))
async def test_a_stage_opens_although_other_settings_crash(
    crashed: int,
    part: PartConfig,
    tmp_path: Path,
    crash_where: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The node serves with the next settings, and the report names those ruled out."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # what other engines of this machine found out
    path = tmp_path / "slice.gguf"
    os.link(part.path, path)
    doomed = CANDIDATES[:crashed]
    words = ("repack", "values_bf16", "flash_attention")
    condition = f"({', '.join(f'self.settings.{word}' for word in words)}) in {doomed}"
    crash_where(condition, "os.kill(os.getpid(), 11)")
    with trio.fail_after(WAIT_S_MAX):
        async with open_stage(path, 10, sessions=1, context=256) as engine:
            assert engine.numerics_class
    report = read_report(path)
    ruled_out = [each["settings"] for each in report["ruled_out"]]
    assert [tuple(each[word] for word in words) for each in ruled_out] == doomed
    assert all("SIGSEGV" in each["why"] for each in report["ruled_out"])
    repack, bf16, _ = CANDIDATES[crashed]
    used = tuple(report["probe"]["settings"][word] for word in words)
    assert used in (CANDIDATES[crashed], (repack, bf16, False))  # which may be faster here
