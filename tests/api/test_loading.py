"""What a gateway says before it can answer, and what its health is worth."""

import json

import trio
from trio.testing import MockClock

from p2pinfer.api.app import make_loading_app
from p2pinfer.api.gateway import CALLED_S, ENGINE_LOST, Access
from p2pinfer.api.loading import Loading
from p2pinfer.api.server import Front
from peers.parts.progress import Progress
from tests.support.fake_gateway import Call, fake_gateway, http


async def test_page_is_there_while_the_rest_is_loading() -> None:
    """Whatever asks is told to come again, and what is being done."""
    loading = Loading(2)
    app = make_loading_app(loading, Access())
    loading.step("probing layers 1:10 …")
    async with http(app) as ask:
        assert (await ask.get("/")).headers["content-type"].startswith("text/html")
        assert (await ask.get("/static/app.js")).status_code == 200
        assert (await ask.get("/version")).status_code == 200
        for path in ("/health", "/v1/models", "/metrics", "/api/state"):
            reply = await ask.get(path)
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
            assert "still loading (probing layers 1:10)" in reply.json()["error"]["message"]
        asked = await ask.post("/v1/chat/completions", json={"model": "default", "messages": []})
        assert asked.status_code == 503
        assert (await ask.get("/", headers={"host": "evil.example"})).status_code == 403
    async with http(make_loading_app(loading, Access("secret"))) as ask:
        assert (await ask.get("/v1/models")).status_code == 401


async def test_loading_is_told_until_it_is_over(autojump_clock: MockClock) -> None:
    """What is being done, and how far; then the page asks again, and gets the swarm."""
    async with fake_gateway() as (_, _client, app), trio.open_nursery() as nursery:
        loading = Loading(4)
        front = Front(make_loading_app(loading, Access()))
        watching = Call("/api/events")
        nursery.start_soon(watching.run, front)
        await watching.wait_for(b"starting")
        loading.next()
        loading.tell(Progress(30_000_000, 40_000_000, 1e6, 1))
        await watching.wait_for(b"fetching the model: 75% of 40.0 MB")
        front.app, loading.is_over = app, True
        await trio.sleep(1)
        assert watching.done
        assert watching.events[-1]["share"] == round(1.75 / 4, 3)
        assert loading.listeners == 0
        call = Call("/health")
        await call.run(front)
        assert call.status == 200


async def test_health_calls_the_peers_of_a_chain(autojump_clock: MockClock) -> None:
    """One that is silent has not left yet; and not every probe calls them again."""
    async with fake_gateway() as (_, client, app), http(app) as ask:
        assert (await ask.get("/health")).json() == {"status": "ok"}
        client.silent = "nobody serves layers 1:10; …abc does not answer"
        assert (await ask.get("/health")).status_code == 200
        assert client.called == 1
        await trio.sleep(CALLED_S)
        reply = await ask.get("/health")
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        assert reply.json()["error"]["message"] == client.silent
        client.absent = "nobody serves layers 1:29"
        assert (await ask.get("/health")).json()["error"]["message"] == client.absent
        client.engine_is_lost = True
        assert (await ask.get("/health")).json()["error"]["message"] == ENGINE_LOST


async def test_text_is_complete_before_it_is_checked(autojump_clock: MockClock) -> None:
    """A client need not wait for an audit; what it finds comes in a chunk of its own."""
    async with fake_gateway() as (_, client, app), trio.open_nursery() as nursery:
        audit = trio.Event()

        async def examine(_: object) -> None:
            await audit.wait()

        client.examine = examine  # type: ignore[method-assign]
        body = {"model": "default", "prompt": "one two", "max_tokens": 3, "stream": True}
        call = Call("/v1/completions", body)
        nursery.start_soon(call.run, app)
        await call.wait_for(b'"finish_reason": "length"')
        assert not call.done
        assert b'"p2pinfer"' not in call.body
        audit.set()
        await call.wait_for(b"data: [DONE]")
    *_, ended, checked = (event["choices"][0] for event in call.events)
    assert (ended["finish_reason"], checked["finish_reason"]) == ("length", None)
    assert checked["p2pinfer"]["route"]
    assert json.dumps(call.events).count('"length"') == 1
