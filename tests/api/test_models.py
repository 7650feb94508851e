"""A gateway for all models of a swarm: which is asked, and which are open."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.api.app import make_app
from p2pinfer.api.gateway import Access, Gateway
from p2pinfer.api.metrics import Metrics
from p2pinfer.api.model_facts import context_of
from p2pinfer.api.models import IDLE_S_MAX, LOOK_S, OTHERS_MAX, Models
from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from tests.support.fake_gateway import MODEL, FakeClient, fake_gateway, fake_swarm, http
from tests.support.swarm import CONTEXT

OTHER, TWIN = "1" * 64, "2" * 64


class Opened:
    """Opens swarms of fakes in place of other models."""

    def __init__(self, own: Gateway) -> None:
        self.own, self.times = own, 0
        self.refusal: Exception | None = None

    @asynccontextmanager
    async def __call__(self, model: ModelId) -> AsyncIterator[Gateway]:
        """Open one."""
        self.times += 1
        if self.refusal:
            raise self.refusal
        async with fake_swarm() as (swarm, client):
            client.model.id = model
            client.made.ends.script[:] = ["of another"] * 9
            yield replace(self.own, swarm=swarm, running={}, is_own=False)


@asynccontextmanager
async def several(*names: str) -> AsyncIterator[tuple[Models, Opened, FakeClient]]:
    """Open a gateway in whose swarm other models are served, too."""
    async with fake_gateway() as (gateway, client, _), trio.open_nursery() as nursery:
        own = replace(gateway, metrics=Metrics())  # the fake's own application has taken the other
        client.others = {f"{number + 1}" * 64: name for number, name in enumerate(names)}
        opened = Opened(own)
        yield Models(own, nursery, opened), opened, client
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", [OTHER, "Other: Model", "other-model"])
async def test_request_chooses_by_id_or_name(autojump_clock: MockClock, name: str) -> None:
    """It is opened for the first request, and listed whether it is open or not."""
    async with (
        several("Other: Model") as (models, opened, _),
        http(make_app(models._own, models)) as ask,
    ):
        listed = (await ask.get("/v1/models")).json()["data"]
        assert [each["id"] for each in listed] == ["toy-model", "other-model"]
        assert opened.times == 0
        for _ in range(2):
            body = {"model": name, "prompt": "x", "max_tokens": 99}
            reply = (await ask.post("/v1/completions", json=body)).json()
            assert reply["model"] == "other-model"
            assert reply["choices"][0]["text"] == "of another"
        assert opened.times == 1
        body = {"model": "default", "prompt": "x"}
        reply = (await ask.post("/v1/completions", json=body)).json()
        assert reply["model"] == "toy-model"
        refused = await ask.post("/v1/completions", json={**body, "model": "gpt-9"})
        assert refused.status_code == 404
        assert "toy-model, other-model" in refused.json()["error"]["message"]
        assert (await ask.get("/v1/models/other-model")).json()["p2pinfer"]["model"] == OTHER


async def test_a_model_that_nobody_asked_yet_is_described(autojump_clock: MockClock) -> None:
    """As far as its peers tell: null is what is not known; it is not opened for that."""
    async with (
        several("Other: Model") as (models, opened, client),
        http(make_app(models._own, models)) as ask,
    ):
        own, other = (await ask.get("/v1/models")).json()["data"]
        assert other["context_length"] == other["max_model_len"] == CONTEXT
        assert other["architecture"] == own["architecture"]
        assert other["p2pinfer"]["trust"] == own["p2pinfer"]["trust"]
        assert (own["p2pinfer"]["open"], other["p2pinfer"]["open"]) == (True, False)
        assert (own["p2pinfer"]["layers"], other["p2pinfer"]["layers"]) == (30, 30)
        client.tells = False
        other = (await ask.get("/v1/models/other-model")).json()
        assert other["context_length"] is None
        assert other["p2pinfer"]["layers"] is None
        assert opened.times == 0


def offer(first: int, end: int, context: int) -> Advertisement:
    """Return a peer's advertisement for a model of ten layers."""
    return cast("Advertisement", SimpleNamespace(first=first, end=end, context=context, layers=10))


