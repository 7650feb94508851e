"""What an answer is made of, however it is cut into pieces."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.client.call_reading import CallBegins, CallGrows, ToolCall
from p2pinfer.client.grammars import Thoughts
from p2pinfer.client.speech import Speech, Thought, Word
from p2pinfer.client.tool_calls import (
    DEEPSEEK,
    DEEPSEEK_PLAIN,
    HERMES,
    LLAMA,
    MISTRAL,
    NEMOTRON,
    PHI,
    QWEN_CODER,
    Dialect,
    Tool,
    Tools,
)

NAMED = {"type": "object", "properties": {"name": {"type": "string"}, "x": {"type": "integer"}}}
TOOLS = Tools((Tool("f"), Tool("go.on"), Tool("named", "", NAMED)))
F1, F2 = ToolCall("f", '{"x": 1}'), ToolCall("go.on", "{}")
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"  # noqa: RUF001
ONE, OVER, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"  # noqa: RUF001
LAST = f"{ONE}function{SEP}go.on\n```json\n{{}}\n```{OVER}{END}"


def heard(
    text: str, cuts: list[int], thoughts: Thoughts, tools: Tools | None, dialect: Dialect
) -> Speech:
    """Hear a text in pieces; what was told of it must be what is kept."""
    speech = Speech(thoughts, tools, dialect)
    told: list[Any] = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        told += speech.feed(text[begin:end])
    told += speech.end()
    assert list(speech.end()) == []
    assert "".join(p.text for p in told if isinstance(p, Word)) == speech.words
    assert "".join(p.text for p in told if isinstance(p, Thought)) == speech.thoughts
    assert [p for p in told if isinstance(p, ToolCall)] == speech.calls
    assert assembled(told) == speech.calls
    return speech


def assembled(told: list[Any]) -> list[ToolCall]:
    """Put calls together from their pieces; the whole comes behind the last of its own."""
    found: list[ToolCall] = []
    for part in told:
        match part:
            case CallBegins(name):
                found.append(ToolCall(name, ""))
            case CallGrows(piece):
                assert piece
                found[-1] = ToolCall(found[-1].name, found[-1].arguments + piece)
            case ToolCall():
                assert part == found[-1]
    return found


CASES: dict[str, tuple[Thoughts, Tools | None, Dialect, str, tuple[str, str, list[ToolCall]]]] = {
    "plain": (Thoughts.NONE, TOOLS, HERMES, "Hi <tool", ("", "Hi <tool", [])),
    "thoughts": (
        Thoughts.MAY_BEGIN, None, HERMES, "\n<think>\nHm. <\n\n</think>\n\nYes.",
        ("Hm. <", "Yes.", []),
    ),
    "no thoughts": (Thoughts.MAY_BEGIN, None, HERMES, " <thin air>", ("", " <thin air>", [])),
    "begun": (Thoughts.ARE_BEGUN, None, HERMES, "Hm.\n</think>Yes.", ("Hm.", "Yes.", [])),
    "endless": (Thoughts.ARE_BEGUN, None, HERMES, "Hm. </thi", ("Hm. </thi", "", [])),
    "thought of a call": (
        Thoughts.ARE_BEGUN, TOOLS, HERMES, f"{CALL}</think>{CALL}", (CALL, "", [F1])
    ),
    "hermes": (Thoughts.NONE, TOOLS, HERMES, f"Well. \n{CALL}", ("", "Well.", [F1])),
    "several": (
        Thoughts.NONE, TOOLS, HERMES,
        f'{CALL}\n<tool_call>{{"name": "go.on", "arguments": {{}}}}</tool_call>\n',
        ("", "", [F1, F2]),
    ),
    "end in an argument": (
        Thoughts.NONE, TOOLS, HERMES,
        '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>',
        ("", "", [ToolCall("f", '{"x": "</tool_call>"}')]),
    ),
    "not closed": (
        Thoughts.NONE, TOOLS, HERMES, '<tool_call>{"name": "f", "arguments": {"x": 1}}',
        ("", "", [F1]),
    ),
    "cut short": (
        Thoughts.NONE, TOOLS, HERMES, '<tool_call>{"name": "f", "ar',
        ("", '<tool_call>{"name": "f", "ar', []),
    ),
    "no tools": (Thoughts.NONE, None, HERMES, CALL, ("", CALL, [])),
    "llama": (
        Thoughts.NONE, TOOLS, LLAMA, '\n{"name": "f", "parameters": {"x": 1}}; {"name": "go.on"}',
        ("", "", [F1, F2]),
    ),
    "llama says JSON": (Thoughts.NONE, TOOLS, LLAMA, '{"name": "x"}', ("", '{"name": "x"}', [])),
    "llama says words": (
        Thoughts.NONE, TOOLS, LLAMA, 'So {"name": "f"}', ("", 'So {"name": "f"}', [])
    ),
    "mistral": (
        Thoughts.NONE, TOOLS, MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}]',
        ("", "", [F1]),
    ),
    "mistral unmarked": (
        Thoughts.NONE, TOOLS, MISTRAL, '[{"name": "f", "arguments": {"x": 1}}]', ("", "", [F1])
    ),
    "mistral by name": (
        Thoughts.NONE, TOOLS, MISTRAL, 'f[ARGS]{"x": 1}go.on{}', ("", "", [F1, F2])
    ),
    "phi": (
        Thoughts.NONE, TOOLS, PHI,
        '<|tool_call|>[{"name": "f", "arguments": {"x": 1}}]<|/tool_call|>',
        ("", "", [F1]),
    ),
    "phi unmarked": (
        Thoughts.NONE, TOOLS, PHI, '{"name": "f", "arguments": {"x": 1}}', ("", "", [F1])
    ),
    "phi says words": (Thoughts.NONE, TOOLS, PHI, "<|too", ("", "<|too", [])),
    "nemotron": (
        Thoughts.NONE, TOOLS, NEMOTRON,
        'So. <TOOLCALL>[{"name": "f", "arguments": {"x": 1}}, {"name": "go.on"}]</TOOLCALL>',
        ("", "So.", [F1, F2]),
    ),
    "qwen coder": (
        Thoughts.NONE, TOOLS, QWEN_CODER,
        ("So.\n<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
         "\n<tool_call>\n<function=go.on>\n</function>\n</tool_call>"),
        ("", "So.", [F1, F2]),
    ),
    "qwen coder knows texts by the schema": (
        Thoughts.NONE, TOOLS, QWEN_CODER,
        ("<tool_call><function=named>\n<parameter=name>\n12\n\n</parameter>\n<parameter=x>\n2\n"
         "</parameter>\n</function></tool_call>"),
        ("", "", [ToolCall("named", '{"name": "12\\n", "x": 2}')]),
    ),
    "qwen coder says marks": (
        Thoughts.NONE, TOOLS, QWEN_CODER, "<tool_call>f(x)</tool_call>",
        ("", "<tool_call>f(x)</tool_call>", []),
    ),
    "arguments as a text": (
        Thoughts.NONE, TOOLS, HERMES,
        r'<tool_call>{"name": "f", "arguments": "{\"x\": \"\u00e9\ud83d\ude00\"}"}</tool_call>',
        ("", "", [ToolCall("f", '{"x": "é😀"}')]),
    ),
    "arguments before the name": (
        Thoughts.NONE, TOOLS, HERMES,
        '<tool_call>{"arguments": {"x": [1, "]"]}, "id": "7", "name": "f"}</tool_call>So.',
        ("", "So.", [ToolCall("f", '{"x": [1, "]"]}')]),
    ),
    "as clients have it": (
        Thoughts.NONE, TOOLS, LLAMA,
        '{"type": "function", "function": {"name": "f", "parameters": {"x": 1}}}',
        ("", "", [F1]),
    ),
    "line break in a text": (
        Thoughts.NONE, TOOLS, LLAMA, '{"name": "f", "parameters": {"x": "a\n\tb\\\\"}}',
        ("", "", [ToolCall("f", r'{"x": "a\n\tb\\"}')]),
    ),
    "cut short in its arguments": (
        Thoughts.NONE, TOOLS, HERMES, '<tool_call>{"name": "f", "arguments": {"x": "a',
        ("", "", [ToolCall("f", '{"x": "a')]),
    ),
    "none at all": (
        Thoughts.NONE, TOOLS, HERMES, '<tool_call>{"name": "f", "arguments": null}</tool_call>',
        ("", "", [ToolCall("f", "{}")]),
    ),
    "words behind": (
        Thoughts.NONE, TOOLS, HERMES, f'{CALL[:-12]} {{"so"}} on',
        ("", '{"so"} on', [F1]),
    ),
    "one is none": (
        Thoughts.NONE, TOOLS, HERMES, f"<tool_call>f(x)</tool_call> {CALL}",
        ("", "<tool_call>f(x)</tool_call>", [F1]),
    ),
    "mistral with ids": (
        Thoughts.NONE, TOOLS, MISTRAL, '[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{"x": 1}',
        ("", "", [F1]),
    ),
    "qwen coder is cut short": (
        Thoughts.NONE, TOOLS, QWEN_CODER,
        '<tool_call>\n<function=named>\n<parameter=name>\na "b"\n</para',
        ("", "", [ToolCall("named", '{"name": "a \\"b\\"\\n</para')]),
    ),
    "mistral says a word before": (
        Thoughts.NONE, TOOLS, MISTRAL, 'So. [TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]go.on[ARGS]{}',
        ("", "So.", [F1, F2]),
    ),
    "phi says a word before": (
        Thoughts.NONE, TOOLS, PHI,
        'So. <|tool_call|>[{"name": "f", "arguments": {"x": 1}}]<|/tool_call|>',
        ("", "So.", [F1]),
    ),
    "mistral says words": (Thoughts.NONE, TOOLS, MISTRAL, "for [x]", ("", "for [x]", [])),
    "deepseek": (
        Thoughts.NONE, TOOLS, DEEPSEEK,
        f'So.{BEGIN}{ONE}function{SEP}f\n```json\n{{"x": 1}}\n```{OVER}\n{LAST}',
        ("", "So.", [F1, F2]),
    ),
    "deepseek 3.1": (
        Thoughts.NONE, TOOLS, DEEPSEEK_PLAIN,
        f'{BEGIN}{ONE}f{SEP}{{"x": 1}}{OVER}{END}', ("", "", [F1]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_parts_are_the_same_however_a_text_is_cut(name: str, data: st.DataObject) -> None:
    """Whole, and by any pieces, down to single characters."""
    thoughts, tools, dialect, text, wanted = CASES[name]
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12).map(sorted))
    for at in (cuts, [], list(range(1, len(text)))):
        speech = heard(text, at, thoughts, tools, dialect)
        assert (speech.thoughts, speech.words, speech.calls) == wanted


@pytest.mark.parametrize("name", ["several", "llama", "mistral by name", "deepseek", "qwen coder"])
def test_no_more_than_one_call_is_heard_where_one_may_be(name: str) -> None:
    """What follows is nobody's words."""
    thoughts, tools, dialect, text, (_, words, calls) = CASES[name]
    assert tools
    alone = replace(tools, several=False)
    for cuts in ([], list(range(1, len(text)))):
        speech = heard(text, cuts, thoughts, alone, dialect)
        assert (speech.words, speech.calls) == (words, calls[:1])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(), JSON, max_size=4)


