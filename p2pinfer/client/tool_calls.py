"""Calling tools: how each family of models writes a call, read and held to.

A model is known by its template. Where that knows nothing of tools, they are described to it as
Hermes has it, which most models have seen.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from p2pinfer.client.call_reading import (
    CALL_BEGIN,
    CALL_END,
    SEP,
    GrowingText,
    Reading,
    Schemas,
    read_deepseek,
    read_mistral,
    read_objects,
    read_phi,
)
from p2pinfer.client.grammars import WHITE_SPACE, Shape, json_rule
from p2pinfer.client.xml_calls import argument_rules, read_functions
from p2pinfer.engine.template import Message


@dataclass(frozen=True)
class Tool:
    """A function that a model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    """JSON Schema of its arguments."""
    strict: bool = False
    """Refuse a schema that says what arguments cannot be held to."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as templates want it."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}


class Reader(Protocol):
    """Reads calls in a text that still grows."""

    def __call__(self, source: GrowingText, schemas: Schemas, *, known: bool) -> Reading:
        """Tell calls until something else follows; ``known``: of what is offered alone.

        Raises:
            NotACall: something that is none began like one; what was not dropped is text.
        """
        ...


@dataclass(frozen=True)
class Dialect:
    """How a family of models writes calls."""

    begin: str
    """Comes before a call, or before all of them; where it is empty, they are the whole answer."""
    end: str
    read: Reader
    """Reads the calls in what stands between the two."""
    body: tuple[str, str, str]
    """What one call is written as: before its name, before its arguments, and behind them."""
    around: tuple[str, str, str] = ("", "\n", "")
    """Before all calls, between two of them, and behind them."""
    is_xml: bool = False
    """Arguments stand one by one between marks, and are not a JSON object."""
    in_channels: bool = False
    """All that is said is in channels, as ``client.harmony`` has it."""
    begins: Callable[[str, Sequence[str]], bool | None] | None = None
    """Says whether an answer that begins so, with no space before it, is a call to one of the
    named, without its mark; None where that is not certain yet. Not there: none ever is."""


@dataclass(frozen=True)
class Tools:
    """What a model may call in an answer, and whether it must."""

    offered: Sequence[Tool]
    must: bool = False
    several: bool = True
    """It may call more than once."""

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called."""
        return tuple(tool.name for tool in self.offered)

    @property
    def schemas(self) -> Schemas:
        """What each takes."""
        return {tool.name: tool.parameters for tool in self.offered}


def _begins_object(text: str, _: Sequence[str]) -> bool:
    return text[0] == "{"


def _begins_phi(text: str, _: Sequence[str]) -> bool | None:
    leads = ("{", "[{", "<|tool_call|>")
    if text.startswith(leads):
        return True
    return None if any(lead.startswith(text) for lead in leads) else False


def _begins_mistral(text: str, names: Sequence[str]) -> bool | None:
    leads = ("[{", "[TOOL_CALLS]", *(name + sign for name in names for sign in ("{", "[ARGS]")))
    if text.startswith(leads):
        return True
    return None if any(lead.startswith(text) for lead in leads) else False


_OBJECT = ('{"name": "', '", "arguments": ', "}")

HERMES = Dialect(
    "<tool_call>",
    "</tool_call>",
    read_objects,
    ("<tool_call>\n" + _OBJECT[0], _OBJECT[1], "}\n</tool_call>"),
)
QWEN_CODER = Dialect(
    "<tool_call>",
    "</tool_call>",
    read_functions,
    ("<tool_call>\n<function=", ">\n", "</function>\n</tool_call>"),
    is_xml=True,
)
LLAMA = Dialect(
    "",
    "",
    read_objects,
    (_OBJECT[0], '", "parameters": ', "}"),
    ("", "; ", ""),
    begins=_begins_object,
)
_PHI = ("<|tool_call|>", "<|/tool_call|>")
PHI = Dialect(*_PHI, read_phi, _OBJECT, (f"{_PHI[0]}[", ", ", f"]{_PHI[1]}"), begins=_begins_phi)
NEMOTRON = Dialect(
    "<TOOLCALL>", "</TOOLCALL>", read_objects, _OBJECT, ("<TOOLCALL>[", ", ", "]</TOOLCALL>")
)
_MISTRAL = "[TOOL_CALLS]"
MISTRAL = Dialect(
    _MISTRAL, "", read_mistral, _OBJECT, (f"{_MISTRAL}[", ", ", "]"), begins=_begins_mistral
)
MISTRAL_NAMED = Dialect(
    _MISTRAL, "", read_mistral, (_MISTRAL, "[ARGS]", ""), ("", "", ""), begins=_begins_mistral
)
_CALLS = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")  # noqa: RUF001
DEEPSEEK = Dialect(
    *_CALLS,
    read_deepseek,
    (f"{CALL_BEGIN}function{SEP}", "\n```json\n", f"\n```{CALL_END}"),
    (_CALLS[0], "\n", _CALLS[1]),
)
DEEPSEEK_PLAIN = Dialect(
    *_CALLS,
    read_deepseek,
    (CALL_BEGIN, SEP, CALL_END),
    (_CALLS[0], "", _CALLS[1]),
)
HARMONY = Dialect("", "", read_objects, ("", "", ""), in_channels=True)


_BY_MARK = {
    "[ARGS]": MISTRAL_NAMED,
    _MISTRAL: MISTRAL,
    "<|tool_call|>": PHI,
    "<TOOLCALL>": NEMOTRON,
}


def knows_tools(template: str) -> bool:
    """Whether a template says anything of tools."""
    return re.search(r"\btools\b", template) is not None


