"""Answers that were marked: kept whole, replaced, erased, refused where they are no lessons."""

import json
import stat
import threading
from functools import partial
from pathlib import Path

import pytest

from p2pinfer.cli.learn import _named
from p2pinfer.core.errors import UserError
from p2pinfer.node import marked
from p2pinfer.node.lessons import read_lessons
from p2pinfer.node.marked import erase_marked, mark, marked_path, read_marked
from tests.support import command_line


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))


def talk(asked: str, said: str) -> list[dict[str, str]]:
    """Return a question and its answer."""
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


def test_what_is_marked_can_be_learned() -> None:
    """The file is one of lessons, which only its owner may read; a better answer replaces."""
    with pytest.raises(UserError, match="no answer is marked"):
        _named(Path("marked"))
    assert read_marked() == []
    assert mark(talk("One?", "1")) == 1
    assert mark(talk("Two?", "Zwei\n2 \u2028 …")) == 2
    assert mark(talk("One?", "one")) == 2
    lessons, _ = read_lessons(_named(Path("marked")))
    assert [each.answer for each in lessons] == ["Zwei\n2 \u2028 …", "one"]
    assert stat.S_IMODE(marked_path().stat().st_mode) == 0o600
    assert _named(Path("other.jsonl")) == Path("other.jsonl")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        talk("One?", ""),
        talk("One?", "1")[:1],
        talk("One?", "\ud800"),
        [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}],
    ],
)
def test_what_is_no_lesson_is_refused(messages: list[dict[str, str]]) -> None:
    """In a sentence, and nothing is lost."""
    mark(talk("Two?", "2"))
    with pytest.raises(UserError, match="cannot be kept"):
        mark(messages)
    assert len(read_marked()) == 1


def test_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full set, or one with too many bytes, takes no more."""
    mark(talk("One?", "1"))
    monkeypatch.setattr(marked, "LESSONS_MAX", 1)
    with pytest.raises(UserError, match="erase some"):
        mark(talk("Two?", "2"))
    assert mark(talk("One?", "one")) == 1
    monkeypatch.setattr(marked, "FILE_BYTES_MAX", 150)
    with pytest.raises(UserError, match="erase some"):
        mark(talk("One?", "1" * 200))
    assert read_marked()[0][-1]["content"] == "one"


def test_several_processes_lose_nothing() -> None:
    """Marks that come at once are all kept."""
    threads = [threading.Thread(target=mark, args=(talk(f"{n}?", "x"),)) for n in range(12)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(read_marked()) == 12


def test_they_are_shown_and_erased(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their numbers, or all; control codes are not shown."""
    run = partial(command_line.run, monkeypatch)
    assert run("marked") == 0
    assert "no answer is marked" in capsys.readouterr().err
    for asked in ("One?", "Two?", "Three\x1b[31m?"):
        mark(talk(asked, "a " * 80))
    assert run("marked") == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["1", "2", "3"]
    assert "\x1b" not in shown[2]
    assert shown[0].endswith("…")
    assert run("marked", "--erase", "1", "3", "--json") == 0
    left = json.loads(capsys.readouterr().out)
    assert [each[0]["content"] for each in left["marked"]] == ["Two?"]
    assert left["file"] == str(marked_path())
    assert run("marked", "--erase", "2") == 2
    assert "there is no number 2" in capsys.readouterr().err
    assert run("marked", "--erase", "1", "--erase-all") == 2
    assert run("marked", "--erase-all") == 0
    assert not marked_path().exists()
    assert erase_marked() == 0


def test_a_file_that_others_wrote_is_not_lost() -> None:
    """It is refused with the line, and stays as it is."""
    mark(talk("One?", "1"))
    with marked_path().open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(UserError, match="line 2 is no JSON"):
        mark(talk("Two?", "2"))
    assert "nonsense" in marked_path().read_text()
