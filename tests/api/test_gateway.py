"""The endpoints: shapes, status codes, streams, and who is let in."""

import json
import re
from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve
from starlette.types import ASGIApp
from trio.testing import MockClock

from p2pinfer.api.completions import BODY_BYTES_MAX
from p2pinfer.api.gateway import Access
from p2pinfer.api.streams import PING_S
from p2pinfer.cli.serve import _access
from p2pinfer.client.library import Swarm
from p2pinfer.core.continuity import Break
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.trust import Trust
from p2pinfer.engine.template import Prompt
from tests.support.fake_gateway import Call, fake_gateway, http

WORDS = {"model": "toy-model", "prompt": "one two three", "max_tokens": 6}
KEY = {"authorization": "Bearer secret"}


@pytest.fixture
def _renders_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make prompts without a template: its process would not wait for a mock clock."""

    async def render(_: Swarm, messages: list[dict[str, str]], **_more: object) -> Prompt:
        return Prompt(" ".join(each["content"] for each in messages))

    monkeypatch.setattr(Swarm, "render", render)


async def test_models_are_listed_and_found_by_any_of_their_names(
    autojump_clock: MockClock,
) -> None:
    """The short name, the id, and ``default``."""
    async with fake_gateway() as (_, client, app), http(app) as ask:
        (listed,) = (await ask.get("/v1/models")).json()["data"]
        assert listed["id"] == "toy-model"
        assert listed["p2pinfer"]["model"] == client.model.id
        for name in ("toy-model", client.model.id, "default", "Toy Model"):
            assert (await ask.get(f"/v1/models/{name}")).json() == listed
        missing = await ask.get("/v1/models/gpt-4o")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "model_not_found"


async def test_completion_says_what_it_took(autojump_clock: MockClock) -> None:
    """Text, usage, and the route."""
    async with fake_gateway() as (_, client, app), http(app) as ask:
        reply = (await ask.post("/v1/completions", json=WORDS)).json()
        again = (await ask.post("/v1/completions", json=WORDS)).json()
    assert reply["object"] == "text_completion"
    assert len(reply["choices"][0]["text"].split()) == 6
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["prompt_tokens"] == 3
    assert reply["usage"]["completion_tokens"] == 6
    assert len(reply["choices"][0]["p2pinfer"]["route"]) == len(client.made.route)
    assert again["choices"][0]["text"] == reply["choices"][0]["text"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 2


@pytest.mark.usefixtures("_renders_plainly")
async def test_stream_says_the_same_as_the_whole(autojump_clock: MockClock) -> None:
    """Role first, pieces, why it ended, usage if wanted, and the last word."""
    asked: dict[str, Any] = {
        "model": "toy-model",
        "messages": [{"role": "user", "content": "one two"}],
        "max_tokens": 5,
    }
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        whole = (await ask.post("/v1/chat/completions", json=asked)).json()
        more = {"stream": True, "stream_options": {"include_usage": True}}
        call = Call("/v1/chat/completions", {**asked, **more})
        await call.run(app)
    first, *pieces, end, checked, usage = call.events
    assert call.status == 200
    assert call.body.endswith(b"data: [DONE]\n\n")
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    assert text == whole["choices"][0]["message"]["content"]
    assert end["choices"][0]["finish_reason"] == "length"
    assert checked["choices"][0]["finish_reason"] is None
    assert checked["choices"][0]["delta"] == {}
    assert checked["choices"][0]["p2pinfer"]["route"]
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 7
    assert {each["id"] for each in call.events} == {first["id"]}
    assert first["object"] == "chat.completion.chunk"


async def test_several_choices_and_prompts_are_numbered(autojump_clock: MockClock) -> None:
    """Choices of one prompt differ by their seeds, and are the same when asked again."""
    asked = {**WORDS, "prompt": ["one two", [5, 6, 7]], "n": 2, "temperature": 1, "seed": 3}
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        found = (await ask.post("/v1/completions", json=asked)).json()
        again = (await ask.post("/v1/completions", json=asked)).json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert len({choice["text"] for choice in found["choices"]}) == 4
    texts = [choice["text"] for choice in found["choices"]]
    assert texts == [choice["text"] for choice in again["choices"]]
    assert found["usage"]["prompt_tokens"] == 5


async def test_stop_text_ends_an_answer_and_is_not_part_of_it(autojump_clock: MockClock) -> None:
    """Also where it lies across two pieces."""
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        text = (await ask.post("/v1/completions", json=WORDS)).json()["choices"][0]["text"]
        asked = {**WORDS, "stop": text[7:12]}
        choice = (await ask.post("/v1/completions", json=asked)).json()["choices"][0]
    assert choice["text"] == text[: text.index(text[7:12])]
    assert choice["finish_reason"] == "stop"


async def test_client_that_leaves_frees_its_session_at_once(autojump_clock: MockClock) -> None:
    """In the middle of a stream, in a prompt, and while it waits in the queue."""
    long = {**WORDS, "max_tokens": 100, "stream": True}
    async with fake_gateway(sessions=1) as (gateway, client, app), trio.open_nursery() as nursery:
        pool = gateway.swarm.pool
        first, second, whole = (Call("/v1/completions", long) for _ in range(3))
        client.made.ends.machine.decode_s = 1.0
        nursery.start_soon(first.run, app)
        await first.wait_for(b'"text"')
        nursery.start_soon(second.run, app)
        nursery.start_soon(whole.run, app)
        await trio.testing.wait_all_tasks_blocked()
        assert (pool.running, pool.waiting) == (1, 2)
        second.leave()
        first.leave()
        await trio.testing.wait_all_tasks_blocked()
        assert first.done
        assert second.done
        assert (pool.running, pool.waiting) == (1, 0)
        whole.leave()
        await trio.testing.wait_all_tasks_blocked()
        assert (pool.running, len(gateway.running)) == (0, 0)
        assert b'p2pinfer_answers_total{trust="unfinished"} 3.0' in gateway.metrics.render()


async def test_silence_is_filled_with_comments(autojump_clock: MockClock) -> None:
    """A prompt that takes a minute keeps its connection."""
    async with fake_gateway() as (_, client, app):
        client.made.ends.machine.decode_s = 2.2 * PING_S
        call = Call("/v1/completions", {**WORDS, "max_tokens": 1, "stream": True})
        await call.run(app)
    assert call.body.startswith(b": ping\n\n")
    assert call.body.endswith(b"data: [DONE]\n\n")


async def test_failure_has_a_status_before_the_answer_and_an_event_in_it(
    autojump_clock: MockClock,
) -> None:
    """An OpenAI client raises for both."""
    async with fake_gateway() as (_, client, app), trio.open_nursery() as nursery:
        client.absent = "nobody serves layers 1:29"
        call = Call("/v1/completions", {**WORDS, "stream": True})
        await call.run(app)
        assert call.status == 503
        assert json.loads(call.body)["error"]["code"] == "no_route"
        client.absent = ""
        client.made.ends.machine.decode_s = 1.0
        call = Call("/v1/completions", {**WORDS, "max_tokens": 100, "stream": True})
        nursery.start_soon(call.run, app)
        await call.wait_for(b'"text"')
        client.absent = "nobody serves layers 10:20"  # else another session goes on
        client.made.engines[1].machine.die()
        await call.wait_for(b'"error"')
        assert call.status == 200
        assert call.events[-1]["error"]["type"] == "unavailable_error"
        assert b"[DONE]" not in call.body


async def test_prompt_that_is_too_long_is_said_in_openais_word(autojump_clock: MockClock) -> None:
    """Clients shorten the conversation when they read it."""
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        reply = await ask.post("/v1/completions", json={**WORDS, "prompt": "word " * 500})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "status"),
    [(b" ", 400), (b"{", 400), (b"[1]", 400), (b"[" * 100_000, 400), (b"{}", 400),
     (b'{"model": "toy-model", "prompt": "\\ud800"}', 400), (b'{"model": 5}', 400),
     (b'{"model": "other", "prompt": "x"}', 404), (b" " * (BODY_BYTES_MAX + 1), 413),
     (b'{"model": "toy-model", "prompt": [999999999]}', 400),
     (b'{"model": "toy-model", "prompt": [-1]}', 400),
     (b'{"model": "toy-model", "prompt": "x", "metadata": NaN}', 400),
     (b'{"model": "toy-model", "prompt": "x", "metadata": [1e999]}', 400)],
)  # fmt: skip
async def test_bodies_that_cannot_be_answered(
    autojump_clock: MockClock, body: bytes, status: int
) -> None:
    """Each gets the envelope, and none of them ends the gateway."""
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        call = Call("/v1/completions", body)
        await call.run(app)
        assert call.status == status
        assert set(json.loads(call.body)["error"]) == {"message", "type", "param", "code"}
        assert (await ask.get("/health")).status_code == 200


async def test_unknown_places_and_methods_are_refused(autojump_clock: MockClock) -> None:
    """In the envelope too."""
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        assert (await ask.get("/v1/nowhere")).status_code == 404
        assert (await ask.get("/static/../app.py")).status_code == 404
        reply = await ask.get("/v1/chat/completions")
        assert reply.status_code == 405
        assert reply.json()["error"]["message"] == "Invalid URL (GET /v1/chat/completions)"


async def test_key_opens_all_but_the_page(autojump_clock: MockClock) -> None:
    """Nothing of the swarm is told without it."""
    async with fake_gateway(Access("secret")) as (_, _client, app), http(app) as ask:
        for path in ("/v1/models", "/api/state", "/metrics", "/v1/nothing"):
            reply = await ask.get(path)
            assert reply.status_code == 401
            assert reply.json()["error"]["code"] == "invalid_api_key"
            assert (await ask.get(path, headers={"authorization": "Bearer x"})).status_code == 401
        assert (await ask.get("/v1/models", headers=KEY)).status_code == 200
        for path in ("/", "/health", "/version"):
            assert (await ask.get(path)).status_code == 200


def test_a_key_that_no_client_can_send_is_refused() -> None:
    """Headers are ASCII, and lose what is blank around them: everybody would be turned away."""
    assert _access("0.0.0.0", "s3cret/+=", ()).api_key == "s3cret/+="
    for key in ("schlüssel", "secret\n", " secret", "caf\udce9"):
        with pytest.raises(UserError, match="--api-key"):
            _access("127.0.0.1", key, ())


async def test_pages_of_other_sites_are_turned_away(autojump_clock: MockClock) -> None:
    """By their origin, and by a name that only they would call this machine."""
    async with fake_gateway() as (_, _client, app):
        async with http(app) as ask:
            own = {"origin": "http://localhost"}
            other = {"origin": "http://evil.example"}
            assert (await ask.get("/v1/models", headers=own)).status_code == 200
            assert (await ask.get("/v1/models", headers=other)).status_code == 403
            assert (await ask.get("/v1/models", headers={"origin": "null"})).status_code == 403
        for name, status in (
            ("evil.example", 403),
            ("127.0.0.1.evil.example", 403),
            ("192.0.2.1", 403),
            ("127.0.0.2:11550", 200),
            ("[::1]:11550", 200),
        ):
            async with http(app, f"http://{name}") as ask:
                assert (await ask.get("/v1/models")).status_code == status


async def test_named_origins_may_ask(autojump_clock: MockClock) -> None:
    """A browser is told so, before and with each reply."""
    access = Access(origins=("https://chat.example",))
    headers = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    async with fake_gateway(access) as (_, _client, app), http(app) as ask:
        preflight = await ask.options("/v1/chat/completions", headers=headers)
        assert preflight.status_code == 200
        reply = await ask.get("/v1/models", headers=headers)
        assert reply.headers["access-control-allow-origin"] == "https://chat.example"
        assert (await ask.get("/v1/models", headers={"origin": "https://x"})).status_code == 403


@pytest.mark.parametrize("why", ["key", "path", "body", "bug"])
async def test_named_origins_may_read_what_went_wrong(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """A browser shows a reply without these headers as a network error."""
    access = Access("secret", ("https://chat.example",))
    headers = {"origin": "https://chat.example"} | (KEY if why != "key" else {})
    async with fake_gateway(access) as (gateway, client, app), http(app) as ask:
        if why == "bug":
            monkeypatch.setattr(client, "missing", lambda: 1 / 0)
        path = {"path": "/v1/nothing", "bug": "/health"}.get(why, "/v1/chat/completions")
        method = "GET" if why == "bug" else "POST"
        reply = await ask.request(method, path, json={}, headers=headers)
        assert reply.status_code == {"key": 401, "path": 404, "bug": 500}.get(why, 400)
        assert reply.json()["error"]["message"]
        assert reply.headers["access-control-allow-origin"] == "https://chat.example"
        if method == "POST":
            counted = gateway.metrics.render().decode()
            assert re.search(rf'requests_total\{{.*"{reply.status_code}"\}} 1', counted)


async def test_a_proxy_may_call_it_by_another_name(autojump_clock: MockClock) -> None:
    """The one that the owner has named, with its page, whether the proxy passes its name on."""
    access = Access(hosts=("box.example.org",))
    page = {"origin": "https://box.example.org"}
    async with fake_gateway(access) as (_, _client, app):
        for name, headers, status in (
            ("box.example.org", {}, 200),
            ("BOX.example.org:8443", page, 200),
            ("localhost:11550", page, 200),
            ("other.example.org", {}, 403),
            ("localhost", {"origin": "https://other.example.org"}, 403),
        ):
            async with http(app, "http://localhost") as ask:
                reply = await ask.get("/v1/models", headers={"host": name, **headers})
                assert reply.status_code == status, name
        assert "--allow-host" in (await ask_as(app, "other.example.org"))["error"]["message"]


async def ask_as(app: ASGIApp, name: str) -> dict[str, Any]:
    """Return what is said to a request that calls the gateway so."""
    async with http(app) as ask:
        found: dict[str, Any] = (await ask.get("/v1/models", headers={"host": name})).json()
        return found


def test_a_name_is_a_bare_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a URL nor with a port; without a key, anything the proxy lets through may ask."""
    assert _access("127.0.0.1", "key", (), ("Box.example.org",)).hosts == ("box.example.org",)
    assert capsys.readouterr().err == ""
    assert _access("127.0.0.1", None, (), ("box.ts.net",)).only_local_names
    assert "anyone who can reach box.ts.net can use this gateway" in capsys.readouterr().err
    for name in ("https://box.ts.net", "box.ts.net:443", "", "a/b", "a b"):
        with pytest.raises(UserError, match="--allow-host"):
            _access("127.0.0.1", "key", (), (name,))


