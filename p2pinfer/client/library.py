"""A swarm that answers: messages or a prompt in, streamed text out."""

import secrets
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import trio

from p2pinfer.client.answer import Answer, AnswerWriter, Attempts, ChatOptions, verified
from p2pinfer.client.grammars import (
    THOUGHTS_BEGIN,
    THOUGHTS_END,
    Shape,
    Thoughts,
    with_thoughts,
)
from p2pinfer.client.harmony import (
    ANSWER_BEGINS,
    EFFORTS,
    NO_THOUGHTS,
    ChannelsText,
    arranged,
    channels_grammar,
)
from p2pinfer.client.session_pool import SessionPool
from p2pinfer.client.tool_calls import Dialect, Tool, Tools, as_text, dialect_of, knows_tools
from p2pinfer.core.errors import PeerError, PromptTooLong, UserError, lone_errors
from p2pinfer.core.sampling import SEEDS, USUAL, Sampling, sampling_of
from p2pinfer.engine.special_tokens import CALL_MARKS, Spellings
from p2pinfer.engine.template import (
    ChatTemplate,
    Message,
    Prompt,
    check_template,
    template_remark,
)
from p2pinfer.node.requester import Client

BYTES_PER_POSITION_MAX = 32
"""Of UTF-8 in a text that is looked at at all: other than in long runs of one character a token
stands for 3 to 5, and what is longer would only be made into tokens to be refused."""


