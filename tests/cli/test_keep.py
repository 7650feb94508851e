"""`p2pinfer keep`, and what `model show` says about safety: unusable input, and words."""

import json
import os
from pathlib import Path

import attrs
import pytest

from p2pinfer.cli.keep import _words
from p2pinfer.core import errors
from p2pinfer.node.keeping import kept_dir, last_report, parse_code
from peers.parts.keeper import KeptState
from tests.support.command_line import run
from tests.support.parts_swarm import make_model

KEPT = KeptState("noise", 2, 134 << 20, 1 << 30, 16, 8, 0, 0.9, 8, 8, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--space", "much"], "--space much is not a size"),
        (["--space", "1MiB"], "--space 1MiB is too little to keep anything"),
        (["--space", "1GiB", "--code", "8"], "--code 8 is not two numbers"),
        (["--space", "1GiB", "--code", "0+8"], "--code 0+8 is not two numbers"),
        (["--space", "1GiB", "--code", "65+8"], "--code 65+8 is not two numbers"),
        ([], "--space"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(
    options: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is opened or stored."""
    assert run(monkeypatch, "keep", "a" * 64, *options) == errors.EXIT_USAGE
    assert said in capsys.readouterr().err


def test_a_code_is_two_numbers() -> None:
    """Data and parity."""
    assert parse_code("3+2") == (3, 2)


def test_what_is_kept_is_said_in_words() -> None:
    """For a person, on one line."""
    assert _words(KEPT) == (
        "2 rows kept here, 140.5 MB of 1.07 GB; noise would survive the loss of any 8 peers at"
        " once, kept by 16"
    )


def test_model_show_says_what_a_keeper_saw_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the time, since that may be long ago; nothing where nothing is known or readable."""
    from p2pinfer.node.model_supply import open_store

    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))
    monkeypatch.setenv("TZ", "UTC")
    model = make_model()
    open_store().add_manifest(model.manifest.encode(), model.id)
    assert run(monkeypatch, "model", "show", model.id) == 0
    assert "elsewhere" not in capsys.readouterr().out
    kept_dir().mkdir()
    report = kept_dir() / f"{model.id}.json"
    report.write_text("{}")
    assert last_report(model.id) is None
    report.write_text(json.dumps(attrs.asdict(KEPT)))
    os.utime(report, (0, 0))
    assert run(monkeypatch, "model", "show", model.id) == 0
    said = capsys.readouterr().out
    assert "would survive the loss of any 8 peers at once, kept by 16, as seen at 19" in said
    assert run(monkeypatch, "model", "show", model.id, "--json") == 0
    assert json.loads(capsys.readouterr().out)["safety"]["may_lose"] == 8
