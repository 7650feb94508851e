"""One gateway: the swarm that answers, how, and what is being answered now."""

import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace

import trio

from p2pinfer.api.certificates import Receipts, receipt_name
from p2pinfer.api.metrics import Metrics
from p2pinfer.api.questions import Question
from p2pinfer.api.telemetry import Telemetry
from p2pinfer.client.answer import INTERRUPTED, Answer, ChatOptions, Scored
from p2pinfer.client.call_reading import CallBegins, CallGrows, ToolCall
from p2pinfer.client.echo import NO_ECHO, Echo, text_of
from p2pinfer.client.grammars import Thoughts, json_shape
from p2pinfer.client.harmony import HarmonySpeech
from p2pinfer.client.infill import infill_prompt
from p2pinfer.client.library import Swarm
from p2pinfer.client.speech import Heard, Hearing, Speech, Thought, Word
from p2pinfer.client.tool_calls import Tool, Tools, calls_shape
from p2pinfer.core.errors import UserError
from transports.traffic import TRAFFIC

CALLED_S = 5.0
"""How long it counts that all peers of a chain answered, or not: probes may ask every second."""

SCORED_TOKENS_MAX = 32_768
"""Of all prompts in a request whose log-probabilities are told: some 40 MB until it is answered."""

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
class Thinks:
    """A piece of what the model thinks before it answers."""

    choice: int
    text: str


@dataclass(frozen=True)
class CallOpens:
    """A call of a tool has begun; pieces of its arguments follow."""

    choice: int
    number: int
    """Of the calls in this choice."""
    name: str


@dataclass(frozen=True)
class CallPiece:
    """A piece of a call's arguments."""

    choice: int
    number: int
    text: str


@dataclass(frozen=True)
class Calls:
    """A call of a tool, complete: it was told in pieces before."""

    choice: int
    number: int
    """Of the calls in this choice."""
    call: ToolCall


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
    speech: Hearing | None = None
    """What its text is made of, where it is more than words."""
    echoed: str = ""
    """The prompt that was said before it."""
    echo_scores: tuple[Scored, ...] = ()
    """What is told of that one's tokens."""

    @property
    def finish(self) -> str:
        """Why it ended."""
        return finish_of(self.answer, self.speech)

    @property
    def thought_tokens(self) -> int:
        """How many of its tokens are thoughts."""
        return self.speech.thought_tokens if self.speech else 0


def finish_of(answer: Answer, speech: Hearing | None) -> str:
    """Say why an answer ended: what stopped to call tools says so."""
    return "tool_calls" if speech and speech.calls and answer.finish == "stop" else answer.finish


def _check_scored(prompts: Sequence[Sequence[int]]) -> None:
    if (tokens := sum(map(len, prompts))) > SCORED_TOKENS_MAX:
        raise UserError(
            f"log-probabilities of a prompt are told of {SCORED_TOKENS_MAX:,} tokens at most,"
            f" and there are {tokens:,}: send less at once, or set echo to false"
        )


Part = Thinks | Said | CallOpens | CallPiece | Calls | Ended | Finished


