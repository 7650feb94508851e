"""Lessons: conversations from a file, of which a model is to learn the last answer.

One JSON object a line, in either of two forms that other tools write, too:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "answer": "…"}          or "completion" for "answer"
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from p2pinfer.core.errors import UserError
from p2pinfer.engine.template import Message

FILE_BYTES_MAX: Final = 64 << 20
"""Read into memory; ten thousand lessons of a thousand tokens have about 40 MB."""
LESSONS_MAX: Final = 10_000
"""A pass over them takes hours on a laptop."""
PROBLEMS_TOLD_MAX: Final = 8
"""Lines that are named in one sentence."""

_ROLES: Final = ("system", "user", "assistant")


@dataclass(frozen=True)
class Lesson:
    """A conversation that ends with what the assistant should answer."""

    line: int
    """Of its file, from 1."""
    messages: tuple[Message, ...]

    @property
    def answer(self) -> str:
        """What is learned."""
        return str(self.messages[-1]["content"])


def read_lessons(path: Path) -> tuple[list[Lesson], bytes]:
    """Read a file; return its lessons, and its bytes.

    Raises:
        UserError: it cannot be read, or some lines cannot be used, which are named.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name a file of lessons") from error
    if len(data) > FILE_BYTES_MAX:
        raise UserError(f"{path} has more than {FILE_BYTES_MAX >> 20} MiB: learn a part of it")
    found: list[Lesson] = []
    problems: list[tuple[int, str]] = []
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                found.append(Lesson(number, tuple(lesson_messages(line))))
            except ValueError as error:
                problems.append((number, str(error)))
    refuse(path, problems)
    if not found:
        raise UserError(f'{path} has no lessons: each line is {{"prompt": "…", "answer": "…"}}')
    if len(found) > LESSONS_MAX:
        raise UserError(f"{path} has {len(found):,} lessons, and {LESSONS_MAX:,} are the most")
    return found, data


def refuse(path: Path, problems: Sequence[tuple[int, str]]) -> None:
    """Raise UserError if there are lines of a file that cannot be used."""
    if not problems:
        return
    told = "; ".join(f"line {line} {why}" for line, why in problems[:PROBLEMS_TOLD_MAX])
    more = f"; and {left} more" if (left := len(problems) - PROBLEMS_TOLD_MAX) > 0 else ""
    raise UserError(f"{path} cannot be learned: {told}{more}")


def hold_out(lessons: Sequence[Lesson], share: float, seed: int) -> set[int]:
    """Return which lessons, counted from 0, are not to be learned but only measured."""
    count = min(round(share * len(lessons)), len(lessons) - 1)
    chance = Random(f"{seed} held out")  # noqa: S311 -- the same each time
    return set(chance.sample(range(len(lessons)), count))


def lesson_messages(line: bytes) -> Iterator[Message]:
    """Yield a line's messages; raises ValueError with what is wrong, after "line 7"."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("is no JSON") from error
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004 -- one kind of error for the caller
    if "messages" in value:
        yield from _conversation(value["messages"])
        return
    answer = value.get("answer", value.get("completion"))
    if "prompt" not in value or answer is None:
        raise ValueError('has neither "messages" nor "prompt" and "answer"')
    yield {"role": "user", "content": _text(value["prompt"], '"prompt"')}
    yield {"role": "assistant", "content": _text(answer, '"answer"')}


def _conversation(messages: Any) -> Iterator[Message]:
    if not isinstance(messages, list) or len(messages) < 2:
        raise ValueError('has "messages" that are no list of two or more')
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise ValueError(f"has a message whose role is none of {', '.join(_ROLES)}")
        yield {"role": message["role"], "content": _text(message.get("content"), "content")}
    if messages[-1]["role"] != "assistant":
        raise ValueError("does not end with a message of the assistant")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"has a message without text in its {what}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a character in its {what}") from error
    return value
