"""One gateway: the swarm that answers, how, and what is being answered now."""

import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

import trio

from p2pinfer.api.certificates import Receipts, receipt_name
from p2pinfer.api.metrics import Metrics
from p2pinfer.api.questions import Question
from p2pinfer.client.answer import INTERRUPTED, Answer, ChatOptions, Scored
from p2pinfer.client.library import Swarm
from p2pinfer.core.errors import UserError
from transports.traffic import TRAFFIC

CALLED_S = 5.0
"""How long it counts that all peers of a chain answered, or not: probes may ask every second."""

ENGINE_LOST = "this gateway's own engine has ended, and is being started again"


@dataclass(frozen=True)
class Access:
    """Who may use a gateway, and from where."""

    api_key: str | None = None
    origins: tuple[str, ...] = ()
    """Web pages of other sites that may; ``*`` is all."""
    only_local_names: bool = True
    """Refuse requests that name this host otherwise than localhost: a page of another site can
    point a name of its own at this machine."""
    hosts: tuple[str, ...] = ()
    """Other names by which it may be called, as those of a proxy or a tunnel, in lower case."""


@dataclass(frozen=True)
class Said:
    """A piece of an answer."""

    choice: int
    text: str
    scores: tuple[Scored, ...] = ()
    """Of the tokens that the piece completes, where they are wanted."""


@dataclass(frozen=True)
class Ended:
    """All of an answer's text was said; what is checked of it is yet to come."""

    choice: int
    finish: str


@dataclass(frozen=True)
class Finished:
    """An answer that is complete, and checked."""

    choice: int
    answer: Answer
    receipt: str | None
    """What its certificate is called."""


@dataclass
class Gateway:
    """What the endpoints share."""

    swarm: Swarm
    defaults: ChatOptions
    access: Access = Access()
    metrics: Metrics = field(default_factory=Metrics)
    running: dict[str, Answer] = field(default_factory=dict)
    """Answers being made, by the id of their request."""
    seed: int | None = None
    """For requests that name none; None draws one each time."""
    receipts: Receipts = field(default_factory=Receipts)
    now: Callable[[], int] = lambda: time.time_ns() // 10**9
    """Seconds since 1970."""

    def __post_init__(self) -> None:
        self._calling, self._called, self._called_at = trio.Lock(), "", -math.inf
        pool, client = self.swarm.pool, self.swarm.client
        watch = self.metrics.watch
        watch("requests_running", "Answers being made.", lambda: len(self.running))
        watch("requests_waiting", "Questions that wait for a session.", lambda: pool.waiting)
        watch("sessions_idle", "Sessions kept for a next turn.", lambda: pool.idle)
        watch(
            "sessions_max", "Sessions at once; the next question waits.", lambda: pool.sessions_max
        )
        watch("peers", "Peers that serve layers of the model.", lambda: len(client.serving()))
        watch("route_complete", "1 while a whole chain is there.", lambda: not self.amiss())
        self.metrics.count(
            "network_bytes",
            "Bytes exchanged with peers.",
            "direction",
            lambda: {"sent": TRAFFIC.sent, "received": TRAFFIC.received},
        )

    def amiss(self) -> str:
        """Say in words why nothing can be answered, as far as that is known; or nothing."""
        client = self.swarm.client
        return ENGINE_LOST if client.engine_is_lost else client.missing()

    async def trouble(self) -> str:
        """Say the same once the peers of a whole chain were called, unless that was just done."""
        if amiss := self.amiss():
            return amiss
        async with self._calling:
            if trio.current_time() >= self._called_at + CALLED_S:
                self._called = await self.swarm.client.trouble()
                self._called_at = trio.current_time()
        return self._called

    async def answer(
        self, question: Question, request: str
    ) -> AsyncGenerator[Said | Ended | Finished]:
        """Yield what a question's answers are made of, one choice after the other.

        Raises:
            P2pinferError: as ``Swarm.answer``.
        """
        prompts = [await self._tokens(prompt) for prompt in question.prompts] or [
            await self.swarm.prompt_of(question.messages, parse_special=question.how.parse_special)
        ]
        for number in range(len(prompts) * question.choices):
            prompt = prompts[number // question.choices]
            how = question.option(number % question.choices)
            with self._watched(request) as answer:
                pace = self.metrics.pace(trio.current_time())
                pieces = self.swarm.answer(prompt, how, answer)
                said = told = 0
                async with aclosing(pieces):
                    async for text in pieces:
                        pace.note(answer.tokens, trio.current_time())
                        if text:
                            said += len(text)
                            scores = answer.scores_before(said, told)
                            told += len(scores)
                            yield Said(number, text, scores)
                        if answer.finish != INTERRUPTED and not how.require_verified:
                            yield Ended(number, answer.finish)
            receipt = None
            if answer.certificate:
                receipt = receipt_name(request, number)
                self.receipts.keep(receipt, answer.certificate)
            yield Finished(number, answer, receipt)

    async def _tokens(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return await self.swarm.tokenize(prompt)
        vocabulary = self.swarm.client.ends.vocabulary
        if not all(0 <= token < vocabulary for token in prompt):
            raise UserError(f"the model's tokens are numbered from 0 to {vocabulary - 1}")
        return prompt

    @contextmanager
    def _watched(self, request: str) -> Iterator[Answer]:
        """Show an answer among those that are being made, and count its tokens in the end."""
        answer, whole = Answer(), False
        self.running[request] = answer
        try:
            yield answer
            whole = True
        finally:
            del self.running[request]
            self.metrics.tokens.labels("prompt").inc(answer.prompt_tokens)
            self.metrics.tokens.labels("reused").inc(answer.reused_tokens)
            self.metrics.tokens.labels("answer").inc(answer.tokens)
            self.metrics.judge(answer.trust, whole=whole)
