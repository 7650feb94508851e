"""Hearing what an answer is made of while it comes: thoughts, words for the user, tool calls."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from p2pinfer.client.call_reading import (
    CallBegins,
    CallPart,
    GrowingText,
    NotACall,
    Reading,
    Schemas,
    ToolCall,
)
from p2pinfer.client.grammars import THOUGHTS_BEGIN, THOUGHTS_END, Thoughts
from p2pinfer.client.tool_calls import Dialect, Tools
from p2pinfer.core.text import overlap


@dataclass(frozen=True)
class Thought:
    """A piece of what the model thinks."""

    text: str


@dataclass(frozen=True)
class Word:
    """A piece of what it says to the user."""

    text: str


Heard = Thought | Word | CallPart


class Hearing(ABC):
    """An answer's text in, its parts out; what may still become another part is held back."""

    def __init__(self) -> None:
        self.thoughts = self.words = ""
        self.thought_tokens = 0
        """Of the answer's tokens, up to the one that ended its thoughts."""
        self.calls: list[ToolCall] = []

    def feed(self, text: str, tokens: int = 0) -> Iterator[Heard]:
        """Yield what is certain now, of an answer with that many tokens."""
        was_thinking = self.is_thinking
        yield from self._kept(self._parts(text, is_over=False))
        if was_thinking or self.is_thinking:
            self.thought_tokens = tokens

    def end(self) -> Iterator[Heard]:
        """Yield what was held back, now that nothing follows."""
        yield from self._kept(self._parts("", is_over=True))

    def _kept(self, parts: Iterator[Heard]) -> Iterator[Heard]:
        for part in parts:
            match part:
                case Thought():
                    self.thoughts += part.text
                case Word():
                    self.words += part.text
                case ToolCall():
                    self.calls.append(part)
            yield part

    @property
    @abstractmethod
    def is_thinking(self) -> bool:
        """Whether what comes next is a thought."""

    @abstractmethod
    def _parts(self, text: str, *, is_over: bool) -> Iterator[Heard]:
        """Yield what is certain with this text behind what came before."""


class _In(Enum):
    """What is being heard."""

    BEGINNING = auto()
    THOUGHTS = auto()
    WORDS = auto()
    CALL = auto()
    NOTHING = auto()
    """It may call no more than once, and has."""


class Speech(Hearing):
    """Hears models that mark their thoughts and their calls in the text.

    Args:
        thoughts: whether it begins with them.
        tools: what may be called, if anything.
        dialect: how that is written.
    """

    def __init__(self, thoughts: Thoughts, tools: Tools | None, dialect: Dialect) -> None:
        super().__init__()
        self._schemas = tools.schemas if tools else {}
        self._is_alone = tools is not None and not tools.several
        self._dialect = dialect if tools else None
        self._rest, self._at = "", _In.WORDS
        self._source, self._lead, self._has_called = GrowingText(), "", False
        self._reading: Reading = _nothing()
        if thoughts is Thoughts.MAY_BEGIN:
            self._at = _In.BEGINNING
        elif thoughts is Thoughts.ARE_BEGUN:
            self._at = _In.THOUGHTS
        self._strips = thoughts is not Thoughts.NONE
        """White space that comes next belongs to no part."""

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is a thought."""
        return self._at is _In.THOUGHTS

    def _parts(self, text: str, *, is_over: bool) -> Iterator[Heard]:
        self._rest += text
        step = {
            _In.BEGINNING: self._begin,
            _In.THOUGHTS: self._think,
            _In.WORDS: self._say,
            _In.CALL: self._call,
            _In.NOTHING: self._ignore,
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
        if dialect and dialect.begins and not self.words:
            lead = text.lstrip()
            begins = dialect.begins(lead, tuple(self._schemas)) if lead else None
            if begins and not (dialect.begin and lead.startswith(dialect.begin)):
                self._read(dialect, text, lead="", known=True)
                return
            if begins is None and not is_over:
                return
        begin = dialect.begin if dialect else ""
        at = text.find(begin) if begin else -1
        if dialect and at >= 0:
            said = text[:at].rstrip()
            lead = text[len(said) : at + len(begin)]
            self._read(dialect, text[at + len(begin) :], lead, known=False)
        else:
            said = text
            if begin and not is_over:  # white space before a call belongs to it
                said = text[: len(text) - overlap(text, begin)].rstrip()
            self._rest = self._rest[len(said) :]
        if said:
            yield Word(said)

    def _read(self, dialect: Dialect, text: str, lead: str, *, known: bool) -> None:
        """Read a call in what follows, to what is ``known``; ``lead`` was dropped for it."""
        self._rest, self._at = text, _In.CALL
        self._source, self._lead, self._has_called = GrowingText(), lead, False
        self._reading = _within(dialect, self._source, self._schemas, known=known)

    def _call(self, *, is_over: bool) -> Iterator[Heard]:
        source = self._source
        source.text, source.is_over, self._rest = source.text + self._rest, is_over, ""
        try:
            for part in self._reading:
                if part is None:
                    return
                self._has_called = self._has_called or isinstance(part, CallBegins)
                yield part
                if self._is_alone and isinstance(part, ToolCall):
                    self._at = _In.NOTHING
                    return
        except NotACall:
            source.at = 0
        self._at, self._strips = _In.WORDS, self._has_called
        if self._has_called:
            self._rest = source.text[source.at :]
        else:  # what looked like its beginning was text
            cut = 0 if self._lead else 1
            self._rest = source.text[cut:]
            if words := self._lead + source.text[:cut]:
                yield Word(words)

    def _ignore(self, *, is_over: bool) -> Iterator[Heard]:  # noqa: ARG002 -- as its like
        self._rest = ""
        yield from ()


def _within(dialect: Dialect, source: GrowingText, schemas: Schemas, *, known: bool) -> Reading:
    """Read calls up to the mark that ends them."""
    yield from dialect.read(source, schemas, known=known)
    if dialect.end:
        yield from source.skip_spaces()
        yield from source.skip(dialect.end)


def _nothing() -> Reading:
    yield from ()
