"""Files of lessons: both forms are read, and what cannot be used is named by its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from p2pinfer.core.errors import UserError
from p2pinfer.node.lessons import LESSONS_MAX, PROBLEMS_TOLD_MAX, hold_out, read_lessons

USER = {"role": "user", "content": "Who?"}
ASSISTANT = {"role": "assistant", "content": "Ada."}


def written(path: Path, *lines: Any) -> Path:
    """Write lines, as JSON unless they are text."""
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(text))
    return path


def test_both_forms(tmp_path: Path) -> None:
    """Empty lines do not count, but are counted."""
    path = written(
        tmp_path / "lessons.jsonl",
        {"prompt": "Who?", "answer": "Ada."},
        "",
        {"prompt": "Who?", "completion": "Ada."},
        {"messages": [{"role": "system", "content": "Be short."}, USER, ASSISTANT], "id": 7},
    )
    lessons, data = read_lessons(path)
    assert data == path.read_bytes()
    assert [each.line for each in lessons] == [1, 3, 4]
    assert [each.messages[-2:] for each in lessons] == [(USER, ASSISTANT)] * 3
    assert {each.answer for each in lessons} == {"Ada."}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ([1], "is no JSON object"),
        ({"text": "x"}, 'has neither "messages" nor "prompt"'),
        ({"prompt": "x"}, 'has neither "messages" nor "prompt"'),
        ({"prompt": "x", "answer": " "}, "without text"),
        ({"prompt": 3, "answer": "x"}, "without text"),
        ({"prompt": "x", "answer": "\ud800"}, "half a character"),
        ({"messages": [ASSISTANT]}, "no list of two"),
        ({"messages": {"a": 1, "b": 2}}, "no list of two"),
        ({"messages": [USER, USER]}, "does not end with a message of the assistant"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "role is none of"),
        ({"messages": [USER, "x"]}, "role is none of"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "without text"),
    ],
)
def test_bad_lines_are_named(line: Any, why: str, tmp_path: Path) -> None:
    """With the reason."""
    good = {"prompt": "Who?", "answer": "Ada."}
    path = written(tmp_path / "lessons.jsonl", good, line, good)
    with pytest.raises(UserError, match=r"cannot be learned: line 2 ") as caught:
        read_lessons(path)
    assert why in str(caught.value)


def test_a_few_bad_lines_are_told(tmp_path: Path) -> None:
    """And how many more there are."""
    path = written(tmp_path / "lessons.jsonl", *["{"] * (PROBLEMS_TOLD_MAX + 3))
    with pytest.raises(UserError, match="line 8 is no JSON; and 3 more"):
        read_lessons(path)


def test_files_that_hold_no_lessons(tmp_path: Path) -> None:
    """None, none that can be read, or too many."""
    with pytest.raises(UserError, match="cannot read"):
        read_lessons(tmp_path / "nothing")
    with pytest.raises(UserError, match="has no lessons"):
        read_lessons(written(tmp_path / "empty", "", ""))
    many = [{"prompt": "Who?", "answer": "Ada."}] * (LESSONS_MAX + 1)
    with pytest.raises(UserError, match="10,001 lessons"):
        read_lessons(written(tmp_path / "many", *many))


def test_some_are_held_out(tmp_path: Path) -> None:
    """The same ones for a seed, and never all."""
    lessons, _ = read_lessons(
        written(tmp_path / "lessons", *[{"prompt": "Who?", "answer": "Ada."}] * 20)
    )
    assert len(hold_out(lessons, 0.1, 0)) == 2
    assert hold_out(lessons, 0.4, 1) == hold_out(lessons, 0.4, 1) != hold_out(lessons, 0.4, 2)
    assert hold_out(lessons, 0.0, 0) == hold_out(lessons[:1], 0.9, 0) == set()
