"""Calls that a grammar forces are calls that are read, with arguments that fit."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.client.grammars import Thoughts, json_shape, with_thoughts
from p2pinfer.client.speech import Speech
from p2pinfer.client.tool_calls import (
    DEEPSEEK,
    DEEPSEEK_PLAIN,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    NEMOTRON,
    PHI,
    QWEN_CODER,
    Dialect,
    Tool,
    Tools,
    as_text,
    calls_shape,
    dialect_of,
)
from p2pinfer.core.text import TextStream
from p2pinfer.engine.llama.binding import Vocabulary
from p2pinfer.engine.llama.constraints import Grammars
from p2pinfer.engine.special_tokens import CALL_MARKS
from tests.support.vocabularies import write_vocabulary

NUMBER = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOLS = (Tool("count", "Counts.", NUMBER), Tool('od"d', "", {"type": "object", "if": {}}))
DIALECTS = [HERMES, LLAMA, PHI, NEMOTRON, MISTRAL, MISTRAL_NAMED, DEEPSEEK, DEEPSEEK_PLAIN]


@pytest.fixture(scope="module")
def grammars(default_model: Path) -> Grammars:
    """Give what the default model's vocabulary can be held to."""
    return Grammars(Vocabulary.of_file(default_model))


def allows(grammars: Grammars, lark: str, text: str) -> bool:
    """Whether an answer may be this text."""
    constraint = grammars.begin(grammars.read(lark, is_gbnf=False))
    for token in grammars.vocabulary.tokenize(text, special=False):
        if not constraint.allowed()[token]:
            return False
        constraint.accept(token)
    return any(grammars.vocabulary.is_end(int(t)) for t in constraint.allowed().nonzero()[0])


def written(dialect: Dialect, *calls: tuple[str, str]) -> str:
    """Write calls as a model of the family does."""
    before, between, behind = dialect.around
    head, middle, tail = dialect.body
    each = [head + name + middle + arguments + tail for name, arguments in calls]
    return before + between.join(each) + behind


GOOD, BAD = ("count", '{"n": 5}'), ("count", '{"n": 50}')


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_call_that_must_be_is_one_that_is_read(grammars: Grammars, dialect: Dialect) -> None:
    """Its name is known, its arguments fit, and words are none."""
    shape = calls_shape(Tools(TOOLS, must=True), dialect)
    assert shape
    assert allows(grammars, shape.grammar, written(dialect, GOOD))
    assert allows(grammars, shape.grammar, written(dialect, GOOD, GOOD))
    for bad in ("Hello.", "", written(dialect, BAD), written(dialect, ("other", "{}"))):
        assert not allows(grammars, shape.grammar, bad)
    one = calls_shape(Tools(TOOLS, must=True, several=False), dialect)
    assert one
    assert allows(grammars, one.grammar, written(dialect, GOOD))
    assert not allows(grammars, one.grammar, written(dialect, GOOD, GOOD))
    speech = Speech(Thoughts.NONE, Tools(TOOLS), dialect)
    list(speech.feed(written(dialect, GOOD, GOOD)))
    list(speech.end())
    assert [(call.name, json.loads(call.arguments)) for call in speech.calls] == [
        ("count", {"n": 5})
    ] * 2
    assert speech.words == ""


