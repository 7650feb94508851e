"""``logprobs``: in both shapes, whole and streamed, and nothing of what a stop string cut off."""

from itertools import accumulate, chain
from typing import Any

import pytest
from trio.testing import MockClock

from p2pinfer.api import gateway
from p2pinfer.api.logprobs import chat_scores, completion_scores
from p2pinfer.client.answer import Scored
from p2pinfer.engine.base import Candidate
from tests.support.fake_gateway import Call, fake_gateway, http

WORDS = {"model": "toy-model", "prompt": "one two three", "max_tokens": 6, "logprobs": 2}


async def test_completion_tells_what_else_could_have_stood_there(autojump_clock: MockClock) -> None:
    """Each token where it stands in the text, and the drawn one among the likeliest."""
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        (choice,) = (await ask.post("/v1/completions", json=WORDS)).json()["choices"]
        plain = (await ask.post("/v1/completions", json={**WORDS, "logprobs": None})).json()
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    assert len(told["tokens"]) == 6
    assert told["text_offset"] == [0, *accumulate(map(len, told["tokens"][:-1]))]
    for token, own, top in zip(
        *(told[n] for n in ("tokens", "token_logprobs", "top_logprobs")), strict=True
    ):
        assert top[token] == own == max(top.values())
        assert len(top) == 2
    assert plain["choices"][0]["logprobs"] is None
    assert plain["choices"][0]["text"] == choice["text"]


async def test_stream_tells_the_same_as_the_whole(autojump_clock: MockClock) -> None:
    """Each token once, with the piece that completes it; a stop string takes its own along."""
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        free = (await ask.post("/v1/completions", json=WORDS)).json()["choices"][0]
        stop = free["text"][7:12]
        asked = {**WORDS, "stop": stop}
        (whole,) = (await ask.post("/v1/completions", json=asked)).json()["choices"]
        call = Call("/v1/completions", {**asked, "stream": True})
        await call.run(app)
    assert whole["text"] == free["text"][: free["text"].index(stop)]
    pieces = [each["choices"][0] for each in call.events]
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    told = [piece["logprobs"] for piece in pieces if piece["logprobs"]]
    for name, values in whole["logprobs"].items():
        assert list(chain.from_iterable(each[name] for each in told)) == values
    assert whole["logprobs"]["text_offset"][-1] < len(whole["text"])
    assert len(whole["logprobs"]["tokens"]) < 6


def scored(*pieces: bytes) -> list[Scored]:
    """Return a token whose candidates stand for these bytes."""
    return [Scored(3, tuple(Candidate(n, each, -1.0 - n) for n, each in enumerate(pieces)))]


def test_half_a_character_is_told_by_its_bytes() -> None:
    """In the chat's shape beside it, in the completion's as its name."""
    scores = scored(b"\xe2\x82", "ä".encode())
    entry: dict[str, Any] = chat_scores(scores)["content"][0]  # type: ignore[index] # it is there
    assert entry["token"] == "\ufffd"
    assert entry["bytes"] == [0xE2, 0x82]
    assert entry["top_logprobs"] == [{"token": "ä", "logprob": -2.0, "bytes": [0xC3, 0xA4]}]
    assert completion_scores(scores) == {
        "tokens": ["bytes:\\xe2\\x82"],
        "token_logprobs": [-1.0],
        "top_logprobs": [{"bytes:\\xe2\\x82": -1.0, "ä": -2.0}],
        "text_offset": [3],
    }
    assert chat_scores([]) is completion_scores([]) is None


async def test_prompt_is_scored_where_it_is_echoed(autojump_clock: MockClock) -> None:
    """Its first token has nothing before it; the answer's are the same, behind it."""
    async with fake_gateway() as (_, client, app), http(app) as ask:
        (plain,) = (await ask.post("/v1/completions", json=WORDS)).json()["choices"]
        body = {**WORDS, "prompt": [3, 4, 5], "echo": True, "n": 2}
        whole, other = (await ask.post("/v1/completions", json=body)).json()["choices"]
        call = Call("/v1/completions", {**body, "stream": True})
        await call.run(app)
        scored = [each.prompt_logprobs for each in client.made.ends.started]
        empty = (await ask.post("/v1/completions", json={**body, "max_tokens": 0})).json()
    assert scored == [None, 2, None, 2, None]
    told = whole["logprobs"]
    assert whole["text"].startswith(" 3 4 5")
    assert told["tokens"][:3] == [" 3", " 4", " 5"]
    assert told["text_offset"][:4] == [0, 2, 4, 6]
    assert told["token_logprobs"][:3] == [None, -1.0, -2.0]
    assert told["top_logprobs"][0] is None
    assert len(told["tokens"]) == 3 + 6
    assert told["text_offset"][3:] == [6 + at for at in plain["logprobs"]["text_offset"]]
    assert other["logprobs"]["token_logprobs"][:3] == told["token_logprobs"][:3]
    pieces = [e["choices"][0] for e in call.events if e["choices"][0]["index"] == 0]
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    for name, values in told.items():
        found = [piece["logprobs"][name] for piece in pieces if piece["logprobs"]]
        assert list(chain.from_iterable(found)) == values
    for choice in empty["choices"]:
        assert (choice["text"], choice["finish_reason"]) == (" 3 4 5", "length")
        assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -2.0]


async def test_long_prompts_are_not_scored(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a request together; a sentence says how many would be."""
    monkeypatch.setattr(gateway, "SCORED_TOKENS_MAX", 5)
    async with fake_gateway() as (_, client, app), http(app) as ask:
        body = {**WORDS, "prompt": [[1, 2, 3], [4, 5, 6]], "echo": True}
        reply = await ask.post("/v1/completions", json=body)
        assert reply.status_code == 400
        assert "5 tokens at most" in reply.json()["error"]["message"]
        assert client.opened == 0
        assert (await ask.post("/v1/completions", json={**body, "logprobs": None})).is_success
