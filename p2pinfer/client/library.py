"""The library: join a swarm and ask it, from trio or from plain synchronous code.

from p2pinfer import connect

async with connect(["/ip4/192.168.1.7/tcp/40613/p2p/12D3KooW…"]) as swarm:
    async for piece in swarm.chat([{"role": "user", "content": "Name a tree."}]):
        print(piece, end="")

with connect([…]) as swarm:
    for piece in swarm.chat([{"role": "user", "content": "Name a tree."}]):
        print(piece, end="")
"""

import secrets
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

import trio
import trio.from_thread

from p2pinfer.client.answer import Answer, AnswerWriter, Attempts, ChatOptions, verified
from p2pinfer.client.grammars import (
    THOUGHTS_BEGIN,
    THOUGHTS_END,
    Shape,
    Thoughts,
    with_thoughts,
)
from p2pinfer.client.session_pool import SessionPool
from p2pinfer.client.tool_calls import Tool, as_text, knows_tools
from p2pinfer.core.errors import PeerError, PromptTooLong, UserError, lone_errors
from p2pinfer.core.ids import ModelId
from p2pinfer.core.limits import AUDIT_RATE_DEFAULT, CONTEXT_DEFAULT, SESSIONS_DEFAULT
from p2pinfer.core.sampling import SEEDS, USUAL, Sampling, sampling_of
from p2pinfer.engine.special_tokens import Spellings
from p2pinfer.engine.template import (
    ChatTemplate,
    Message,
    Prompt,
    check_template,
    read_template,
    template_remark,
)
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import Client, ClientOptions, Machine, open_client
from transports.base import Reach
from transports.secret import read_network_key

BYTES_PER_POSITION_MAX = 32
"""Of UTF-8 in a text that is looked at at all: other than in long runs of one character a token
stands for 3 to 5, and what is longer would only be made into tokens to be refused."""

T = TypeVar("T")


