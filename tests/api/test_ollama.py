"""Ollama's interface, asked by its official client, before a scripted stand-in for a model."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import ollama
import pytest
from starlette.applications import Starlette
from trio.testing import MockClock

from p2pinfer.api import streams
from p2pinfer.api.gateway import Access
from p2pinfer.api.ollama import PATHS, OllamaChat
from p2pinfer.api.problems import Problem
from tests.support.fake_gateway import Call, fake_gateway, http

pytestmark = pytest.mark.usefixtures("prompts")

CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>'
TEMPLATE = (
    "{{ tools }}{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    "{% if enable_thinking is not defined or enable_thinking %}{{ '<think>' }}{% endif %}"
)
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
SAY: Sequence[dict[str, Any]] = [{"role": "user", "content": "Look."}]


@asynccontextmanager
async def official(*script: str, **more: Any) -> AsyncIterator[tuple[ollama.AsyncClient, Any]]:
    """Open the official client of a gateway whose model says what is scripted."""
    async with fake_gateway(chat_template=TEMPLATE, **more) as (_, client, app):
        client.made.ends.script[:] = script
        transport = httpx.ASGITransport(app=cast("Any", app), raise_app_exceptions=False)
        async with ollama.AsyncClient("http://localhost:80", transport=transport) as asking:
            yield asking, client


async def test_chat_has_thoughts_words_and_calls(autojump_clock: MockClock) -> None:
    """The stream's lines make up the whole; counts and durations are there."""
    said = f"Hm.</think>Well. {CALL}"
    async with official(said, said) as (asking, _):
        whole = await asking.chat("toy-model:latest", SAY, tools=[LOOK], options={"seed": -1})
        stream = await asking.chat("toy-model", SAY, tools=[LOOK], stream=True)
        lines = [each async for each in stream]
    message = whole.message
    assert (message.role, message.thinking, message.content) == ("assistant", "Hm.", "Well.")
    assert message.tool_calls
    assert [(each.function.name, each.function.arguments) for each in message.tool_calls] == [
        ("look", {"at": "é"})
    ]
    assert (whole.done, whole.done_reason) == (True, "stop")
    assert whole.prompt_eval_count
    assert whole.eval_count
    assert whole.total_duration is not None
    assert "".join(each.message.thinking or "" for each in lines) == "Hm."
    assert "".join(each.message.content or "" for each in lines) == "Well."
    assert [call for each in lines for call in each.message.tool_calls or []] == message.tool_calls
    assert [each.done for each in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1].eval_count == whole.eval_count


async def test_tools_results_reach_the_model(autojump_clock: MockClock, prompts: list[str]) -> None:
    """Though Ollama's calls have no ids: results belong to them by name, or in their order."""
    calls: list[dict[str, Any]] = [
        {"function": {"name": name, "arguments": {}}} for name in ("look", "hear")
    ]
    said = [
        *SAY,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_name": "hear", "content": "Quiet."},
        {"role": "tool", "content": "Dark."},
    ]
    async with official("It is dark.") as (asking, _):
        found = await asking.chat("default", said, think=False)
    assert found.message.content == "It is dark."
    assert "tool: Quiet. tool: Dark." in prompts[-1]
    messages = OllamaChat().chat_body({"messages": said})["messages"]
    look, hear = (each["id"] for each in messages[1]["tool_calls"])
    assert [each["tool_call_id"] for each in messages[2:]] == [hear, look]


async def test_generate_speaks_by_the_template_or_raw(
    autojump_clock: MockClock, prompts: list[str]
) -> None:
    """With a system message, or with the very prompt."""
    async with official("So.", "And so.", "Hm.</think>On.") as (asking, client):
        found = await asking.generate("default", "Go.", system="Be kind.", think=False)
        assert found.response == "So."
        assert "system: Be kind. user: Go." in prompts[-1]
        rendered = len(prompts)
        raw = await asking.generate("default", "Once", raw=True, options={"temperature": 0})
        assert (raw.response, len(prompts)) == ("And so.", rendered)
        assert raw.prompt_eval_count == len(await client.ends.tokenize("Once", special=True))
        stream = await asking.generate("default", "Go.", stream=True)
        lines = [each async for each in stream]
    assert "".join(each.thinking or "" for each in lines) == "Hm."
    assert "".join(each.response or "" for each in lines) == "On."


async def test_answer_keeps_to_a_format(autojump_clock: MockClock) -> None:
    """``json`` and a schema are held to; num_predict cuts."""
    schema = {"type": "object", "properties": {"tree": {"type": "string"}}}
    async with official(*(["{}"] * 3)) as (asking, client):
        for wanted in ("json", schema):
            await asking.chat("default", SAY, format=cast("Any", wanted), think=False)
            assert client.ends.started[-1].grammar
        cut = await asking.chat("default", SAY, options={"num_predict": 1, "top_k": 7})
        assert not client.ends.started[-1].grammar
        assert client.ends.started[-1].top_k == 7
        assert (cut.eval_count, cut.done_reason) == (1, "length")


