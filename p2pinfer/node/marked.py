"""Answers that a person marked as good, or mended: lessons, kept on this machine alone.

    data/marked.jsonl     one lesson a line, as ``p2pinfer learn`` reads them

Nothing reads the file but ``p2pinfer marked``, which shows and erases, and ``p2pinfer learn``
where a person says so. A question that is marked again replaces what was marked before.
"""

import fcntl
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from p2pinfer.core.errors import UserError
from p2pinfer.engine.template import Message
from p2pinfer.node.atomic_file import replace_text
from p2pinfer.node.lessons import FILE_BYTES_MAX, LESSONS_MAX, lesson_messages
from p2pinfer.places import data_dir

NAME: Final = "marked"
"""By which ``p2pinfer learn`` takes them."""

_FIELDS: Final = ("role", "content")


def marked_path() -> Path:
    """Return the file; it is there once something is marked."""
    return data_dir() / "marked.jsonl"


def read_marked() -> list[list[Message]]:
    """Return the conversations, oldest first; each ends with the answer that is right.

    Raises:
        UserError: the file cannot be read, or another program wrote to it.
    """
    path = marked_path()
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(list(lesson_messages(line)))
        except ValueError as error:
            raise UserError(f"{path} cannot be used: line {number} {error}") from error
    return found


def mark(messages: Sequence[Message]) -> int:
    """Keep a conversation whose last answer is right; return how many are kept.

    Raises:
        UserError: it is no such conversation, or the set is full; nothing is lost.
        OSError: it cannot be written.
    """
    kept = [{name: each.get(name) for name in _FIELDS} for each in messages]
    try:
        new = list(lesson_messages(json.dumps({"messages": kept}).encode()))
    except ValueError as error:
        raise UserError(f"the conversation cannot be kept: it {error}") from error
    with _locked():
        others = [each for each in read_marked() if each[:-1] != new[:-1]]
        if len(others) >= LESSONS_MAX:
            raise UserError(
                f"{LESSONS_MAX:,} answers are marked already: erase some, with p2pinfer marked"
            )
        _write([*others, new])
        return len(others) + 1


def erase_marked(numbers: Collection[int] | None = None) -> int:
    """Erase some, counted from 1, or all of them; return how many are left.

    Raises:
        UserError: there is no such number.
        OSError: the file cannot be written.
    """
    with _locked():
        if numbers is None:
            marked_path().unlink(missing_ok=True)
            return 0
        found = read_marked()
        for number in numbers:
            if not 1 <= number <= len(found):
                raise UserError(f"there is no number {number}: {len(found)} answers are marked")
        left = [each for number, each in enumerate(found, 1) if number not in numbers]
        if left:
            _write(left)
        else:
            marked_path().unlink(missing_ok=True)
        return len(left)


def _write(conversations: Sequence[Sequence[Message]]) -> None:
    lines: list[str] = []
    for each in conversations:
        said: list[dict[str, Any]] = [{name: turn[name] for name in _FIELDS} for turn in each]
        lines.append(json.dumps({"messages": said}, ensure_ascii=False) + "\n")
    text = "".join(lines)
    if len(text.encode()) > FILE_BYTES_MAX:
        raise UserError(
            f"the marked answers have more than {FILE_BYTES_MAX >> 20} MiB: erase some, with"
            " p2pinfer marked"
        )
    replace_text(marked_path(), text)


@contextmanager
def _locked() -> Iterator[None]:
    """Keep other processes from changing the file meanwhile."""
    with marked_path().with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