class Swarm:
    """A swarm that answers several askers at once."""

    def __init__(self, client: Client, pool: SessionPool, chat_template: str | None = None) -> None:
        self.client, self.pool = client, pool
        self._source = chat_template or client.model.info.chat_template
        self._template: ChatTemplate | None = None

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
        async with aclosing(self.answer(prompt, how, answer or Answer())) as pieces:
            async for piece in pieces:
                if piece:
                    yield piece

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
        if self.thoughts_after(prompt.text) is Thoughts.ARE_BEGUN:
            return replace(prompt, text=f"{prompt.text.rstrip()}\n\n{THOUGHTS_END}\n\n")
        return prompt

    async def begun(self, prompt: Prompt, words: str) -> Prompt:
        """Return a prompt whose answer begins with these words already: nothing is thought."""
        if not words:
            return prompt
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

        A chain that breaks for good is replaced by another one, which goes on from the tokens.
        What is checked of an answer is in ``answer.trust`` and ``answer.certificate`` when all of
        it has been yielded.
        """
        if not prompt:
            raise UserError("the prompt is empty, and this model needs a token to begin with")
        answer.prompt_tokens = len(prompt)
        attempts = Attempts(self.client, answer)
        while True:
            try:
                async with self.pool.lend(prompt) as lent:
                    context = lent.session.context
                    if len(prompt) >= context:
                        raise PromptTooLong(f"{len(prompt)} tokens", context)
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


class connect:  # noqa: N801 -- used like a function
    """A swarm joined as somebody who asks, for the length of a ``with`` or ``async with`` block.

    Args:
        bootstrap: multiaddrs of peers in the swarm.
        model: a GGUF file, ``default``, or a model's id; else what the swarm serves.
        network: the swarm's name.
        network_key: the file with the key of a private network.
        mdns: find peers on the local network without an address.
        dht: find peers of the model in a distributed hash table.
        keep_layers: how many layers at each end of the model are run here.
        sessions: answers at once.
        context: positions per session.
        audit_rate: the share of stages whose part in an answer is run again by somebody else.
        sponsored: ask on the account of a peer that serves on this machine, which full stages
            prefer; they learn that the two belong together.
        drafts: send likely next tokens ahead, which changes no answer.
        draft_model: a small model of the same family, all of it here, that also says which ones.
        chat_template: a file with a Jinja template, used in place of the model's own.

    Raises:
        UserError: an argument cannot be used.
        NobodyServes: nobody answers at any of the addresses.
    """

    def __init__(
        self,
        bootstrap: Sequence[str] = (),
        *,
        model: str | None = None,
        network: str = "main",
        network_key: str | Path | None = None,
        mdns: bool = False,
        dht: bool = False,
        keep_layers: int = 1,
        sessions: int = SESSIONS_DEFAULT,
        context: int = CONTEXT_DEFAULT,
        audit_rate: float = AUDIT_RATE_DEFAULT,
        sponsored: bool = True,
        drafts: bool = True,
        draft_model: str | None = None,
        chat_template: str | Path | None = None,
    ) -> None:
        if not 0 <= audit_rate <= 1:
            raise UserError(f"audit_rate must be from 0 to 1, and not {audit_rate}")
        audit_rate = float(audit_rate)  # a whole 0 would be refused where answers are examined
        key = read_network_key(Path(network_key)) if network_key else None
        reach = Reach(network, key, mdns, dht)
        self._model, self._sessions = model, sessions
        self._audit_rate, self._sponsored, self._drafts = audit_rate, sponsored, drafts
        self._draft_model = draft_model
        self._template = read_template(Path(chat_template)) if chat_template else None
        self._how = (tuple(bootstrap), reach, keep_layers, Machine(sessions, context))
        self._stack = AsyncExitStack()
        self._thread: _TrioThread | None = None

    async def __aenter__(self) -> Swarm:
        return await self._stack.enter_async_context(self._open())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, trace)

    def __enter__(self) -> "SyncSwarm":
        self._thread = _TrioThread(self._open)
        return SyncSwarm(self._thread.swarm, self._thread)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._thread
        self._thread.close()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Swarm]:
        store = open_store()

        async def find(name: str) -> ModelId:
            return await trio.to_thread.run_sync(name_model, name, store, lambda *_: None)

        small = await find(self._draft_model) if self._draft_model else None
        options = ClientOptions(
            await find(self._model) if self._model else None,
            *self._how,
            audit_rate=self._audit_rate,
            sponsored=self._sponsored,
            drafts=self._drafts,
            draft_model=open_whole(small, store) if small else None,
            default_model=partial(find, "default"),
        )
        async with (
            open_client(options, store, lambda _: None) as client,
            open_swarm(client, self._sessions, chat_template=self._template) as swarm,
        ):
            yield swarm


class SyncSwarm:
    """A swarm for code that knows nothing of trio; several threads may ask at once."""

    def __init__(self, swarm: Swarm, thread: "_TrioThread") -> None:
        self._swarm, self._thread = swarm, thread

    @property
    def model_name(self) -> str:
        """What the model calls itself."""
        return self._swarm.model_name

    def chat(
        self,
        messages: Sequence[Message],
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        stops: Sequence[str] = (),
        parse_special: bool = False,
        answer: Answer | None = None,
    ) -> Iterator[str]:
        """Yield the text of the assistant's next message; as ``Swarm.chat``."""
        pieces = self._swarm.chat(
            messages,
            sampling=sampling,
            max_tokens=max_tokens,
            stops=stops,
            parse_special=parse_special,
            answer=answer,
        )
        try:
            while True:
                try:
                    yield self._thread.run(anext, pieces)
                except StopAsyncIteration:
                    return
        finally:
            self._thread.run(pieces.aclose)


class _TrioThread:
    """An event loop in a thread of its own, with a swarm open in it."""

    def __init__(self, opening: Callable[[], Any]) -> None:
        self._opening = opening
        self._is_open = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="p2pinfer", daemon=True)
        self._thread.start()
        self._is_open.wait()
        if self._failure:
            self._thread.join()
            raise self._failure

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Call an async function over there and return what it returns."""

        async def call() -> T:
            return await function(*arguments)

        return trio.from_thread.run(call, trio_token=self._token)

    def close(self) -> None:
        """Leave the swarm; wait until that is done."""
        with suppress(trio.RunFinishedError):  # it has failed by itself
            trio.from_thread.run_sync(self._leave.set, trio_token=self._token)
        self._thread.join()
        if self._failure:
            raise self._failure

    def _main(self) -> None:
        try:
            trio.run(self._run)
        except BaseException as error:  # noqa: BLE001 -- it is raised where the swarm was opened
            self._failure = error
        finally:
            self._is_open.set()

    async def _run(self) -> None:
        async with self._opening() as self.swarm:
            self._token = trio.lowlevel.current_trio_token()
            self._leave = trio.Event()
            self._is_open.set()
            await self._leave.wait()
