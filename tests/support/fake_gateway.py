"""A gateway before a chain of real stages with fake engines, asked without a network."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import httpx
import trio
from attrs import evolve
from starlette.types import ASGIApp

from p2pinfer.api.app import make_app
from p2pinfer.api.gateway import Access, Gateway
from p2pinfer.api.telemetry import Telemetry
from p2pinfer.client.answer import ChatOptions
from p2pinfer.client.library import Swarm, open_swarm
from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.errors import NobodyServes
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.sampling import Sampling
from p2pinfer.core.trust import Trust
from p2pinfer.engine.gguf.sampling_advice import Advice
from p2pinfer.node.requester import Client
from peers.asking.experience import Experiences
from peers.asking.repair import Repair
from peers.asking.session import Beginning, Session
from scheduler.routing import RouteHop
from tests.support import swarm as chain
from tests.support.fake_engines import FakeEnds

MODEL = chain.MODEL
OPEN = Access()
NOW = 1_700_000_000
GREEDY = ChatOptions(Sampling(temperature=0.0), max_tokens=32)


class FakeClient:
    """What a gateway needs of a node's client, over a chain of fakes."""

    def __init__(self, made: chain.Swarm) -> None:
        self.made, self.ends = made, made.ends
        info = SimpleNamespace(
            name="Toy Model",
            architecture="toy",
            license=None,
            layers=30,
            width=8,
            vocabulary_tokens=50,
            context_tokens=2 * chain.CONTEXT,
            type_bytes={"Q4_1": 99},
            chat_template=None,
        )
        tensors = [SimpleNamespace(shape=(50, 8)), SimpleNamespace(shape=(1200,))]
        manifest = SimpleNamespace(size=1234, tensors=tensors)
        self.model = SimpleNamespace(id=MODEL, info=info, manifest=manifest, advice=Advice())
        self.audit_rate = 0.25
        self.absent = self.silent = ""
        self.engine_is_lost = False
        self.joins_conversations = True
        self.called = 0
        self.others: dict[str, str] = {}
        self.tells = True
        """Peers of the others are known."""
        self.opened = 0
        self.lengths = [chain.CONTEXT]
        """Of sessions; one gets the least that holds what it must."""
        self.trust: Trust | None = None
        self.repair: Repair | None = None
        self.experiences = Experiences(lambda _: 0.0123)
        self.relays: dict[PeerId, PeerId] = {}
        self.relay_to = self.relays.get
        self.transport = SimpleNamespace(path=(), punching={"won": 2, "lost": 1})
        self._numbers = count()

    def context_max(self) -> int:
        """Return what the longest session holds."""
        return self.lengths[-1]

    async def find_route(self, *_: object) -> list[RouteHop]:
        """Return the whole chain."""
        if self.absent:
            raise NobodyServes(self.absent)
        return [RouteHop(offer, offer.end) for offer in self.serving()]

    def open_session(
        self, _: object, on_wait: object = None, positions: int = 1
    ) -> AbstractAsyncContextManager[Session]:
        """Open a session through the chain."""
        self.opened += 1
        session = chain.session_id(next(self._numbers))
        context = next((n for n in self.lengths if n >= positions), self.lengths[-1])
        return self.made.requester.open(self.made.route, session, context, self.repair)

    def open_beside(self, beginning: Beginning, *_: object) -> AbstractAsyncContextManager[Session]:
        """Open a session that begins with another one's first positions."""
        self.opened += 1
        session = chain.session_id(next(self._numbers))
        route = beginning.session.route
        return self.made.requester.open(route, session, chain.CONTEXT, self.repair, beginning)

    async def examine(self, _: object) -> Trust | None:
        """Find what the test wants to be found."""
        return self.trust

    def certify(self, _: object, answer: str, trust: Trust) -> bytes:
        """Certify the answer's words."""
        return f"certificate: {answer}".encode()

    def serving(self) -> list[Advertisement]:
        """Return the chain's peers."""
        return [
            Advertisement(
                peer=hop.peer,
                addresses=(),
                model=MODEL,
                model_name="Toy Model",
                layers=30,
                first=hop.first,
                end=hop.end,
                context=chain.CONTEXT,
                numerics_class="0" * 32,
                sequence=1,
            )
            for hop in self.made.route
        ]

    peers = serving

    def models(self) -> dict[str, str]:
        """Return what the swarm serves besides."""
        return {MODEL: "Toy Model", **self.others}

    def seen(self, model: str) -> list[Advertisement]:
        """Return the chain's peers as if they served that one."""
        return [evolve(each, model=ModelId(model)) for each in self.serving()] if self.tells else []

    def missing(self) -> str:
        """Say what the test wants to be missing."""
        return self.absent

    async def trouble(self) -> str:
        """Say what the test wants to be silent."""
        self.called += 1
        return self.silent

    def failed(self) -> set[str]:
        """Blame nobody."""
        return set()


