"""What a person reads first: `p2pinfer` alone, its help, and verbs of earlier versions."""

import re
from itertools import pairwise

import pytest

from p2pinfer.cli.main import COMMANDS, RENAMED, app
from tests.support.cli_page import commands, shown
from tests.support.command_line import run

VERBS_MAX = 18
"""As many as a newcomer reads through."""


def test_no_arguments_show_the_first_commands_to_try(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three commands, and where the rest are listed."""
    assert run(monkeypatch) == 0
    said = capsys.readouterr().out
    assert [line.split()[:2] for line in said.splitlines()[2:5]] == [
        ["p2pinfer", "demo"],
        ["p2pinfer", "chat"],
        ["p2pinfer", "join"],
    ]


def test_help_lists_verbs_in_groups(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Chat and lend come first, simulations last; old verbs are not listed."""
    assert run(monkeypatch, "--help") == 0
    said = capsys.readouterr().out
    groups = ["Chat and lend", "Inspect", "Manage", "Simulate and measure", "Options"]
    places = [said.index(f"─ {group} ─") for group in groups]
    assert places == sorted(places)
    verbs = [name for name in COMMANDS if name[0] != "-"]
    assert len(verbs) <= VERBS_MAX
    listed = {line[1:].split()[0] for line in said.splitlines() if line.startswith("│ ")}
    assert set(verbs) <= listed
    assert not listed & set(RENAMED)


@pytest.mark.parametrize("verb", [name for name in COMMANDS if name[0] != "-"])
def test_every_verb_has_help(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each loads from its place in the table, and its help names it."""
    assert run(monkeypatch, verb, "--help") == 0
    assert f"Usage: p2pinfer {verb}" in capsys.readouterr().out


def test_what_shapes_answers_stands_apart_from_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command's own options come first, the log's last; empty defaults are not shown."""
    assert run(monkeypatch, "chat", "--help") == 0
    said = capsys.readouterr().out
    groups = ["Options", "Answers", "Checks and privacy", "Swarm", "This machine", "Log"]
    places = [said.index(f"─ {group} ─") for group in groups]
    assert places == sorted(places)
    defaults = set(re.findall(r"\[default:[ │\n]+([^]]*)\]", said))
    assert "on" in defaults
    assert not defaults & {"()", "False", "True", "None"}


def test_help_fills_paragraphs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A docstring's own line ends are not shown; those between its paragraphs are."""
    assert run(monkeypatch, "model", "add", "--help") == 0
    said, _, _ = capsys.readouterr().out.partition("╭")
    paragraphs = said.split("\n\n")[2:-1]
    assert len(paragraphs) == 3
    for paragraph in paragraphs:
        lines = paragraph.split("\n")
        for line, after in pairwise(lines):
            assert len(line) + len(after.split()[0]) >= 80


def test_every_option_is_spelled_with_dashes() -> None:
    """As the texts that mention it spell it."""
    for words, command in commands(app):
        for argument in shown(command):
            assert "_" not in argument.name, (words, argument.name)


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_verb_works_and_names_the_new_one(
    old: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The new spelling exists, and the old one leads there."""
    now = RENAMED[old][1].split()
    assert now[0] in app
    run(monkeypatch, old, *(["/nonexistent/key"] if old == "network-key" else []))
    assert f"p2pinfer {old} is now: p2pinfer {' '.join(now)}" in capsys.readouterr().err


@pytest.mark.parametrize(("old", "now"), [("ps", "--open-sessions"), ("ledger", "--ledger")])
def test_status_shows_the_same_as_old_verbs(
    old: str, now: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same on standard output, to the byte."""
    assert run(monkeypatch, old, "--json") == run(monkeypatch, "status", now, "--json") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_status_refuses_two_lists_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a sentence that says to choose one."""
    assert run(monkeypatch, "status", "--open-sessions", "--ledger") == 2
    assert "choose one" in capsys.readouterr().err
