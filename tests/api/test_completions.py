"""Texts that are gone on with: a gap filled, the prompt said again, a model described."""

from typing import Any

import pytest
from trio.testing import MockClock

from p2pinfer.client.infill import MARKS
from p2pinfer.engine.special_tokens import SpecialTokens
from tests.support.fake_engines import FakeEnds
from tests.support.fake_gateway import Call, fake_gateway, http

WORDS: dict[str, Any] = {"model": "toy-model", "prompt": "one two", "max_tokens": 2}


async def test_suffix_is_honoured_by_the_models_marks(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In completions and in Ollama's interface; a model without them says so."""
    asked: list[str] = []
    tokenize = FakeEnds.tokenize

    async def listen(ends: FakeEnds, text: str, **how: Any) -> list[int]:
        asked.append(text)
        return await tokenize(ends, text, **how)

    async def special(_: FakeEnds) -> SpecialTokens:
        return SpecialTokens(control=MARKS[0])

    monkeypatch.setattr(FakeEnds, "tokenize", listen)
    before, gap, middle = MARKS[0]
    async with fake_gateway() as (_, client, app), http(app) as ask:
        body = {**WORDS, "suffix": " four"}
        refused = await ask.post("/v1/completions", json=body)
        assert "no fill-in-the-middle tokens" in refused.json()["error"]["message"]
        monkeypatch.setattr(FakeEnds, "special_tokens", special)
        client.made.ends.script[:] = ["three", "3"]
        reply = (await ask.post("/v1/completions", json=body)).json()
        assert reply["choices"][0]["text"] == "three"
        assert asked[-1] == f"{before}one two{gap} four{middle}"
        said = {"model": "default", "prompt": "one two", "suffix": " four", "stream": False}
        told = (await ask.post("/api/generate", json=said)).json()
        assert told["response"] == "3"
        assert asked[-1] == asked[-2]
        tokens = await ask.post("/v1/completions", json={**body, "prompt": [1, 2]})
        assert "'prompt'" in tokens.json()["error"]["message"]


async def test_prompt_is_said_again(autojump_clock: MockClock) -> None:
    """Before each choice, whole and streamed; a gap in it is none."""
    body = {**WORDS, "prompt": ["one", "two"], "n": 2, "echo": True}
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        whole = (await ask.post("/v1/completions", json=body)).json()["choices"]
        call = Call("/v1/completions", {**body, "stream": True})
        await call.run(app)
        texts = ["", "", "", ""]
        for each in call.events:
            for choice in each["choices"]:
                texts[choice["index"]] += choice["text"]
        assert [each["text"] for each in whole] == texts
        assert [text[:3] for text in texts] == ["one", "one", "two", "two"]
        refused = await ask.post("/v1/completions", json={**body, "suffix": "x"})
        assert "'echo'" in refused.json()["error"]["message"]
        tokens = (await ask.post("/v1/completions", json={**body, "prompt": [7, 8]})).json()
    assert tokens["choices"][0]["text"].startswith(" 7 8 ")


async def test_model_is_described(autojump_clock: MockClock) -> None:
    """How long its sessions are, what it reads, how far its answers are checked."""
    async with fake_gateway() as (_, client, app), http(app) as ask:
        (found,) = (await ask.get("/v1/models")).json()["data"]
    assert found["context_length"] == found["max_model_len"] == client.ends.context
    assert found["meta"]["n_ctx_train"] == 2 * client.ends.context
    assert found["meta"]["n_params"] == 1600
    assert found["architecture"]["input_modalities"] == ["text"]
    assert found["p2pinfer"]["trust"] == {"audit_rate": 0.25, "require_verified": False}