def _heard(
    number: int, speech: Hearing, heard: Iterator[Heard], scores: tuple[Scored, ...]
) -> Iterator[Part]:
    """Say what is heard of a choice; the first words have the scores that wait for them."""
    for part in heard:
        match part:
            case Thought(text):
                yield Thinks(number, text)
            case Word(text):
                yield Said(number, text, scores)
                scores = ()
            case CallBegins(name):
                yield CallOpens(number, len(speech.calls), name)
            case CallGrows(text):
                yield CallPiece(number, len(speech.calls), text)
            case ToolCall():
                yield Calls(number, len(speech.calls) - 1, part)


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

    is_own: bool = True
    """Of the model that the gateway was started for: its swarm is what the metrics show."""

    telemetry: Telemetry | None = None

    def __post_init__(self) -> None:
        self._calling, self._called, self._called_at = trio.Lock(), "", -math.inf
        if not self.is_own:
            return
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
        self.metrics.count(
            "punches",
            "Tries to connect with a peer behind a router without its relay.",
            "result",
            lambda: client.transport.punching,
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

    async def count_tokens(self, question: Question) -> int:
        """Return how many tokens a chat's prompt has; raises as ``answer``."""
        tools = question.tools.offered if question.tools else ()
        special = question.how.parse_special
        rendered = await self.swarm.render(
            question.messages, parse_special=special, tools=tools, options=question.options
        )
        rendered = await self.swarm.begun(rendered, question.prefill)
        return len(await self.swarm.tokenize(rendered.text, rendered.literal))

    async def answer(self, question: Question, request: str) -> AsyncGenerator[Part]:
        """Yield what a question's answers are made of, one choice after the other.

        Raises:
            P2pinferError: as ``Swarm.answer``.
        """
        name, telemetry = self.swarm.model_name, self.telemetry
        seen = telemetry.begin(question, request, name) if telemetry else None
        try:
            async with aclosing(self._answers(question, request)) as parts:
                async for part in parts:
                    if seen and isinstance(part, Finished):
                        seen.finished(part.answer, part.speech, part.finish)
                    elif seen:
                        seen.token()
                    yield part
        except BaseException as error:
            if seen:
                seen.end(error)
            raise
        if seen:
            seen.end()

    async def _answers(self, question: Question, request: str) -> AsyncGenerator[Part]:
        self._check_biases(question)
        thoughts = Thoughts.NONE
        prompts = [await self._tokens(each, question.suffix) for each in question.prompts]
        tools = question.tools
        if question.messages:
            rendered = await self.swarm.render(
                question.messages,
                parse_special=question.how.parse_special,
                tools=tools.offered if tools else (),
                options=question.options,
            )
            rendered = await self.swarm.begun(rendered, question.prefill)
            if not question.prefill:
                thoughts = self.swarm.thoughts_after(rendered.text)
            prompts = [await self.swarm.tokenize(rendered.text, rendered.literal)]
        if question.echo and question.how.sampling.top_logprobs is not None:
            _check_scored(prompts)
        if grammar := await self._grammar(question, thoughts):
            question = question.held_to(grammar)
        for number in range(len(prompts) * question.choices):
            prompt = prompts[number // question.choices]
            how = question.option(number % question.choices)
            speech = self._hearing(question, thoughts)
            if number % question.choices == 0:
                echo = await self._echo(question, number // question.choices, prompt)
                scores: tuple[Scored, ...] = ()
            is_scored = how.sampling.prompt_logprobs is not None
            with self._watched(request) as answer:
                if echo.text and not is_scored:
                    yield Said(number, echo.text, scores)
                parts = self._parts(number, prompt, how, answer, speech)
                async with aclosing(parts):
                    async for part in parts:
                        if is_scored:
                            is_scored, scores = False, echo.scored(answer.prompt_scores)
                            yield Said(number, echo.text, scores)
                        if isinstance(part, Said) and part.scores:
                            part = replace(part, scores=echo.behind(part.scores))  # noqa: PLW2901
                        yield part
                if is_scored:  # an answer that is shown only when it is verified, and empty
                    scores = echo.scored(answer.prompt_scores)
                    yield Said(number, echo.text, scores)
            receipt = None
            if answer.certificate:
                receipt = receipt_name(request, number)
                self.receipts.keep(receipt, answer.certificate)
            yield Finished(number, answer, receipt, speech, echo.text, scores)

    async def _echo(self, question: Question, number: int, tokens: list[int]) -> Echo:
        """Return what is said of a prompt before its answer."""
        if not question.echo:
            return NO_ECHO
        prompt, is_scored = question.prompts[number], question.how.sampling.top_logprobs is not None
        if isinstance(prompt, str) and not is_scored:
            return Echo(prompt)
        pieces = await self.swarm.client.ends.pieces(tokens)
        return Echo(prompt if isinstance(prompt, str) else text_of(pieces), tokens, pieces)

    def _hearing(self, question: Question, thoughts: Thoughts) -> Hearing | None:
        """Return what hears an answer; None where it is words alone."""
        tools, dialect = question.tools, self.swarm.dialect
        if question.messages and dialect.in_channels:
            return HarmonySpeech(tools, is_begun=bool(question.prefill))
        is_plain = thoughts is Thoughts.NONE and not tools
        return None if is_plain else Speech(thoughts, tools, dialect)

    async def _grammar(self, question: Question, thoughts: Thoughts) -> str | None:
        """Return what answers are held to; raises UserError where that cannot be."""
        tools = question.tools
        if not tools:
            return await self._held(question, None, thoughts)
        try:
            return await self._held(question, tools, thoughts)
        except UserError:
            tools = replace(tools, offered=[await self._callable(each) for each in tools.offered])
            return await self._held(question, tools, thoughts)

    async def _held(
        self, question: Question, tools: Tools | None, thoughts: Thoughts
    ) -> str | None:
        shape, swarm = question.shape, self.swarm
        if question.messages and swarm.dialect.in_channels and not question.prefill:
            return await swarm.channels_grammar(shape, tools) if shape or tools else None
        held = shape
        if tools:
            held = calls_shape(tools, swarm.dialect, shape, await swarm.call_marks())
        return await swarm.grammar_of(held, thoughts) if held else None

    async def _callable(self, tool: Tool) -> Tool:
        """Return a tool with arguments that can be held to: any, where its schema cannot be."""
        try:
            await self.swarm.grammar_of(json_shape(tool.parameters, strict=tool.strict))
        except UserError as error:
            if tool.strict:
                raise UserError(f"tool {tool.name}: {error}") from error
            return replace(tool, parameters={"type": "object"})
        return tool

    async def _parts(
        self,
        number: int,
        prompt: list[int],
        how: ChatOptions,
        answer: Answer,
        speech: Hearing | None,
    ) -> AsyncGenerator[Part]:
        """Yield what one answer is made of, up to its end."""
        said = told = 0
        waiting: tuple[Scored, ...] = ()
        has_ended = False
        pace = self.metrics.pace(trio.current_time())
        async with aclosing(self.swarm.answer(prompt, how, answer)) as pieces:
            async for text in pieces:
                pace.note(answer.tokens, trio.current_time())
                if text:
                    said += len(text)
                    scores = answer.scores_before(said, told)
                    told += len(scores)
                    if speech is None:
                        yield Said(number, text, scores)
                    else:
                        waiting += scores
                        for part in _heard(
                            number, speech, speech.feed(text, answer.tokens), waiting
                        ):
                            waiting = () if isinstance(part, Said) else waiting
                            yield part
                if answer.finish != INTERRUPTED and not how.require_verified:
                    has_ended = True
                    if speech:
                        for part in _heard(number, speech, speech.end(), waiting):
                            yield part
                    yield Ended(number, finish_of(answer, speech))
        if speech and not has_ended:
            for part in _heard(number, speech, speech.end(), waiting):
                yield part

    def _check_biases(self, question: Question) -> None:
        vocabulary = self.swarm.client.ends.vocabulary
        if not all(token < vocabulary for token, _ in question.how.sampling.logit_bias):
            raise UserError(f"the model's tokens are numbered from 0 to {vocabulary - 1}")

    async def _tokens(self, prompt: str | list[int], suffix: str) -> list[int]:
        if isinstance(prompt, str):
            if suffix:
                special = await self.swarm.client.ends.special_tokens()
                rendered = infill_prompt(special, prompt, suffix)
                return await self.swarm.tokenize(rendered.text, rendered.literal)
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
