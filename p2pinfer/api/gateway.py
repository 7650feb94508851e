"""One gateway: the swarm that answers, how, and what is being answered now."""

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

import trio

from p2pinfer.api.certificates import Receipts, receipt_name
from p2pinfer.api.metrics import Metrics
from p2pinfer.api.questions import Question
from p2pinfer.client.answer import Answer, ChatOptions, Scored
from p2pinfer.client.library import Swarm
from p2pinfer.core.errors import UserError
from transports.traffic import TRAFFIC


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
class Finished:
    """An answer that is complete."""

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
    """Of answers to whoever names none; None draws one each time."""
    receipts: Receipts = field(default_factory=Receipts)
    now: Callable[[], int] = lambda: time.time_ns() // 10**9
    """Seconds since 1970."""

    def __post_init__(self) -> None:
        pool, client = self.swarm.pool, self.swarm.client
        watch = self.metrics.watch
        watch("requests_running", "Answers being made.", lambda: len(self.running))
        watch("requests_waiting", "Questions that wait for a session.", lambda: pool.waiting)
        watch("sessions_idle", "Sessions kept for a next turn.", lambda: pool.idle)
        watch(
            "sessions_max", "Sessions at once; the next question waits.", lambda: pool.sessions_max
        )
        watch("peers", "Peers that serve layers of the model.", lambda: len(client.serving()))
        watch("route_complete", "1 while a whole chain is there.", lambda: not client.missing())
        self.metrics.count(
            "network_bytes",
            "Bytes exchanged with peers.",
            "direction",
            lambda: {"sent": TRAFFIC.sent, "received": TRAFFIC.received},
        )

    async def answer(self, question: Question, request: str) -> AsyncGenerator[Said | Finished]:
        """Yield what a question's answers are made of, one choice after the other.

        Raises:
            P2pinferError: as ``Swarm.answer``.
        """
        prompts = [await self._tokens(prompt) for prompt in question.prompts] or [
            await self.swarm.prompt_of(question.messages)
        ]
        for number in range(len(prompts) * question.choices):
            prompt = prompts[number // question.choices]
            how = question.option(number % question.choices)
            with self._watched(request) as answer:
                pieces = self._timed(prompt, how, answer)
                said = told = 0
                async with aclosing(pieces):
                    async for text in pieces:
                        if text:
                            said += len(text)
                            scores = answer.scores_before(said, told)
                            told += len(scores)
                            yield Said(number, text, scores)
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

    async def _timed(
        self, prompt: list[int], how: ChatOptions, answer: Answer
    ) -> AsyncGenerator[str]:
        """Yield an answer's text, and measure it."""
        before = trio.current_time()
        seen = 0
        async with aclosing(self.swarm.answer(prompt, how, answer)) as pieces:
            async for text in pieces:
                now = trio.current_time()
                if answer.tokens > seen:
                    first = not seen
                    (self.metrics.first_token if first else self.metrics.inter_token).observe(
                        now - before
                    )
                    seen, before = answer.tokens, now
                yield text

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
