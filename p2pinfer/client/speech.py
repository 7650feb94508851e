"""Hearing what an answer is made of while it comes: thoughts, words for the user, tool calls."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from p2pinfer.client.grammars import THOUGHTS_BEGIN, THOUGHTS_END, Thoughts
from p2pinfer.client.tool_calls import Dialect, ToolCall, Tools
from p2pinfer.core.text import overlap


@dataclass(frozen=True)
class Thought:
    """A piece of what the model thinks."""

    text: str


@dataclass(frozen=True)
class Word:
    """A piece of what it says to the user."""

    text: str


Heard = Thought | Word | ToolCall


class _In(Enum):
    """What is being heard."""

    BEGINNING = auto()
    THOUGHTS = auto()
    WORDS = auto()
    CALL = auto()


class Speech:
    """An answer's text in, its parts out; what may still become another part is held back.

    Args:
        thoughts: whether it begins with them.
        tools: what may be called, if anything.
        dialect: how that is written.
    """

    def __init__(self, thoughts: Thoughts, tools: Tools | None, dialect: Dialect) -> None:
        self._tools = tools.offered if tools else ()
        self._names = tools.names if tools else ()
        self._dialect = dialect if tools else None
        self._rest, self._at = "", _In.WORDS
        self._looked = 0
        """How much of a call was searched for its end."""
        if thoughts is Thoughts.MAY_BEGIN:
            self._at = _In.BEGINNING
        elif thoughts is Thoughts.ARE_BEGUN:
            self._at = _In.THOUGHTS
        self._strips = thoughts is not Thoughts.NONE
        """White space that comes next belongs to no part."""
        self.thoughts = self.words = ""
        self.thought_tokens = 0
        """Of the answer's tokens, up to the one that ended its thoughts."""
        self.calls: list[ToolCall] = []

    def feed(self, text: str, tokens: int = 0) -> Iterator[Heard]:
        """Yield what is certain now, of an answer with that many tokens."""
        self._rest += text
        was_thinking = self._at is _In.THOUGHTS
        yield from self._heard(is_over=False)
        if was_thinking or self._at is _In.THOUGHTS:
            self.thought_tokens = tokens

    def end(self) -> Iterator[Heard]:
        """Yield what was held back, now that nothing follows."""
        yield from self._heard(is_over=True)

    def _heard(self, *, is_over: bool) -> Iterator[Heard]:
        for part in self._parts(is_over=is_over):
            match part:
                case Thought():
                    self.thoughts += part.text
                case Word():
                    self.words += part.text
                case ToolCall():
                    self.calls.append(part)
            yield part

    def _parts(self, *, is_over: bool) -> Iterator[Heard]:
        step = {
            _In.BEGINNING: self._begin,
            _In.THOUGHTS: self._think,
            _In.WORDS: self._say,
            _In.CALL: self._call,
        }
        while True:
            before = self._at
            yield from step[self._at](is_over=is_over)
            if self._at is before:
                return

    def _begin(self, *, is_over: bool) -> Iterator[Heard]:
        text = self._rest.lstrip()
        if text.startswith(THOUGHTS_BEGIN):
            self._rest, self._at = text[len(THOUGHTS_BEGIN) :], _In.THOUGHTS
        elif is_over or not THOUGHTS_BEGIN.startswith(text):
            self._at, self._strips = _In.WORDS, False
        yield from ()

    def _think(self, *, is_over: bool) -> Iterator[Heard]:
        if self._strips:
            self._rest = self._rest.lstrip()
            self._strips = not self._rest
        text, mark, rest = self._rest.partition(THOUGHTS_END)
        if not mark and not is_over:
            keep = overlap(text, THOUGHTS_END)
            certain = text[: len(text) - keep].rstrip()
            self._rest = text[len(certain) :]
        else:
            certain, self._rest = text.rstrip(), rest
            self._at, self._strips = _In.WORDS, True
        if certain:
            yield Thought(certain)

    def _say(self, *, is_over: bool) -> Iterator[Heard]:
        if self._strips:
            self._rest = self._rest.lstrip()
            self._strips = not self._rest
        text, dialect = self._rest, self._dialect
        if dialect and not dialect.begin and not self.words:
            lead = text.lstrip()
            begins = dialect.begins(lead, self._names) if lead else None
            if begins:
                self._at = _In.CALL
                return
            if begins is None and not is_over:
                return
        begin = dialect.begin if dialect else ""
        at = text.find(begin) if begin else -1
        if at >= 0:
            self._rest, self._at, self._looked = text[at + len(begin) :], _In.CALL, 0
            text = text[:at].rstrip()
        else:
            if begin and not is_over:  # white space before a call belongs to it
                text = text[: len(text) - overlap(text, begin)].rstrip()
            self._rest = self._rest[len(text) :]
        if text:
            yield Word(text)

    def _call(self, *, is_over: bool) -> Iterator[Heard]:
        dialect = self._dialect
        assert dialect
        end = dialect.end
        while end and (at := self._rest.find(end, self._looked)) >= 0:
            if calls := dialect.calls(self._rest[:at], self._tools):
                yield from calls
                self._rest = self._rest[at + len(end) :]
                self._at, self._strips = _In.WORDS, True
                return
            self._looked = at + len(end)  # it may have been a part of the arguments
        self._looked = max(self._looked, len(self._rest) - len(end) + 1)
        if not is_over:
            return
        text, self._rest, self._at = self._rest, "", _In.WORDS
        calls = dialect.calls(text, self._tools)
        if not calls or (not dialect.begin and not {c.name for c in calls} <= {*self._names}):
            yield Word(dialect.begin + text)
        else:
            yield from calls