class Swarm:
    """A swarm that answers several askers at once."""

    def __init__(self, client: Client, pool: SessionPool, chat_template: str | None = None) -> None:
        self.client, self.pool = client, pool
        self._source = chat_template or client.model.info.chat_template
        self._template: ChatTemplate | None = None
        self._marks: dict[str, int] | None = None

    @property
    def model_name(self) -> str:
        """What the model calls itself."""
        return self.client.model.info.name

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        stops: Sequence[str] = (),
        parse_special: bool = False,
        answer: Answer | None = None,
    ) -> AsyncGenerator[str, None]:
        """Yield the text of the assistant's next message, piece by piece.

        What it thinks stands between ``<think>`` and ``</think>``.

        Args:
            messages: the conversation so far: ``role`` and ``content`` of each message.
            sampling: how tokens are drawn; when not given, as is advised for the model, or else as
                ``USUAL`` says, with another seed each time.
            max_tokens: of the answer; None is as many as the session has room for.
            stops: texts that end it.
            parse_special: take what spells a special token in a message for one.
            answer: is filled in with what the answer took.

        Raises:
            UserError: the template refuses these messages, or they are too long.
            NobodyServes, PeerError: no chain of peers, or one of them went away.
            TooBusy: more is asked than can be answered soon.
        """
        advice = self.client.model.advice
        if sampling is None:
            sampling = sampling_of(USUAL, advice.sampling, {"seed": secrets.randbelow(SEEDS)})
        prompt = await self.prompt_of(advice.with_system(messages), parse_special=parse_special)
        how = ChatOptions(sampling, max_tokens, None, stops)
        channels = ChannelsText() if self.dialect.in_channels else None
        async with aclosing(self.answer(prompt, how, answer or Answer())) as pieces:
            async for piece in pieces:
                if text := channels.feed(piece) if channels else piece:
                    yield text
        if channels and (text := channels.end()):
            yield text

    def check_chat(self) -> None:
        """Raise BrokenTemplate where questions can only be asked as completions."""
        if self._source is not None:
            check_template(self._source)

    def remark(self) -> str | None:
        """Say what a person should know of how the model is talked to, if anything."""
        return template_remark(self._source, self.model_name)

    async def prompt_of(
        self,
        messages: Sequence[Message],
        *,
        parse_special: bool = False,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[int]:
        """Return the tokens that ask for the next message.

        Raises:
            UserError: the template refuses these messages.
            PromptTooLong: they are longer than any session.
        """
        prompt = await self.render(messages, parse_special=parse_special, options=options)
        return await self.tokenize(prompt.text, prompt.literal)

    @property
    def template(self) -> str:
        """The Jinja that makes a prompt of messages."""
        return self._source or ""

    @cached_property
    def dialect(self) -> Dialect:
        """How the model writes calls, as far as its template tells."""
        return dialect_of(self.template)

    async def render(
        self,
        messages: Sequence[Message],
        *,
        parse_special: bool = False,
        tools: Sequence[Tool] = (),
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Prompt:
        """Return the text that asks for the next message.

        Args:
            messages: the conversation so far.
            parse_special: take what spells a special token in a message for one.
            tools: what the model may call.
            options: what the template is told; ``enable_thinking`` false ends thoughts even where
                the template knows no such thing.

        Raises:
            UserError: the template refuses these messages.
        """
        self._check_text("".join(each["content"] for each in messages))
        if not knows_tools(self.template):
            messages, tools = as_text(messages, tools), ()
        elif self.dialect.in_channels:
            messages = arranged(messages)
            if (effort := options.get("reasoning_effort")) in EFFORTS:
                options = {**options, "reasoning_effort": EFFORTS[effort]}
        if self._template is None:
            self.check_chat()
            special = await self.client.ends.special_tokens()
            self._template = self._template or ChatTemplate(self._source, special)
        offered = [tool.as_dict() for tool in tools]
        prompt = await self._template.render(
            messages, parse_special=parse_special, tools=offered, options=options
        )
        if options.get("enable_thinking") is False:
            return self._without_thoughts(prompt)
        return prompt

    def _without_thoughts(self, prompt: Prompt) -> Prompt:
        """Return a prompt that ends what the model would think before it answers."""
        if self.dialect.in_channels:
            return replace(prompt, text=f"{prompt.text}{NO_THOUGHTS}")
        if self.thoughts_after(prompt.text) is Thoughts.ARE_BEGUN:
            return replace(prompt, text=f"{prompt.text.rstrip()}\n\n{THOUGHTS_END}\n\n")
        return prompt

    async def begun(self, prompt: Prompt, words: str) -> Prompt:
        """Return a prompt whose answer begins with these words already: nothing is thought."""
        if not words:
            return prompt
        if self.dialect.in_channels:
            prompt = replace(prompt, text=f"{prompt.text}{ANSWER_BEGINS}")
        else:
            prompt = self._without_thoughts(prompt)
        special = await self.client.ends.special_tokens()
        found = Spellings(special.control).find(words)
        literal = [len(prompt.text) + at for at, _ in found]
        return Prompt(prompt.text + words, (*prompt.literal, *literal))

    def thoughts_after(self, prompt: str) -> Thoughts:
        """Say whether the answer to a prompt begins with what the model thinks."""
        if THOUGHTS_BEGIN not in self.template:
            return Thoughts.NONE
        if prompt.rstrip().endswith(THOUGHTS_BEGIN):
            return Thoughts.ARE_BEGUN
        is_over = prompt.rstrip().endswith(THOUGHTS_END)
        return Thoughts.NONE if is_over else Thoughts.MAY_BEGIN

    async def call_marks(self) -> dict[str, int]:
        """Return what calls are written with that are control tokens, and which."""
        if self._marks is None:
            ends = self.client.ends
            control = {*(await ends.special_tokens()).control}
            marks = [mark for mark in CALL_MARKS if mark in control]
            self._marks = {mark: (await ends.tokenize(mark, special=True))[-1] for mark in marks}
        return self._marks

    async def channels_grammar(self, shape: Shape | None, tools: Tools | None) -> str:
        """Return the grammar of an answer in channels; raises UserError for a bad one."""
        held = await self.grammar_of(shape) if shape else None
        return await self.client.ends.read_grammar(channels_grammar(held, tools))

    async def grammar_of(self, shape: Shape, thoughts: Thoughts = Thoughts.NONE) -> str:
        """Return the grammar that holds an answer to a shape; raises UserError for a bad one."""
        ends = self.client.ends
        grammar = await ends.read_grammar(shape.grammar, is_gbnf=shape.is_gbnf)
        return with_thoughts(grammar, thoughts) if shape.is_whole else grammar

    async def tokenize(self, text: str, literal: Sequence[int] = ()) -> list[int]:
        """Return a prompt's tokens; what spells a control token counts as one.

        Args:
            text: the prompt.
            literal: where spellings begin that are text all the same.

        Raises:
            PromptTooLong: it is longer than any session.
            UserError: it cannot be made into tokens.
        """
        self._check_text(text)
        return await self.client.ends.tokenize(
            text, special=True, literal=literal, most=self.client.ends.context
        )

    def _check_text(self, text: str) -> None:
        """Refuse what no session can hold before any work is done for it."""
        context = self.client.ends.context
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise UserError("the prompt is not text: it has half a character in it") from error
        if size > BYTES_PER_POSITION_MAX * context:
            raise PromptTooLong(f"{len(text)} characters", context)

    async def close(self) -> None:
        """End what renders prompts."""
        if self._template:
            await self._template.end()

    async def answer(
        self, prompt: Sequence[int], how: ChatOptions, answer: Answer
    ) -> AsyncGenerator[str, None]:
        """Yield text for each token that follows a prompt, and fill ``answer`` in; as ``chat``.

        A chain that breaks for good is replaced by another one, which goes on from the tokens; and
        so is a session that is full, if the swarm has longer ones.
        What is checked of an answer is in ``answer.trust`` and ``answer.certificate`` when all of
        it has been yielded.
        """
        if not prompt:
            raise UserError("the prompt is empty, and this model needs a token to begin with")
        answer.prompt_tokens = len(prompt)
        attempts, cut_short = Attempts(self.client, answer), None
        while True:
            try:
                held = [*prompt, *answer.spoken]
                async with self.pool.lend(held, how.max_tokens) as lent:
                    context = lent.session.context
                    if len(held) >= context and cut_short:  # the longer ones are all taken
                        yield cut_short.end()
                        return
                    if len(held) >= context:
                        raise PromptTooLong(f"{len(prompt)} tokens", context)
                    answer.path, answer.pace_ms = [*lent.session.path], lent.session.pace_ms
                    writer = AnswerWriter(answer, lent.session, prompt, how)
                    tokens = lent.session.generate(
                        writer.prompt, how.sampling, writer.max_tokens, writer.said
                    )
                    async with aclosing(tokens):
                        async for token in tokens:
                            text = writer.take(token)
                            yield "" if how.require_verified else text
                            if writer.is_over:
                                break
                    if writer.is_cut_short and context < self.client.context_max():
                        cut_short = writer
                        continue  # in a session that is longer than this full one
                    text = writer.end()
                    yield "" if how.require_verified else text
                    answer.trust = trust = await self.client.examine(lent.session)
                    if trust and not trust.broken:
                        answer.certificate = self.client.certify(lent.session, answer.text, trust)
                if how.require_verified:
                    yield verified(answer)
                return
            except PeerError as error:
                if not attempts.again(error):
                    raise


@asynccontextmanager
async def open_swarm(
    client: Client,
    sessions_max: int,
    on_wait: Callable[[str], None] = lambda _: None,
    chat_template: str | None = None,
) -> AsyncIterator[Swarm]:
    """Answer several askers through one client while the block lasts.

    ``chat_template`` is Jinja, used in place of the model's own.
    """
    pool = SessionPool(client, sessions_max, on_wait)
    swarm = Swarm(client, pool, chat_template)
    with lone_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.tend)
            try:
                yield swarm
            finally:
                nursery.cancel_scope.cancel()
                await swarm.close()
                await pool.close()