@given(
    st.sampled_from([HERMES, LLAMA, PHI, NEMOTRON, MISTRAL, DEEPSEEK, DEEPSEEK_PLAIN]),
    st.lists(st.tuples(st.sampled_from(TOOLS.names), ARGUMENTS), min_size=1, max_size=3),
    st.sampled_from([None, 2]),
    st.booleans(),
    st.data(),
)
def test_pieces_add_up_to_what_was_written(
    dialect: Dialect,
    called: list[tuple[str, dict[str, Any]]],
    indent: int | None,
    ascii_only: bool,
    data: st.DataObject,
) -> None:
    """Several calls, with any arguments, in every family's words and however it is cut."""
    texts = [json.dumps(a, indent=indent, ensure_ascii=ascii_only) for _, a in called]
    before, between, behind = dialect.around
    head, middle, tail = dialect.body
    each = [head + n + middle + t + tail for (n, _), t in zip(called, texts, strict=True)]
    text = before + between.join(each) + behind
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=20).map(sorted))
    speech = heard(text, cuts, Thoughts.NONE, TOOLS, dialect)
    assert speech.words == ""
    assert speech.calls == [ToolCall(n, t) for (n, _), t in zip(called, texts, strict=True)]


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", BEGIN, END, "{", "}",
                         "[", '"name": "f"', "[TOOL_CALLS]", "<function=f>",
                         "<parameter=f>", "f", " ", "\n", "x"])
    ).map("".join),
    st.sampled_from(list(Thoughts)),
    st.sampled_from([HERMES, LLAMA, MISTRAL, DEEPSEEK, QWEN_CODER]),
)  # fmt: skip
def test_no_answer_is_too_odd(text: str, thoughts: Thoughts, dialect: Dialect) -> None:
    """Nothing but marks, white space and calls is left out of what is told."""
    speech = heard(text, [], thoughts, TOOLS, dialect)
    assert len(speech.words) + len(speech.thoughts) <= len(text)
    if "f" not in text:
        assert speech.calls == []
        assert text.count("x") == (speech.words + speech.thoughts).count("x")
