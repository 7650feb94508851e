"""A scripted stand-in for a model that uses tools well, behind a real gateway on a real port.

The gateway, its templates and its reading of calls are the product's own; stages and ends are the
fakes of unit tests, which say what a function of the prompt tells them to.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import cast

import trio

from p2pinfer.api.app import make_app
from p2pinfer.api.gateway import Access, Gateway
from p2pinfer.api.server import open_server
from p2pinfer.client import library
from p2pinfer.client.answer import ChatOptions
from p2pinfer.client.joining import SyncSwarm, _TrioThread
from p2pinfer.client.library import open_swarm
from p2pinfer.core.sampling import Sampling
from p2pinfer.node.requester import Client
from peers.asking.session import Session
from tests.support.fake_engines import VOCABULARY, FakeEnds, FakeStage, _FakeEndsSession
from tests.support.fake_gateway import FakeClient
from tests.support.swarm import ME, PEERS, Swarm, session_id
from transports.memory.network import MemoryNetwork

MODEL_NAME = "toy-model"
CONTEXT = 32_768
CHARACTERS_PER_TOKEN = 200
"""Agents send 100,000 characters and more, and each row of a fake takes as long as a real one."""

MARK = "<|{}|>"
"""Begins a message in a prompt, with its role; behind the last one the stand-in goes on."""

TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}" + MARK.format("{{ m.role }}") + "{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>"
    "{% endfor %}\n{% endfor %}" + MARK.format("assistant")
)

Speak = Callable[[str], str]
"""Says what follows a prompt; or, of a grammar, what keeps to it."""


class _Ends(FakeEnds):
    """Ends that answer by a function of the prompt, which its last token numbers."""

    def __init__(self, speak: Speak, fit: Speak | None) -> None:
        super().__init__(sessions=8, context=CONTEXT)
        self._speak, self._fit, self.prompts = speak, fit, list[str]()

    async def tokenize(
        self, text: str, *, special: bool, literal: Sequence[int] = (), most: int | None = None
    ) -> list[int]:
        """Make a token of each 200 characters, and one more that stands for the prompt."""
        self.prompts.append(text)
        starts = range(0, len(text), CHARACTERS_PER_TOKEN)
        pieces = [text[at : at + CHARACTERS_PER_TOKEN] for at in starts]
        tokens = [1 + sum(piece.encode()) % (VOCABULARY - 1) for piece in pieces]
        return [*tokens, VOCABULARY + len(self.prompts)]

    def open(self, context: int | None = None) -> "_EndsSession":
        """Reserve a session's cells."""
        return _EndsSession(self)

    def answer(self, last_token: int, grammar: str) -> str:
        """Say what follows the prompt that a token stands for."""
        if grammar and self._fit and (text := self._fit(grammar)):
            return text
        return self._speak(self.prompts[last_token - VOCABULARY - 1])


class _EndsSession(_FakeEndsSession):
    def start(self, sampling: Sampling, recent: list[int], said: Sequence[int] = ()) -> None:
        ends = cast("_Ends", self._ends)
        ends.script[:] = [ends.answer(recent[-1], sampling.grammar)]
        super().start(sampling, recent, said)


class _Client(FakeClient):
    def open_session(self, *_: object) -> AbstractAsyncContextManager[Session]:
        """Open a session with room for an agent's prompts."""
        self.opened += 1
        return self.made.requester.open(self.made.route, session_id(self.opened), CONTEXT)


@asynccontextmanager
async def stand_in_swarm(
    speak: Speak, fit: Speak | None = None
) -> AsyncIterator[tuple[library.Swarm, list[str]]]:
    """Open a swarm of a stand-in, for as long as the block lasts; gives the prompts it got, too.

    What is held to a grammar is said by ``fit``, if that is there and has something to say.
    """
    network, ends = MemoryNetwork(), _Ends(speak, fit)
    async with network.join(ME) as me, trio.open_nursery() as nursery:
        made = Swarm(nursery, network, me, ends)
        engine = FakeStage(1, 29, sessions=8, context=CONTEXT)
        await nursery.start(made.add, PEERS[0], engine)
        client = cast("Client", _Client(made))
        async with open_swarm(client, 8, chat_template=TEMPLATE) as swarm:
            yield swarm, ends.prompts
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def stand_in_gateway(speak: Speak) -> AsyncIterator[tuple[str, list[str]]]:
    """Serve a stand-in while the block lasts; gives the gateway's URL, and the prompts it got."""
    async with stand_in_swarm(speak) as (swarm, prompts):
        usual = ChatOptions(Sampling(temperature=0.0), max_tokens=None)
        app = make_app(Gateway(swarm, usual, Access()))
        async with open_server(app, "127.0.0.1", 0) as url:
            yield url, prompts


@contextmanager
def plain_stand_in(
    speak: Speak, fit: Speak | None = None
) -> Iterator[tuple[SyncSwarm, _TrioThread, list[str]]]:
    """Open the same for code without trio; gives the thread that it runs in, too."""
    prompts_of: list[list[str]] = []

    @asynccontextmanager
    async def opening() -> AsyncIterator[library.Swarm]:
        async with stand_in_swarm(speak, fit) as (swarm, prompts):
            prompts_of.append(prompts)
            yield swarm

    thread = _TrioThread(opening)
    try:
        yield SyncSwarm(thread.swarm, thread), thread, prompts_of[0]
    finally:
        thread.close()