def dialect_of(template: str) -> Dialect:
    """Return how a model with such a template writes calls."""
    if "<|channel|>" in template and "<|message|>" in template:
        return HARMONY
    if "<function=" in template and "<parameter=" in template:
        return QWEN_CODER
    if "<tool_call>" in template or not knows_tools(template):
        return HERMES
    for mark, dialect in _BY_MARK.items():
        if mark in template:
            return dialect
    if CALL_BEGIN in template:
        return DEEPSEEK if "```json" in template else DEEPSEEK_PLAIN
    if "<|python_tag|>" in template or '"parameters"' in template:
        return LLAMA
    return HERMES


def calls_shape(
    tools: Tools,
    dialect: Dialect,
    instead: Shape | None = None,
    marks: Mapping[str, int] = MappingProxyType({}),
) -> Shape:
    """Hold an answer to its calls: their names, and arguments that fit their schemas.

    Where a model need not call, what it says otherwise is free; or it is as ``instead`` has it.
    ``marks``: what spells a control token in the vocabulary, and which.
    """
    rules = [*_call_rules(tools, dialect, marks)]
    lead, between, tail = (_spelled(each, marks) for each in dialect.around)
    several = f" ({between} call)*" if tools.several else ""
    calls = f"calls: {lead} call{several} {tail}"
    if tools.must:
        return Shape("\n".join(["start: calls", calls, *rules]))
    if instead:
        or_else = instead.grammar.replace("start:", "start: calls |", 1)
        return Shape("\n".join([or_else, calls, *rules]))
    if not dialect.begin:  # what begins like a call to one of them is one
        names = "|".join(re.escape(tool.name).replace("/", r"\/") for tool in tools.offered)
        begun = f'{re.escape(dialect.body[0])}({names})"(.|\\n)*'
        words = rf"WORDS: /(.|\n)*/ & ~/{begun}/"
        return Shape("\n".join(["start: calls | WORDS", words, calls, *rules]))
    begin, space = dialect.begin, f"/{WHITE_SPACE}/"  # as some leave out the new line
    mark = f"mark[lazy]: TEXT {json.dumps(begin, ensure_ascii=False)}"
    if begin in marks:
        mark = f"mark: TEXT <[{marks[begin]}]>"
    if dialect.around[0]:
        behind = _spelled(dialect.around[0].removeprefix(begin), marks)
        start = f"start: mark {space} {behind} call{several} {tail} rest | rest"
    else:
        start = f"start: {'(mark call)* rest' if tools.several else 'mark call | rest'}"
        rules = [*_call_rules(tools, dialect, marks, begun=True)]
    text = ["rest: TEXT", mark, r"TEXT: /(.|\n)*/"]
    return Shape("\n".join([start, *text, *rules]), is_whole=False)


def _spelled(text: str, marks: Mapping[str, int]) -> str:
    """Return what stands for a text in a rule, where some of it may be control tokens."""
    if not marks:
        return json.dumps(text, ensure_ascii=False)
    cut = re.split(f"({'|'.join(map(re.escape, marks))})", text)
    found = [
        f"<[{marks[part]}]>" if part in marks else json.dumps(part, ensure_ascii=False)
        for part in cut
        if part
    ]
    return " ".join(found) or '""'


def _call_rules(
    tools: Tools, dialect: Dialect, marks: Mapping[str, int], *, begun: bool = False
) -> Iterator[str]:
    """Yield rules for a call; ``begun``: behind what it begins with."""
    head, middle, tail = dialect.body
    if begun:
        head = head.removeprefix(dialect.begin).lstrip()
    yield "call: " + " | ".join(f"call_{at}" for at in range(len(tools.offered)))
    space = f"/{WHITE_SPACE}/ " if begun else ""
    behind = _spelled(tail, marks)
    for at, tool in enumerate(tools.offered):
        before = _spelled(head + tool.name + middle, marks)
        yield f"call_{at}: {space}{before} arguments_{at} {behind}"
        if dialect.is_xml:
            yield from argument_rules(tool.parameters, f"arguments_{at}", strict=tool.strict)
        else:
            yield f"arguments_{at}: {json_rule(tool.parameters, strict=tool.strict)}"


def as_text(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Return a conversation for a template that knows no tools: all of it is text."""
    found: list[Message] = []
    if tools:
        found.append({"role": "system", "content": _description(tools)})
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system" and tools and len(found) == 1 and found[0]["role"] == "system":
            found[0] = {"role": role, "content": f"{content}\n\n{found[0]['content']}"}
        elif role == "tool":
            text = f"<tool_response>\n{content}\n</tool_response>"
            found.append({"role": "user", "content": text})
        elif calls := message.get("tool_calls"):
            said = [content] if content else []
            for call in calls:
                function = call["function"]
                name = json.dumps(function["name"], ensure_ascii=False)
                body = f'{{"name": {name}, "arguments": {function["arguments"]}}}'
                said.append(f"<tool_call>\n{body}\n</tool_call>")
            found.append({"role": role, "content": "\n".join(said)})
        else:
            found.append(message)
    return found


def _description(tools: Sequence[Tool]) -> str:
    listed = "\n".join(json.dumps(tool.as_dict(), ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\nYou may call one or more functions to help with what the user asks."
        f" Their signatures are within <tools></tools>:\n<tools>\n{listed}\n</tools>\n\n"
        "For each call, return a JSON object with the function's name and its arguments within"
        ' <tool_call></tool_call>:\n<tool_call>\n{"name": <function-name>, "arguments":'
        " <args-json-object>}\n</tool_call>"
    )