async def test_health_is_bad_until_a_whole_route_is_there(autojump_clock: MockClock) -> None:
    """As llama.cpp says it while it loads."""
    async with fake_gateway() as (_, client, app), http(app) as ask:
        client.absent = "nobody serves layers 10:19"
        reply = await ask.get("/health")
        assert reply.status_code == 503
        assert reply.json()["error"]["message"] == client.absent
        client.absent = ""
        assert (await ask.get("/health")).json() == {"status": "ok"}


async def test_metrics_count_what_happened(autojump_clock: MockClock) -> None:
    """Requests by status, tokens by role, and times."""
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        await ask.post("/v1/completions", json=WORDS)
        await ask.post("/v1/completions", json={})
        lines = (await ask.get("/metrics")).text.splitlines()
    for line in (
        'p2pinfer_requests_total{status="200"} 1.0',
        'p2pinfer_requests_total{status="400"} 1.0',
        'p2pinfer_tokens_total{role="answer"} 6.0',
        'p2pinfer_tokens_total{role="prompt"} 3.0',
        "p2pinfer_time_to_first_token_seconds_count 1.0",
        "p2pinfer_inter_token_seconds_count 5.0",
        "p2pinfer_requests_running 0.0",
        "p2pinfer_sessions_idle 1.0",
        "p2pinfer_sessions_max 4.0",
        "p2pinfer_peers 3.0",
        "p2pinfer_route_complete 1.0",
        'p2pinfer_punches_total{result="won"} 2.0',
        'p2pinfer_punches_total{result="lost"} 1.0',
    ):
        assert line in lines
    assert any(line.startswith('p2pinfer_network_bytes_total{direction="sent"} ') for line in lines)