@asynccontextmanager
async def fake_swarm(
    sessions: int = 4, stage_sessions: int | None = None, chat_template: str | None = None
) -> AsyncIterator[tuple[Swarm, FakeClient]]:
    """Open a swarm of fakes that has ``sessions`` sessions."""
    ends = FakeEnds(sessions=sessions, context=chain.CONTEXT)
    async with chain.swarm(sessions=stage_sessions or sessions, ends=ends) as made:
        client = FakeClient(made)
        asker = cast("Client", client)
        async with open_swarm(asker, sessions, chat_template=chat_template) as swarm:
            yield swarm, client


@asynccontextmanager
async def fake_gateway(
    access: Access = OPEN,
    sessions: int = 4,
    chat_template: str | None = None,
    telemetry: Telemetry | None = None,
) -> AsyncIterator[tuple[Gateway, FakeClient, ASGIApp]]:
    """Open a gateway to a swarm of fakes."""
    async with fake_swarm(sessions, chat_template=chat_template) as (swarm, client):
        gateway = Gateway(swarm, GREEDY, access, now=lambda: NOW, telemetry=telemetry)
        yield gateway, client, make_app(gateway)


def http(app: ASGIApp, base_url: str = "http://localhost", **more: Any) -> httpx.AsyncClient:
    """Speak to an application as a client that reads whole replies."""
    transport = httpx.ASGITransport(app=cast("Any", app), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=base_url, **more)


class Call:
    """One request whose reply is looked at while it comes."""

    def __init__(self, path: str, body: dict[str, Any] | bytes = b"") -> None:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.done = False
        self._leave = trio.Event()
        self._news = trio.Event()
        self._asked: Sequence[dict[str, Any]] = [
            {"type": "http.request", "body": sent, "more_body": False}
        ]
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.1"},
            "http_version": "1.1",
            "method": "POST" if body else "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }

    async def run(self, app: ASGIApp) -> None:
        """Send the request and take the reply in."""
        asked = list(self._asked)

        async def receive() -> dict[str, Any]:
            if asked:
                return asked.pop()
            await self._leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            self.status = message.get("status", self.status)
            self.headers |= {k.decode(): v.decode() for k, v in message.get("headers", ())}
            self.body += message.get("body", b"")
            self._news.set()
            await trio.lowlevel.checkpoint()

        await app(self._scope, receive, send)
        self.done = True
        self._news.set()

    def leave(self) -> None:
        """Close the connection."""
        self._leave.set()

    async def wait_for(self, text: bytes) -> None:
        """Wait until the reply holds a text; AssertionError if it ends without."""
        while text not in self.body:
            assert not self.done, f"{text!r} did not come in {self.body!r}"
            self._news = trio.Event()
            await self._news.wait()

    @property
    def events(self) -> list[Any]:
        """The data of the events that came, the last word excluded."""
        lines = self.body.decode().split("\n\n")
        data = [line.partition("data: ")[2] for line in lines if "data: " in line]
        return [json.loads(each) for each in data if each != "[DONE]"]
