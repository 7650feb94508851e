"""From messages to tokens: what is answered, and in which words the rest is refused."""

from collections.abc import Sequence
from typing import Any

import pytest
from trio.testing import MockClock

from p2pinfer.client.library import BYTES_PER_POSITION_MAX
from p2pinfer.engine.special_tokens import SpecialTokens
from tests.support.fake_gateway import fake_gateway, http
from tests.support.swarm import CONTEXT

WORDS = {"model": "toy-model", "prompt": "one two three", "max_tokens": 6}
BROKEN = "{% for m in messages %}"
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}{{ m.content }} {% endfor %}"
)


pytestmark = pytest.mark.usefixtures("prompts")


def chat(*contents: Any, **more: Any) -> dict[str, Any]:
    """Ask with messages of the user's."""
    messages = [{"role": "user", "content": each} for each in contents]
    return {"model": "toy-model", "messages": messages, "max_tokens": 4, **more}


@pytest.mark.parametrize("prompt", ["", [""]])
@pytest.mark.parametrize("stream", [False, True])
async def test_empty_prompt_is_refused_in_words(
    autojump_clock: MockClock, prompt: Any, stream: bool
) -> None:
    """A vocabulary that begins no text by itself makes nothing of it."""
    async with fake_gateway() as (gateway, _, app), http(app) as ask:
        body = {**WORDS, "prompt": prompt, "stream": stream}
        reply = await ask.post("/v1/completions", json=body)
        assert reply.status_code == 400
        assert "the prompt is empty" in reply.json()["error"]["message"]
        assert gateway.running == {}


async def test_template_that_says_nothing_is_refused_in_words(autojump_clock: MockClock) -> None:
    """It makes an empty prompt of whatever is asked."""
    async with fake_gateway(chat_template="{# nothing #}") as (_, _client, app), http(app) as ask:
        reply = await ask.post("/v1/chat/completions", json=chat("Hello"))
    assert reply.status_code == 400
    assert "the prompt is empty" in reply.json()["error"]["message"]


async def test_broken_template_refuses_chat_alone(autojump_clock: MockClock) -> None:
    """Completions need no template."""
    async with fake_gateway(chat_template=BROKEN) as (gateway, _, app), http(app) as ask:
        reply = await ask.post("/v1/chat/completions", json=chat("Hello"))
        assert reply.status_code == 400
        assert "chat template is broken" in reply.json()["error"]["message"]
        assert "ask for completions" in reply.json()["error"]["message"]
        assert (await ask.post("/v1/completions", json=WORDS)).status_code == 200
        assert "chat template is broken" in (gateway.swarm.remark() or "")


async def test_conversation_goes_on_after_a_stop(autojump_clock: MockClock) -> None:
    """The page keeps no answer that was stopped before its first word: the user asks twice."""
    async with fake_gateway(chat_template=STRICT) as (_, _client, app), http(app) as ask:
        reply = await ask.post("/v1/chat/completions", json=chat("Count.", "Count to two."))
    assert reply.status_code == 200
    assert reply.json()["usage"]["prompt_tokens"] == 4


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_text_far_longer_than_a_session_is_not_looked_at(
    autojump_clock: MockClock, path: str
) -> None:
    """It is refused by its length, before a template or a tokenizer has it."""
    text = "é" * (BYTES_PER_POSITION_MAX * CONTEXT // 2 + 1)
    async with fake_gateway(chat_template=BROKEN) as (_, client, app), http(app) as ask:

        async def tokenize(*_: object, **__: object) -> list[int]:
            raise AssertionError("it was looked at")

        client.ends.tokenize = tokenize  # type: ignore[method-assign]
        body = {**WORDS, "prompt": text} if path == "/v1/completions" else chat(text)
        reply = await ask.post(path, json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert f"the prompt has {len(text)} characters" in reply.json()["error"]["message"]


@pytest.mark.parametrize("asked", [{}, {"parse_special": False}, {"parse_special": True}])
async def test_special_tokens_in_messages_count_if_that_is_wanted(
    autojump_clock: MockClock, asked: dict[str, Any]
) -> None:
    """Else the tokenizer is told where they are text."""
    told: list[list[int]] = []
    source = "<|x|>{{ messages[0].content }}"
    async with fake_gateway(chat_template=source) as (_, client, app), http(app) as ask:
        ends = client.ends

        async def special_tokens() -> SpecialTokens:
            return SpecialTokens(control=("<|x|>",))

        async def tokenize(text: str, *, literal: Sequence[int] = (), **_: object) -> list[int]:
            assert text == "<|x|>a <|x|>"
            told.append(list(literal))
            return [1, 2]

        ends.special_tokens = special_tokens  # type: ignore[method-assign]
        ends.tokenize = tokenize  # type: ignore[method-assign]
        reply = await ask.post("/v1/chat/completions", json=chat("a <|x|>", **asked))
        assert reply.status_code == 200
    assert told == [[] if asked.get("parse_special") else [7]]


async def test_half_a_character_is_no_text(autojump_clock: MockClock) -> None:
    """Python reads one from a command line that is not UTF-8."""
    async with fake_gateway() as (gateway, _, _app):
        for asking in (
            gateway.swarm.tokenize("\udcff"),
            gateway.swarm.prompt_of([{"role": "user", "content": "\udcff"}]),
        ):
            with pytest.raises(Exception, match="the prompt is not text"):
                await asking