def test_a_call_that_may_be_fits_once_it_has_begun(grammars: Grammars) -> None:
    """Before its mark everything may be said."""
    shape = calls_shape(Tools(TOOLS), HERMES)
    assert shape
    assert not shape.is_whole
    for good in (
        "Hello.",
        "",
        "<tool",
        "Well. " + written(HERMES, GOOD),
        written(HERMES, GOOD, GOOD),
    ):
        assert allows(grammars, shape.grammar, good), good
    tight = '<tool_call>{"name": "count", "arguments": {"n": 5}}\n</tool_call>'
    assert allows(grammars, shape.grammar, tight)
    assert not allows(grammars, shape.grammar, "Well. " + written(HERMES, BAD))
    unmarked = calls_shape(Tools(TOOLS), LLAMA)
    assert unmarked
    for good in ("Hello.", "", "{}", '{"name": "x"}', '{"name": "co', "So " + written(LLAMA, BAD),
                 written(LLAMA, GOOD), written(LLAMA, GOOD, GOOD)):  # fmt: skip
        assert allows(grammars, unmarked.grammar, good), good
    assert not allows(grammars, unmarked.grammar, written(LLAMA, BAD))
    assert not allows(grammars, unmarked.grammar, '{"name": "count", "age": 3}')


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("is_control", [False, True])
def test_a_call_that_may_be_is_held_in_every_family(
    tmp_path: Path, dialect: Dialect, is_control: bool
) -> None:
    """Whether its marks are text or control tokens, which answers show; words are free."""
    path = tmp_path / "v.gguf"
    write_vocabulary(path, ("<s>", "</s>", *(CALL_MARKS if is_control else ())))
    vocabulary = Vocabulary.of_file(path)
    held = Grammars(vocabulary)
    marks = {each.text: each.token for each in vocabulary.control_tokens()}
    shape = calls_shape(Tools(TOOLS), dialect, marks=marks)
    lead = "So " if dialect.begin else ""
    for text, good in (
        ("Hello [x] {y} <z>", True),
        (lead + written(dialect, GOOD), True),
        (written(dialect, GOOD, GOOD), True),
        (lead + written(dialect, BAD), False),
        (written(dialect, GOOD, BAD), False),
    ):
        constraint = held.begin(held.read(shape.grammar, is_gbnf=False))
        speech, shown, is_allowed = Speech(Thoughts.NONE, Tools(TOOLS), dialect), TextStream(), True
        for token in vocabulary.tokenize(text, special=True):
            is_allowed = is_allowed and bool(constraint.allowed()[token])
            if is_allowed:
                constraint.accept(token)
            list(speech.feed(shown.feed(vocabulary.shown(token))))
        list(speech.end())
        assert is_allowed == good, text
        assert bool(speech.calls) == ("Hello" not in text)
        assert speech.words == ("So" if text.startswith("So") else "" if speech.calls else text)


FILE = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "mode": {"enum": ["read", "write"]},
        "lines": {"type": "array", "items": {"type": "integer"}},
        "end": {"type": ["string", "null"]},
    },
    "required": ["path", "mode"],
}


def xml(**values: str) -> str:
    """Write a call as Qwen3-Coder does."""
    said = "".join(f"<parameter={n}>\n{v}\n</parameter>\n" for n, v in values.items())
    return f"<tool_call>\n<function=file>\n{said}</function>\n</tool_call>"


@pytest.mark.parametrize("must", [True, False])
def test_arguments_between_marks_are_held_to_their_types(grammars: Grammars, must: bool) -> None:
    """Texts are free, one of several is one of them, the rest is JSON that fits."""
    tools = Tools((Tool("file", "", FILE), Tool("free", "", {"anyOf": []})), must=must)
    shape = calls_shape(tools, QWEN_CODER)
    assert shape
    path = 'a "b"\n<c>'
    for good, value in (
        (xml(path=path, mode="read"), {"path": path, "mode": "read"}),
        (xml(path="1", mode="write", lines="[1, 2]", end="null"),
         {"path": "1", "mode": "write", "lines": [1, 2], "end": None}),
    ):  # fmt: skip
        assert allows(grammars, shape.grammar, good), good
        assert allows(grammars, shape.grammar, f"{good}\n{good}")
        speech = Speech(Thoughts.NONE, tools, QWEN_CODER)
        list(speech.feed(good))
        assert [json.loads(call.arguments) for call in speech.calls] == [value]
    for bad in (xml(path="a", mode="rewrite"), xml(mode="read"), xml(path="a", mode="read", n="1"),
                xml(path="a", mode="read", lines="[x]")):  # fmt: skip
        assert not allows(grammars, shape.grammar, bad), bad
    free = "<tool_call>\n<function=free>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
    assert allows(grammars, shape.grammar, free)


WORDS = st.sampled_from(["type", "enum", "anyOf", "const", "properties", "required", "string"])