async def test_answer_says_what_was_checked_of_it(autojump_clock: MockClock) -> None:
    """In the body, in a header, and in the counts; and in the last piece of a stream."""
    async with fake_gateway() as (_, client, app), http(app) as ask:
        client.trust = Trust(stages=3, positions=9, rate=0.1)
        reply = await ask.post("/v1/completions", json=WORDS)
        assert reply.headers["x-p2pinfer-trust"] == "held; stages=3; audits=0"
        (choice,) = reply.json()["choices"]
        assert choice["p2pinfer"]["trust"]["line"] == client.trust.line()
        client.trust = evolve(client.trust, broken=Break((PeerId("x"),), 5, "it signed no receipt"))
        call = Call("/v1/completions", {**WORDS, "stream": True})
        await call.run(app)
        (choice,) = call.events[-1]["choices"]
        assert not choice["p2pinfer"]["trust"]["held"]
        lines = (await ask.get("/metrics")).text.splitlines()
        assert 'p2pinfer_answers_total{trust="held"} 1.0' in lines
        assert 'p2pinfer_answers_total{trust="broken"} 1.0' in lines


async def test_gateways_seed_is_for_whoever_names_none(autojump_clock: MockClock) -> None:
    """Without one each answer has a seed of its own."""
    asked = {**WORDS, "temperature": 1}
    async with fake_gateway() as (gateway, _client, app), http(app) as ask:

        async def texts() -> set[str]:
            replies = [(await ask.post("/v1/completions", json=asked)).json() for _ in range(3)]
            return {reply["choices"][0]["text"] for reply in replies}

        assert len(await texts()) == 3
        gateway.seed = 5
        assert len(await texts()) == 1


async def test_page_is_served_with_a_policy(autojump_clock: MockClock) -> None:
    """Scripts and styles are files of this gateway alone."""
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        page = await ask.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


async def test_answers_are_held_to_the_grammar_that_was_read(autojump_clock: MockClock) -> None:
    """A bad one, and a token that there is not, are a client's mistake."""
    async with fake_gateway() as (_, client, app), http(app) as ask:
        good = {**WORDS, "grammar": "root", "logit_bias": {"5": 2}}
        assert (await ask.post("/v1/completions", json=good)).status_code == 200
        sampled = client.made.ends.started[-1]
        assert (sampled.grammar, sampled.logit_bias) == ("gbnf: root", ((5, 2.0),))
        for bad, words in (
            ({"grammar": "bad"}, "cannot be kept to"),
            ({"response_format": {"type": "json_object", "schema": {"bad": 1}}}, "it is bad"),
            ({"logit_bias": {"50": 1}}, "from 0 to 49"),
        ):
            reply = await ask.post("/v1/completions", json={**WORDS, **bad})
            assert reply.status_code == 400
            assert words in reply.json()["error"]["message"]
