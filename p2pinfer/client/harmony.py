"""How gpt-oss speaks, which its authors call harmony: messages, each in a channel.

    <|channel|>analysis<|message|>THOUGHTS<|end|>
    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{}<|call|>
    <|start|>assistant<|channel|>final<|message|>WORDS<|return|>

Source: OpenAI's documentation of the harmony response format.
"""

import json
import re
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from p2pinfer.client.call_reading import GrowingText, told
from p2pinfer.client.grammars import THOUGHTS_BEGIN, THOUGHTS_END, json_rule
from p2pinfer.client.speech import Heard, Hearing, Thought, Word
from p2pinfer.client.tool_calls import Tools
from p2pinfer.engine.template import Message

_BODY = "<|message|>"

NO_THOUGHTS = f"<|channel|>analysis{_BODY}<|end|><|start|>assistant"
"""Behind a prompt: nothing is thought before the answer."""

ANSWER_BEGINS = f"<|channel|>final{_BODY}"

EFFORTS = {"minimal": "low", "xhigh": "high", "max": "high"}
"""Words for how long to think that clients have, and the model does not."""

_ENDS = ("<|end|>", "<|start|>", "<|call|>", "<|return|>")

HEADER_CHARS_MAX = 512
"""Of what stands before a message: a tool's name, its server's, and marks. More is none."""

_TO = re.compile(r"\bto=(?:functions\.)?([\w.-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class HarmonySpeech(Hearing):
    """Hears messages in channels.

    Args:
        tools: what may be called, if anything.
        is_begun: the prompt holds the beginning of the answer's words.
    """

    def __init__(self, tools: Tools | None, *, is_begun: bool) -> None:
        super().__init__()
        self._source, self._tools = GrowingText(), tools
        self._is_thinking = False
        self._messages = self._heard(is_begun=is_begun)

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is a thought."""
        return self._is_thinking

    def _parts(self, text: str, *, is_over: bool) -> Iterator[Heard]:
        self._source.text += text
        self._source.is_over = is_over
        for part in self._messages:
            if part is None:
                return
            yield part

    def _heard(self, *, is_begun: bool) -> Generator[Heard | None, None, None]:
        source = self._source
        if is_begun:
            yield from self._body(Word)
        while (header := (yield from self._header())) is not None:
            to, channel = _TO.search(header), _CHANNEL.search(header)
            if to and self._tools and to[1] != "assistant":
                yield from source.skip_spaces()
                yield from told(to[1], source.pieces(*_ENDS))
                if not self._tools.several:
                    return
            elif to or (channel and channel[1] == "analysis"):  # to a tool that is not there
                self._is_thinking = True
                yield from self._body(Thought)
                self._is_thinking = False
            else:
                yield from self._body(Word)

    def _header(self) -> Generator[Word | None, None, str | None]:
        """Return what stands before the next message; None at the end."""
        source = self._source
        while (at := source.text.find(_BODY, source.at)) < 0:
            rest = source.text[source.at :]
            if source.is_over or len(rest) > HEADER_CHARS_MAX:
                is_words = bool(rest) and not rest.lstrip().startswith(("<|", "to=", "assistant"))
                if is_words or not source.is_over:
                    return ""  # of a model that does not keep to it
                return None
            yield None
        header, source.at = source.text[source.at : at], at + len(_BODY)
        source.drop()
        return header

    def _body(self, kind: type[Thought | Word]) -> Generator[Heard | None, None, None]:
        lead = "\n\n" if (self.thoughts if kind is Thought else self.words) else ""
        for piece in self._source.pieces(*_ENDS):
            if piece is None:
                yield None
            else:
                yield kind(lead + piece)
                lead = ""


class ChannelsText:
    """Makes of channels what other models say: words, behind thoughts between marks."""

    def __init__(self) -> None:
        self._speech = HarmonySpeech(None, is_begun=False)
        self._is_thought = False

    @property
    def words(self) -> str:
        """What was said so far, without thoughts."""
        return self._speech.words

    def feed(self, text: str) -> str:
        """Return the text that is certain now."""
        return self._written(self._speech.feed(text))

    def end(self) -> str:
        """Return what was held back, now that nothing follows."""
        return self._written(self._speech.end())

    def _written(self, parts: Iterator[Heard]) -> str:
        said = ""
        for part in parts:
            if isinstance(part, Thought):
                said += part.text if self._is_thought else f"{THOUGHTS_BEGIN}\n{part.text}"
                self._is_thought = True
            elif isinstance(part, Word):
                said += f"\n{THOUGHTS_END}\n\n{part.text}" if self._is_thought else part.text
                self._is_thought = False
        return said


def arranged(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation as the template wants it.

    It reads one call a message, takes what tools gave for that of the call before, and has thoughts
    under a name of its own, which stand for what was said before a call.
    """
    given = {each["tool_call_id"]: each for each in messages if each["role"] == "tool"}
    found: list[Message] = []
    taken: set[str] = set()
    for message in messages:
        calls = message.get("tool_calls")
        if not calls:
            if message.get("tool_call_id") not in taken:
                found.append(message)
            continue
        thoughts = [message.get("reasoning_content"), message["content"]]
        thought = "\n\n".join(each for each in thoughts if each)
        for call in calls:
            more = {"thinking": thought} if thought else {}
            found.append({"role": "assistant", "content": "", "tool_calls": [call], **more})
            thought = ""
            if len(calls) > 1 and (result := given.get(call["id"])):
                found.append(result)
                taken.add(call["id"])
    return found


def channels_grammar(shape: str | None, tools: Tools | None) -> str:
    """Return the grammar of an answer whose words keep to one, and whose calls are calls.

    Args:
        shape: of its words; None: they are free.
        tools: what it may call.
    """
    ways = [] if tools and tools.must else ["final"]
    ways += ["call"] if tools else []
    words = "@shape" if shape else "TEXT"
    rules = [
        f"start: step* ({' | '.join(ways)})",
        'step: <|channel|> ("analysis" | "commentary") <|message|> TEXT <|end|> next',
        'next: <|start|> "assistant"',
        rf"final: <|channel|> /final ?/ (<|constrain|> /\w+/)? <|message|> {words}",
        r"TEXT: /(.|\n)*/",
        *(_call_rules(tools) if tools else ()),
    ]
    grammars: list[dict[str, Any]] = [{"lark_grammar": "\n".join(rules)}]
    if shape:
        grammars.append({"name": "shape", "lark_grammar": shape})
    return json.dumps({"grammars": grammars})


def _call_rules(tools: Tools) -> Iterator[str]:
    yield "call: " + " | ".join(f"call_{at}" for at in range(len(tools.offered)))
    yield "kind: / ?/ <|constrain|> /json/ | / json/ |"
    for at, tool in enumerate(tools.offered):
        to = json.dumps(f" to=functions.{tool.name}", ensure_ascii=False)
        first = f'{to} <|channel|> "commentary"'
        last = f'<|channel|> ("commentary" | "analysis") {to}'
        yield f"call_{at}: ({first} | {last}) kind <|message|> arguments_{at}"
        yield f"arguments_{at}: {json_rule(tool.parameters, strict=tool.strict)}"