@given(
    st.dictionaries(
        WORDS,
        st.recursive(
            st.none() | st.integers() | WORDS,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
            max_leaves=6,
        ),
    )
)
def test_no_schema_is_too_odd_for_arguments_between_marks(schema: dict[str, Any]) -> None:
    """What is no schema is refused by what reads the rules, not by what makes them."""
    calls_shape(Tools((Tool("f", "", schema),)), QWEN_CODER)
    tools = Tools((Tool("f", "", schema),))
    speech = Speech(Thoughts.NONE, tools, QWEN_CODER)
    body = "<parameter=type>\n1\n</parameter>"
    list(speech.feed(f"<tool_call><function=f>{body}</function></tool_call>"))
    assert len(speech.calls) == 1


@pytest.mark.parametrize("dialect", DIALECTS)
def test_answer_is_calls_or_fits_a_schema(grammars: Grammars, dialect: Dialect) -> None:
    """Where a client asks for both."""
    schema = {"type": "array", "items": {"type": "integer"}}
    shape = calls_shape(Tools(TOOLS), dialect, json_shape(schema, strict=True))
    assert shape
    assert allows(grammars, shape.grammar, written(dialect, GOOD))
    assert allows(grammars, shape.grammar, "[1, 2]")
    assert not allows(grammars, shape.grammar, "Hello.")


def test_thoughts_may_stand_before_what_is_held_to_a_shape(grammars: Grammars) -> None:
    """If they are begun they must end; if not they may be missing."""
    shape = calls_shape(Tools(TOOLS, must=True), HERMES)
    assert shape
    call = written(HERMES, GOOD)
    may = with_thoughts(shape.grammar, Thoughts.MAY_BEGIN)
    begun = with_thoughts(shape.grammar, Thoughts.ARE_BEGUN)
    assert allows(grammars, may, call)
    assert allows(grammars, may, f"<think>\nHm {{}}.\n</think>\n\n{call}")
    assert not allows(grammars, may, f"Hm.</think>{call}")
    assert allows(grammars, begun, f"Hm.\n</think>\n\n{call}")
    assert not allows(grammars, begun, call)
    assert not allows(grammars, begun, "Hm.</think>Hello.")


@pytest.mark.parametrize(
    ("template", "dialect"),
    [("", HERMES), ("{% if tools %}<tool_call>", HERMES),
     ("{{ tools }}<tool_call><function=<parameter=", QWEN_CODER),
     ("{{ tools }}[TOOL_CALLS]", MISTRAL),
     ("{{ tools }}[TOOL_CALLS][ARGS]", MISTRAL_NAMED),
     ("{{ tools }}<|tool_call|>", PHI), ("{{ tools }}<TOOLCALL>", NEMOTRON),
     ("{{ tools }}<|python_tag|>", LLAMA), ("{{ tools }}", HERMES),
     ("{{ tools }}<｜tool▁call▁begin｜>```json", DEEPSEEK),  # noqa: RUF001
     ("{{ tools }}<｜tool▁call▁begin｜>", DEEPSEEK_PLAIN)],  # noqa: RUF001
)  # fmt: skip
def test_family_is_known_by_its_template(template: str, dialect: Dialect) -> None:
    """By the marks that it writes."""
    assert dialect_of(template) is dialect


def test_conversation_with_tools_can_be_told_as_text() -> None:
    """Tools behind the system's words, calls as they are read, and what they gave to the user."""
    call = {"id": "1", "type": "function", "function": {"name": "count", "arguments": '{"n": 5}'}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Count."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "12345", "tool_call_id": "1"},
    ]
    system, user, called, gave = as_text(messages, TOOLS)
    assert system["content"].startswith("Be brief.\n\n# Tools")
    assert '"name": "count"' in system["content"]
    assert user == messages[1]
    speech = Speech(Thoughts.NONE, Tools(TOOLS), HERMES)
    list(speech.feed(called["content"]))
    assert [call.arguments for call in speech.calls] == ['{"n": 5}']
    assert gave == {"role": "user", "content": "<tool_response>\n12345\n</tool_response>"}
    assert as_text(messages[:2], ()) == messages[:2]
    assert [each["role"] for each in as_text(messages[1:2], TOOLS)] == ["system", "user"]