async def test_assistants_last_words_are_gone_on_with(
    autojump_clock: MockClock, prompts: list[str]
) -> None:
    """As Ollama's templates have it."""
    said = [*SAY, {"role": "assistant", "content": "It is"}]
    async with official(" dark.") as (asking, _):
        found = await asking.chat("default", said)
        assert found.message.content == " dark."
        assert found.prompt_eval_count
    assert "assistant: It is" not in prompts[-1]


async def test_log_probabilities_are_told(autojump_clock: MockClock) -> None:
    """Of chats and raw prompts, where they are asked for."""
    async with official() as (asking, _):
        more: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "think": False}
        chat = await asking.chat("default", SAY, **more, options={"num_predict": 2})
        assert chat.logprobs
        assert all(each.top_logprobs for each in chat.logprobs)
        raw = await asking.generate("default", "x", raw=True, logprobs=True)
        assert raw.logprobs


async def test_models_are_listed_and_shown(autojump_clock: MockClock) -> None:
    """With their measures; the context is what sessions hold."""
    async with official() as (asking, client):
        (model,) = (await asking.list()).models
        assert (model.model, model.size) == ("toy-model", 1234)
        assert model.details
        assert (model.details.parameter_size, model.details.quantization_level) == (
            "1.60K",
            "Q4_1",
        )
        shown = await asking.show("toy-model")
        assert shown.modelinfo
        assert shown.modelinfo["toy.context_length"] == client.ends.context
        assert shown.capabilities == ["completion", "tools", "thinking"]
        (running,) = (await asking.ps()).models
        assert running.context_length == client.ends.context
        loaded = await asking.generate("toy-model", "", keep_alive=0)
        assert (loaded.done, loaded.done_reason) == (True, "unload")


async def test_refusals_have_ollamas_shape(autojump_clock: MockClock) -> None:
    """Each says what is wrong, in Ollama's words."""
    async with official(access=Access("secret")) as (asking, client):
        with pytest.raises(ollama.ResponseError, match="Incorrect API key"):
            await asking.list()
    async with official() as (asking, client):
        with pytest.raises(ollama.ResponseError, match="does not exist") as caught:
            await asking.chat("gpt", SAY)
        assert caught.value.status_code == 404
        with pytest.raises(ollama.ResponseError, match="makes no embeddings"):
            await asking.embed("default", "x")
        with pytest.raises(ollama.ResponseError, match="not fetched"):
            await asking.pull("default")
        with pytest.raises(ollama.ResponseError, match=r"'options\.temperature'"):
            await asking.chat("default", SAY, options={"temperature": "hot"})
        with pytest.raises(ollama.ResponseError, match=r"'mirostat'"):
            await asking.chat("default", SAY, options={"mirostat": 2})
        with pytest.raises(ollama.ResponseError, match="reads text alone"):
            await asking.chat("default", [{**SAY[0], "images": ["aGk="]}])
        with pytest.raises(ollama.ResponseError, match="'context'"):
            await asking.generate("default", "x", context=[1, 2])
        client.absent = "nobody serves layers 3:9"
        with pytest.raises(ollama.ResponseError, match="3:9"):
            async for _ in await asking.chat("default", SAY, stream=True):
                pass


async def test_silent_stream_sends_no_line(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """White space that a line begins with, since clients read each line as JSON."""
    monkeypatch.setattr(streams, "PING_S", 0.5)
    async with fake_gateway() as (_, client, app):
        client.made.ends.machine.decode_s = 2.0
        call = Call("/api/chat", {"model": "default", "messages": SAY})
        await call.run(app)
    assert call.headers["content-type"] == "application/x-ndjson"
    assert call.body.startswith(b" ")
    assert [json.loads(line) for line in call.body.splitlines()][-1]["done"]


async def test_paths_are_not_the_pages(autojump_clock: MockClock) -> None:
    """Each path is there once, and the page's own go on working."""
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        paths = [cast("Any", each).path for each in cast("Starlette", app).routes]
        assert len(paths) == len({*paths})
        assert {*PATHS} <= {*paths}
        assert not {"/api/state", "/api/events"} & {*PATHS}
        assert (await ask.get("/api/state")).status_code == 200
        assert (await ask.get("/api/version")).json()["version"].startswith("0.")
        fine = {"model": "default", "messages": SAY, "vendor": 1, "options": {"vendor": 1}}
        reply = await ask.post("/api/chat", json={**fine, "stream": False})
        assert reply.headers["x-p2pinfer-ignored"] == "vendor, options.vendor"
    assert OllamaChat().failed(Problem(500, "x")) == b'{"error": "x"}\n'
