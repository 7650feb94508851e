"""Reading calls of tools while they are written: the name, then the arguments piece by piece.

Each family's way of writing calls is read by a generator that yields what is certain, and None
where it needs more of the text. Once it has told that a call begins, that stays a call: arguments
that are cut short, or are no JSON, are told as far as they go.
"""

import json
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from p2pinfer.core.text import overlap

NAME_CHARS_MAX = 256
"""Of a tool's name, and of a parameter's: twice what a client may call one."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool."""

    name: str
    arguments: str
    """A JSON object, as text; its beginning, where the answer was cut short."""


@dataclass(frozen=True)
class CallBegins:
    """A call has begun; its arguments follow."""

    name: str


@dataclass(frozen=True)
class CallGrows:
    """A piece of a call's arguments; all of them together are those of the ``ToolCall``."""

    text: str


CallPart = CallBegins | CallGrows | ToolCall
"""What is told of a call, in this order; the whole comes last."""

Reading = Generator[CallPart | None, None, None]

Schemas = Mapping[str, Mapping[str, Any]]
"""What may be called, and the JSON Schema of its arguments."""


class NotACall(Exception):
    """What stands there is no call after all."""


class GrowingText:
    """A text that still grows, and how far it was read."""

    def __init__(self, text: str = "") -> None:
        self.text, self.at = text, 0
        self.is_over = False
        """Nothing follows."""
        self.holds = False
        """What was read may be needed again."""

    def drop(self) -> None:
        """Forget what was read: there is no way back behind it."""
        if self.holds:
            return
        self.text, self.at = self.text[self.at :], 0

    def skip_spaces(self, more: str = "") -> Generator[None, None, str]:
        """Go on behind white space and some other characters; return the next one, or nothing."""
        skipped = f" \t\r\n{more}"
        while True:
            rest = self.text[self.at :]
            left = rest.lstrip(skipped)
            self.at += len(rest) - len(left)
            if left or self.is_over:
                return left[:1]
            yield None

    def skip(self, mark: str) -> Generator[None, None, bool]:
        """Go on behind a mark, if that comes next."""
        while True:
            rest = self.text[self.at : self.at + len(mark)]
            if rest == mark:
                self.at += len(mark)
                return True
            if self.is_over or not mark.startswith(rest):
                return False
            yield None

    def up_to(self, *marks: str) -> Generator[None, None, str]:
        """Return the name before the first of some marks, and go on behind it; raises NotACall."""
        while True:
            found = [(at, mark) for mark in marks if (at := self.text.find(mark, self.at)) >= 0]
            if found:
                at, mark = min(found)
                name, self.at = self.text[self.at : at], at + len(mark)
                return name
            if self.is_over or len(self.text) - self.at > NAME_CHARS_MAX:
                raise NotACall
            yield None

    def match(self, pattern: re.Pattern[str]) -> Generator[None, None, str]:
        """Return what a pattern matches once something stands behind it; raises NotACall."""
        while True:
            found = pattern.match(self.text, self.at)
            if found and found.end() < len(self.text):
                self.at = found.end()
                return found[0]
            if self.is_over or len(self.text) - self.at > NAME_CHARS_MAX:
                raise NotACall
            yield None

    def pieces(self, *marks: str) -> Generator[str | None, None, bool]:
        """Yield a text that ends at one of some marks, but for what may belong to one.

        Returns whether such a mark came; it is read, too.
        """
        while True:
            text = self.text[self.at :]
            found = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
            end, mark = min(found, default=(len(text), ""))
            if not found and not self.is_over:
                end -= max(overlap(text, each) for each in marks)
            self.at += end + len(mark)
            self.drop()
            if end:
                yield text[:end]
            if found or self.is_over:
                return bool(found)
            yield None


def told(name: str, pieces: Iterator[str | None]) -> Reading:
    """Tell a call whose arguments come in pieces; without any, it has none."""
    yield CallBegins(name)
    said = []
    for piece in pieces:
        if piece is None:
            yield None
        elif piece:
            said.append(piece)
            yield CallGrows(piece)
    if not said:
        said.append("{}")
        yield CallGrows("{}")
    yield ToolCall(name, "".join(said))


_QUOTED = re.compile(r'[^"\\]*')
_PLAIN = re.compile(r'[^"{}\[\]]*')
_CONTROL = re.compile(r"[\x00-\x1f]")
_SCALAR = re.compile(r"[^\s,;{}\[\]]+")
_SPELLED = re.compile(
    r"""(?: [^"\\] | \\["\\/bfnrt]
      | \\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}
      | \\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2} )*""",
    re.VERBOSE,
)
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
_ESCAPE_CHARS_MAX = 12
"""Of two halves of a character: an escape that is no longer than this may still be whole."""


def json_pieces(source: GrowingText) -> Iterator[str | None]:
    """Yield JSON of arguments as it stands, the first character of which is there.

    A text that spells JSON is told as what it spells; null is told as no arguments.
    """
    sign = source.text[source.at]
    if sign in "{[":
        yield from _nested(source)
    elif sign == '"':
        yield from _spelled(source)
    else:
        while True:
            found = _SCALAR.match(source.text, source.at)
            if not found or found.end() < len(source.text) or source.is_over:
                break
            yield None
        value = found[0] if found else ""
        source.at += len(value)
        yield "" if value == "null" else value


