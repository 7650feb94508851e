"""Probe reports beside the slices are read, whatever other files are there."""

import json
import os
from pathlib import Path

import pytest

from p2pinfer.engine.llama import probe as probe_module
from p2pinfer.engine.llama.binding import Settings
from p2pinfer.engine.llama.probe import Crash, Probe, Tries, probe
from p2pinfer.engine.llama.probe_reports import probe_reports

FOUND = Probe(Settings(1, repack=False), True, True, "ab" * 16)


def attempt(settings: Settings) -> Probe | Crash | None:
    """Crash with repacked weights."""
    return Crash("it ended on signal 4 (SIGILL)", False) if settings.repack else FOUND


def written(folder: Path, name: str, modified_s: int) -> Path:
    """Let a probe write its report."""
    path = folder / f"{name}.gguf.probe-1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    probe(Tries(attempt, lambda _: []), 1, path, "0" * 32)
    os.utime(path, (modified_s, modified_s))
    return path


def test_reports_of_probes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those of the newest build, with the settings ruled out in words."""
    monkeypatch.setattr(probe_module, "build_fingerprint", lambda: "0.1 old CPU : AVX = 1 |")
    written(tmp_path / "v1" / "model", "stage-0-9", 100)
    monkeypatch.setattr(probe_module, "build_fingerprint", lambda: "0.2 new CPU : AVX = 1 |")
    for name in ("stage-9-18", "stage-1-9"):
        written(tmp_path / "v1" / "model", name, 200)
    found = probe_reports(tmp_path)
    assert [each.slice_name for each in found] == ["stage-1-9", "stage-9-18"]
    assert {each.build.split()[1] for each in found} == {"new"}
    assert found[0].used == "weights as they are"
    assert found[0].ruled_out == (("repacked weights", "it ended on signal 4 (SIGILL)"),)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"probe": 1, "ruled_out": [1]}'])
def test_invalid_reports_are_skipped(text: str, tmp_path: Path) -> None:
    """Also a good one with a part missing."""
    path = written(tmp_path, "stage-1-9", 100)
    good = json.loads(path.read_text())
    (tmp_path / "stage-2-9.gguf.probe-1.json").write_text(text)
    for key in ("build", "cpu", "probe", "ruled_out"):
        kept = {name: value for name, value in good.items() if name != key}
        (tmp_path / f"stage-3-{key}.gguf.probe-1.json").write_text(json.dumps(kept))
    assert [each.slice_name for each in probe_reports(tmp_path)] == ["stage-1-9"]


def test_without_slices_there_are_no_reports(tmp_path: Path) -> None:
    """A missing folder is no error."""
    assert probe_reports(tmp_path / "none") == []
