"""A conversation with the swarm: messages in, streamed text out, and what it took."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import trio

from p2pinfer.core.errors import PeerError
from p2pinfer.core.messages import Advertisement
from p2pinfer.core.sampling import Sampling
from p2pinfer.core.text import TextStream
from p2pinfer.engine.template import ChatTemplate, Message
from p2pinfer.node import Client
from peers.requester import Session

MAX_TOKENS_DEFAULT = 1024

ATTEMPTS_MAX = 4
"""While nothing has been shown: the old session may be gone for its age, and a peer that has left
is spoken of for a while. The client chooses another route each time, if there is one."""


@dataclass
class Answer:
    """What the model said, and how it went."""

    text: str = ""
    tokens: int = 0
    """Tokens of the answer, the one that ended it included."""
    prompt_tokens: int = 0
    reused_tokens: int = 0
    """How many of the prompt's tokens the stages still held from before."""
    tokens_per_second: float = 0.0
    """Of decoding: the first token, which waits for the prompt, is not counted."""
    time_to_first_token_ms: float = 0.0
    finish: str = "interrupted"
    """``stop``: the model ended or a stop string came; ``length``; ``interrupted``."""
    route: list[dict[str, Any]] = field(default_factory=list)
    """Per stage the peer and its layers, ``first:end``."""

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return asdict(self)


@dataclass(frozen=True)
class ChatOptions:
    """How answers are made."""

    sampling: Sampling
    max_tokens: int = MAX_TOKENS_DEFAULT
    system: str | None = None
    stops: Sequence[str] = ()


class Conversation:
    """Questions and answers over one session, which is opened again whenever it is lost."""

    def __init__(
        self, client: Client, options: ChatOptions, on_wait: Callable[[str], None]
    ) -> None:
        self._client, self._options, self._on_wait = client, options, on_wait
        self._template = ChatTemplate(client.model.info.chat_template)
        self._session: Session | None = None
        self._session_stack = AsyncExitStack()
        self.route: list[Advertisement] = []
        self.messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        system = self._options.system
        self.messages = [{"role": "system", "content": system}] if system else []

    async def ask(self, question: str, show: Callable[[str], None]) -> Answer:
        """Ask, show the answer's text as it comes, and remember both.

        An answer that is cancelled is remembered as far as it got.

        Raises:
            UserError: the conversation is too long for the session.
            NobodyServes: no chain of peers.
            PeerError: a peer of the chain refused or went away; the conversation is kept.
        """
        messages = [*self.messages, {"role": "user", "content": question}]
        text = await trio.to_thread.run_sync(self._template.render, messages)
        prompt = await self._client.ends.tokenize(text, special=True)
        answer = Answer(prompt_tokens=len(prompt))
        try:
            for attempt in range(1, ATTEMPTS_MAX + 1):
                try:
                    await self._generate(prompt, answer, show)
                    break
                except PeerError:
                    await self.close()
                    if answer.tokens or attempt == ATTEMPTS_MAX:
                        raise
        finally:
            if answer.text:
                self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        return answer

    async def close(self) -> None:
        """Give the session's cells back."""
        self._session = None
        with trio.CancelScope(shield=True):
            await self._session_stack.aclose()

    async def _open(self) -> Session:
        if self._session is None:
            self.route = await self._client.find_route(self._on_wait)
            self._session = await self._session_stack.enter_async_context(
                self._client.open_session(self.route)
            )
        return self._session

    async def _generate(
        self, prompt: list[int], answer: Answer, show: Callable[[str], None]
    ) -> None:
        session = await self._open()
        answer.route = [{"peer": a.peer, "layers": f"{a.first}:{a.end}"} for a in self.route]
        answer.reused_tokens = session.held_of(prompt)
        stream = TextStream(self._options.stops)
        started = first_at = trio.current_time()

        def add(text: str) -> None:
            answer.text += text
            show(text)

        tokens = session.generate(prompt, self._options.sampling, self._options.max_tokens)
        async with aclosing(tokens):
            async for token in tokens:
                answer.tokens += 1
                now = trio.current_time()
                if answer.tokens == 1:
                    first_at = now
                    answer.time_to_first_token_ms = round(1000 * (now - started), 1)
                else:
                    answer.tokens_per_second = round((answer.tokens - 1) / (now - first_at), 2)
                if not token.is_end:
                    add(stream.feed(token.piece))
                if token.is_end or stream.stopped:
                    answer.finish = "stop"
                    break
            else:
                answer.finish = "length"
        add(stream.end())


@asynccontextmanager
async def open_conversation(
    client: Client, options: ChatOptions, on_wait: Callable[[str], None]
) -> AsyncIterator[Conversation]:
    """Talk for as long as the block lasts, and give the session's cells back afterwards."""
    conversation = Conversation(client, options, on_wait)
    try:
        yield conversation
    finally:
        await conversation.close()