def _nested(source: GrowingText) -> Iterator[str | None]:
    """Yield an object or a list; line breaks within its texts, which JSON forbids, are escaped."""
    depth, is_quoted = 0, False
    while True:
        text, at = source.text, source.at
        parts = []
        while at < len(text):
            begin = at
            if not is_quoted:
                at = min(_end(_PLAIN, text, at) + 1, len(text))
                parts.append(text[begin:at])
                sign = text[at - 1]
                is_quoted = sign == '"'
                depth += (sign in "{[") - (sign in "}]")
                if not depth:
                    break
                continue
            at = _end(_QUOTED, text, at)
            parts.append(_CONTROL.sub(_escaped, text[begin:at]))
            sign = text[at : at + 1]
            if sign == "\\" and at + 1 == len(text):
                break  # what it escapes is yet to come
            parts.append(text[at : at + 1 + (sign == "\\")])
            at += len(parts[-1])
            is_quoted = sign != '"'
        source.at = at
        source.drop()
        yield "".join(parts)
        if source.is_over or not depth:
            return
        yield None


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found
    return found.end()


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def _spelled(source: GrowingText) -> Iterator[str | None]:
    source.at += 1
    while True:
        end = _end(_SPELLED, source.text, source.at)
        piece = json.loads(f'"{source.text[source.at : end]}"', strict=False)
        source.at = end
        source.drop()
        yield piece
        rest = source.text[source.at :]
        if rest[:1] == '"':
            source.at += 1
            return
        if source.is_over or len(rest) >= _ESCAPE_CHARS_MAX:
            return
        yield None


def _text(source: GrowingText) -> Generator[None, None, str]:
    """Return a JSON text, the quotation mark of which comes next; raises NotACall."""
    raw = yield from source.match(_TEXT)
    try:
        found = str(json.loads(raw, strict=False))
        found.encode()
    except ValueError:  # half a character among them
        raise NotACall from None
    return found


def _whole(source: GrowingText) -> Generator[None, None, str]:
    """Return arguments once all of them are there; none of it is dropped."""
    found = []
    source.holds = True
    for piece in json_pieces(source):
        if piece is None:
            yield None
        else:
            found.append(piece)
    source.holds = False
    return "".join(found)


def read_objects(source: GrowingText, schemas: Schemas, *, known: bool) -> Reading:
    """Read objects with a name and arguments, in lists or one behind the other.

    Args:
        source: begins where the first may begin.
        schemas: what may be called.
        known: take only these for calls.
    """
    while (yield from source.skip_spaces(",;[]")) == "{":
        yield from _object(source, schemas if known else None)
        source.drop()


def _object(source: GrowingText, known: Schemas | None) -> Reading:
    """Read one object; raises NotACall until its name and the beginning of its arguments came."""
    name: str | None = None
    early: str | None = None
    is_told = False
    source.at += 1
    while (sign := (yield from source.skip_spaces(","))) == '"':
        try:
            key = yield from _text(source)
            colon = yield from source.skip_spaces()
            source.at += 1
            sign = yield from source.skip_spaces()
            if colon != ":" or not sign:
                raise NotACall
            if key == "function" and sign == "{" and not is_told:
                yield from _object(source, known)
                is_told = True
            elif key == "name" and sign == '"' and name is None:
                name = yield from _text(source)
                if known is not None and name not in known:
                    raise NotACall
            elif key in {"arguments", "parameters"} and name is not None and not is_told:
                yield from told(name, json_pieces(source))
                is_told = True
            elif key in {"arguments", "parameters"} and early is None:
                early = yield from _whole(source)
            else:
                yield from _whole(source)
        except NotACall:
            if is_told:
                return
            raise
    if sign == "}":
        source.at += 1
    if is_told:
        return
    if sign != "}" or name is None:
        raise NotACall
    yield from told(name, iter([early or ""]))


_NAME = re.compile(r"[\w.-]+")
_ID = re.compile(r"\w+")


def read_mistral(source: GrowingText, schemas: Schemas, *, known: bool) -> Reading:
    """Read a list of objects, or names with their arguments behind them; as ``read_objects``."""
    yield from source.skip_spaces()
    yield from source.skip("[TOOL_CALLS]")
    if (yield from source.skip_spaces()) in {"[", "{"}:
        yield from read_objects(source, schemas, known=known)
        return
    while (yield from source.skip_spaces(",;")):
        yield from source.skip("[TOOL_CALLS]")
        name = yield from source.match(_NAME)
        if (yield from source.skip("[CALL_ID]")):
            yield from source.match(_ID)
        yield from source.skip("[ARGS]")
        if (yield from source.skip_spaces()) != "{" or (known and name not in schemas):
            raise NotACall
        yield from told(name, json_pieces(source))
        source.drop()


def read_phi(source: GrowingText, schemas: Schemas, *, known: bool) -> Reading:
    """Read objects between marks that may be no text; as ``read_objects``."""
    yield from source.skip_spaces()
    yield from source.skip("<|tool_call|>")
    yield from read_objects(source, schemas, known=known)
    yield from source.skip("<|/tool_call|>")


SEP, CALL_END = "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"  # noqa: RUF001 -- DeepSeek's own characters
CALL_BEGIN = "<｜tool▁call▁begin｜>"  # noqa: RUF001


def read_deepseek(source: GrowingText, schemas: Schemas, *, known: bool) -> Reading:
    """Read names with their arguments, each call between marks; as ``read_objects``."""
    while (yield from source.skip_spaces()):
        if not (yield from source.skip(CALL_BEGIN)):
            return
        yield from source.skip(f"function{SEP}")
        name = yield from source.up_to("\n```json\n", SEP)
        if not (yield from source.skip_spaces()) or (known and name not in schemas):
            raise NotACall
        yield from told(name, json_pieces(source))
        yield from source.skip_spaces()
        yield from source.skip("```")
        yield from source.skip_spaces()
        yield from source.skip(CALL_END)
        source.drop()