@pytest.mark.parametrize(
    ("offers", "context"),
    [
        ([], None),
        ([offer(1, 9, 4096)], 4096),
        ([offer(1, 5, 32768), offer(5, 9, 4096)], 4096),
        ([offer(1, 5, 32768), offer(4, 9, 32768), offer(1, 9, 512)], 32768),
        ([offer(1, 5, 32768), offer(6, 9, 32768)], None),
        ([offer(2, 9, 32768)], None),
    ],
)
def test_context_of_a_chain(offers: list[Advertisement], context: int | None) -> None:
    """That of its weakest part, where other peers do not have that, too."""
    assert context_of(offers, 1) == context


async def test_health_tells_of_each_open_model(autojump_clock: MockClock) -> None:
    """Another's trouble is told, and is not the gateway's own; with a key nothing is named."""
    async with several("Other: Model") as (models, _, _client):
        async with http(make_app(models._own, models)) as ask:
            assert (await ask.get("/health")).json() == {"status": "ok"}
            other = await models.find("other-model")
            cast("FakeClient", other.swarm.client).absent = "nobody serves layers 3:9"
            reply = await ask.get("/health")
            assert reply.status_code == 200
            said = {"toy-model": "ok", "other-model": "nobody serves layers 3:9"}
            assert reply.json() == {"status": "ok", "models": said}
        guarded = replace(models._own, access=Access("secret"), is_own=False)
        async with http(make_app(replace(guarded, metrics=Metrics()), models)) as ask:
            assert (await ask.get("/health")).json() == {"status": "ok"}


async def test_models_of_one_name_are_told_apart_by_their_ids(autojump_clock: MockClock) -> None:
    """The second is called by its id."""
    async with several("Other", "other") as (models, _, _):
        assert [each["id"] for each in models.describe()] == ["toy-model", "other", TWIN]
        assert models.judge("other") == OTHER
        assert models.judge(TWIN) == TWIN


async def test_model_that_nobody_asks_is_closed(autojump_clock: MockClock) -> None:
    """Its memory is this machine's; the next question opens it again."""
    async with several("Other") as (models, opened, _):
        await models.find("other")
        await trio.sleep(IDLE_S_MAX - LOOK_S)
        await models.find("other")
        await trio.sleep(IDLE_S_MAX - LOOK_S)
        assert (models.open, opened.times) == ([OTHER], 1)
        await trio.sleep(3 * LOOK_S)
        assert models.open == []
        await models.find("other")
        assert opened.times == 2


@pytest.mark.parametrize(
    "refusal",
    [UserError("no space for it"), OSError(errno.ENOSPC, "no space for it", "/parts")],
)
async def test_askers_at_once_open_a_model_once(
    autojump_clock: MockClock, refusal: Exception
) -> None:
    """And all learn why it cannot be opened; it is tried again later."""
    async with several("Other") as (models, opened, client):
        opened.refusal = refusal
        app = make_app(models._own, models)

        async def ask(status: int) -> None:
            async with http(app) as asking:
                body = {"model": "other", "prompt": "x"}
                reply = await asking.post("/v1/completions", json=body)
                assert reply.status_code == status
                assert status == 200 or "cannot be opened here: no space for it" in reply.text

        for status, times in ((503, 1), (200, 2)):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ask, status)
            assert opened.times == times
            opened.refusal = None
        assert client.opened == 0


async def test_longest_unused_model_makes_room(autojump_clock: MockClock) -> None:
    """No more are open than this machine is to run."""
    names = [f"m{number}" for number in range(OTHERS_MAX + 1)]
    async with several(*names) as (models, _, _):
        for name in names:
            await models.find(name)
            await trio.sleep(1)
        assert len(models.open) == OTHERS_MAX
        assert OTHER not in models.open
        assert MODEL not in models.open
