"""Standard error, for people and for programs."""

import json
import logging
from pathlib import Path

import pytest

from p2pinfer import logs
from p2pinfer.cli import terminal
from p2pinfer.core.errors import EXIT_FAILED, UserError
from tests.support.command_line import run


def say_all() -> None:
    """Print a line of every kind."""
    log = logging.getLogger("p2pinfer.parts")
    log.info("told %s", "you")
    log.warning("a warning", extra={"peer": "12D3"})
    logging.getLogger("somebody.else").info("chatter")
    logs.note("a note")
    terminal.say("another")
    try:
        raise ValueError("oh\nno")
    except ValueError as error:
        logs.tell_mistake(error)


def test_text_format_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings and notes; no chatter of libraries, and no traceback."""
    logs.begin()
    logs.note("a note")
    say_all()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "a note"
    assert "p2pinfer: a warning" in said
    assert said[-1].startswith("p2pinfer: internal error (ValueError: oh); ")
    assert "told you" not in "".join(said)


def test_debug_level_shows_the_traceback_of_an_internal_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And every module's log lines."""
    logs.begin("debug")
    say_all()
    said = capsys.readouterr().err
    assert "p2pinfer.parts: told you\n" in said
    assert "Traceback" in said
    assert "chatter" not in said


def test_json_format_is_an_object_on_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Notes and errors too, whatever the level."""
    logs.begin("error", "json")
    say_all()
    assert not terminal.Spinner("working …")._status
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = [(each["level"], each["logger"], each["text"]) for each in found]
    assert told[:2] == [("info", "p2pinfer.note", "a note"), ("info", "p2pinfer.note", "another")]
    assert told[2][:2] == ("error", "p2pinfer")
    assert told[3][2] == "working …"
    logs.begin("info", "json")
    say_all()
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [each.get("peer") for each in found] == [None, "12D3", None, None, None]
    assert found[0]["time"].endswith("+00:00")


def test_a_log_file_is_created_again_after_it_was_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Notes stay on standard error; an unwritable file is an error in one sentence."""
    file = tmp_path / "log"
    logs.begin("info", "text", file)
    say_all()
    assert "a warning" not in capsys.readouterr().err
    assert " WARNING p2pinfer.parts: a warning\n" in file.read_text()
    file.rename(tmp_path / "log.1")
    logging.getLogger("p2pinfer").warning("afterwards")
    assert file.read_text().endswith("afterwards\n")
    with pytest.raises(UserError, match="cannot write the log"):
        logs.begin("info", "text", tmp_path / "no" / "log")


def test_an_internal_error_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With the exit code of a failure."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))

    def fail() -> None:
        raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])

    monkeypatch.setattr("p2pinfer.cli.status.look", fail)
    assert run(monkeypatch, "status") == EXIT_FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert "ExceptionGroup: several" in line
