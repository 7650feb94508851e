"""Joining a swarm as somebody who asks, from trio, from asyncio, or from plain code.

from p2pinfer import connect

async with connect(["/ip4/192.168.1.7/tcp/40613/p2p/12D3KooW…"]) as swarm:
    async for piece in swarm.chat([{"role": "user", "content": "Name a tree."}]):
        print(piece, end="")

with connect([…]) as swarm:
    for piece in swarm.chat([{"role": "user", "content": "Name a tree."}]):
        print(piece, end="")

The first works under trio and under asyncio alike: FastAPI, notebooks.
"""

import asyncio
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import trio
import trio.from_thread

from p2pinfer.client.answer import Answer
from p2pinfer.client.library import Swarm, open_swarm
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.core.limits import (
    AUDIT_RATE_DEFAULT,
    CONTEXT_DEFAULT,
    LONG_CONTEXT_DEFAULT,
    PROOF_RATE_DEFAULT,
    SESSIONS_DEFAULT,
)
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.gpu import OFF
from p2pinfer.engine.llama.devices import chosen
from p2pinfer.engine.template import Message, read_template
from p2pinfer.node.hidden_way import check_hops
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import ClientOptions, Machine, open_client
from p2pinfer.node.swarm_connection import reach_of, read_key

T = TypeVar("T")


class connect:  # noqa: N801 -- used like a function
    """A swarm joined as somebody who asks, for the length of a ``with`` or ``async with`` block.

    Args:
        bootstrap: multiaddrs of peers in the swarm.
        model: a GGUF file, ``default``, or a model's id; else what the swarm serves.
        network: the swarm's name.
        network_key: the file with the key of a private network.
        mdns: find peers on the local network without an address; None is yes, unless all addresses
            are of this machine alone.
        dht: find peers of the model in a distributed hash table; None as for ``mdns``.
        keep_layers: how many layers at each end of the model are run here; with 0, stages see what
            amounts to tokens.
        show_tokens: allow that on a network without a key.
        sessions: answers at once.
        context: positions per session; None: 4,096, and up to 32,768 for some, as memory and the
            model allow.
        gpu: what computes the layers here, as for ``--gpu``: ``off``, ``auto``, or a GPU's name.
        audit_rate: the share of stages whose part in an answer is run again by somebody else.
        proof_rate: the share of stages that must also open rows, checked with a proof key.
        sponsored: ask on the account of a peer that serves on this machine, which full stages
            prefer; they learn that the two belong together.
        anonymous: have that peer vouch as one of several instead: stages do not learn which.
        drafts: send likely next tokens ahead, which changes no answer.
        draft_model: a small model of the same family, all of it here, that also says which ones.
        chat_template: a file with a Jinja template, used in place of the model's own.
        via: how many relays to ask through, 0 to 2, so that no stage learns this machine's address;
            the first address in ``bootstrap`` is then best a relay's.
        pace_ms: with ``via``: milliseconds between two rows, which leave in a rhythm then; 0: as
            they are made.

    Raises:
        NoPath: there are not enough relays.
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
        mdns: bool | None = None,
        dht: bool | None = None,
        keep_layers: int = 1,
        show_tokens: bool = False,
        sessions: int = SESSIONS_DEFAULT,
        context: int | None = None,
        gpu: str = OFF,
        audit_rate: float = AUDIT_RATE_DEFAULT,
        proof_rate: float = PROOF_RATE_DEFAULT,
        sponsored: bool = True,
        anonymous: bool = False,
        drafts: bool = True,
        draft_model: str | None = None,
        chat_template: str | Path | None = None,
        via: int = 0,
        pace_ms: int = 0,
    ) -> None:
        for name, rate in (("audit_rate", audit_rate), ("proof_rate", proof_rate)):
            if not 0 <= rate <= 1:
                raise UserError(f"{name} must be from 0 to 1, and not {rate}")
        # A whole 0 would be refused where answers are examined.
        self._audit_rate, self._proof_rate = float(audit_rate), float(proof_rate)
        key, members = None, None
        if network_key:
            network, key, members = read_key(Path(network_key), network)
        reach = reach_of(network, key, mdns, dht, bootstrap, members)
        check_hops(via, reach, pace_ms)
        self._model, self._sessions, self._via, self._pace_ms = model, sessions, via, pace_ms
        self._sponsored, self._anonymous = sponsored, anonymous
        self._drafts = drafts and not pace_ms
        self._draft_model = draft_model
        self._shows_tokens = show_tokens
        self._template = read_template(Path(chat_template)) if chat_template else None
        machine = Machine(sessions, context or CONTEXT_DEFAULT, threads=None, gpu=chosen(gpu))
        if context is None:
            machine = replace(machine, long_context=LONG_CONTEXT_DEFAULT)
        self._how = (tuple(bootstrap), reach, keep_layers, machine)
        self._stack = AsyncExitStack()
        self._thread: _TrioThread | None = None

    async def __aenter__(self) -> "Swarm | AsyncioSwarm":
        if trio.lowlevel.in_trio_task():
            return await self._stack.enter_async_context(self._open())
        opening = asyncio.ensure_future(asyncio.to_thread(_TrioThread, self._open))
        try:
            thread = await _see_through(opening)
        except asyncio.CancelledError:
            if not opening.cancelled() and not opening.exception():
                await asyncio.to_thread(opening.result().close)
            raise
        swarm = AsyncioSwarm(thread.swarm, thread)
        self._stack.push_async_callback(swarm.close)
        return swarm

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
            shows_tokens=self._shows_tokens,
            audit_rate=self._audit_rate,
            proof_rate=self._proof_rate,
            sponsored=self._sponsored,
            anonymous=self._anonymous,
            drafts=self._drafts,
            draft_model=open_whole(small, store) if small else None,
            default_model=partial(find, "default"),
            via=self._via,
            pace_ms=self._pace_ms,
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
    ) -> Generator[str, None, None]:
        """Yield the text of the assistant's next message; as ``Swarm.chat``."""
        return self.stream(
            lambda swarm: swarm.chat(
                messages,
                sampling=sampling,
                max_tokens=max_tokens,
                stops=stops,
                parse_special=parse_special,
                answer=answer,
            )
        )

    def stream(self, begin: Callable[[Swarm], AsyncGenerator[T, None]]) -> Generator[T, None, None]:
        """Yield what an async generator over the swarm yields, which runs where the swarm is."""
        items = begin(self._swarm)
        try:
            while True:
                try:
                    yield self._thread.run(anext, items)
                except StopAsyncIteration:
                    return
        finally:
            with suppress(trio.RunFinishedError):  # the swarm was left: it has closed them
                self._thread.run(items.aclose)

    def run(self, function: Callable[[Swarm], Awaitable[T]]) -> T:
        """Call an async function with the swarm, where that is, and return what it returns."""
        return self._thread.run(function, self._swarm)


class AsyncioSwarm:
    """A swarm for code that runs in asyncio; several tasks may ask at once."""

    def __init__(self, swarm: Swarm, thread: "_TrioThread") -> None:
        self._swarm, self._thread = swarm, thread
        self._waiting: set[asyncio.Future[Any]] = set()

    @property
    def model_name(self) -> str:
        """What the model calls itself."""
        return self._swarm.model_name

    @property
    def plain(self) -> SyncSwarm:
        """The same swarm for code that runs in other threads, and knows nothing of asyncio."""
        return SyncSwarm(self._swarm, self._thread)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        stops: Sequence[str] = (),
        parse_special: bool = False,
        answer: Answer | None = None,
    ) -> AsyncGenerator[str, None]:
        """Yield the text of the assistant's next message; as ``Swarm.chat``."""
        return self.stream(
            lambda swarm: swarm.chat(
                messages,
                sampling=sampling,
                max_tokens=max_tokens,
                stops=stops,
                parse_special=parse_special,
                answer=answer,
            )
        )

    async def stream(
        self, begin: Callable[[Swarm], AsyncGenerator[T, None]]
    ) -> AsyncGenerator[T, None]:
        """Yield what an async generator over the swarm yields, which runs where the swarm is."""
        items = begin(self._swarm)
        try:
            while True:
                try:
                    yield await self._wait(anext, items)
                except StopAsyncIteration:
                    return
        finally:
            with suppress(trio.RunFinishedError):  # the swarm was left: it has closed them
                await self._wait(items.aclose)

    async def close(self) -> None:
        """Leave the swarm; wait until that is done."""
        try:
            await _see_through(asyncio.ensure_future(asyncio.to_thread(self._thread.close)))
        finally:
            for each in self._waiting:
                if not each.done():
                    each.set_exception(trio.RunFinishedError("the swarm was left"))

    async def _wait(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Call an async function over there; if cancelled, so is that, before this ends."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(value: T | None, failure: BaseException | None) -> None:
            if done.done():
                return
            if failure:
                done.set_exception(failure)
            else:
                done.set_result(value)  # type: ignore[arg-type] # it is there

        def tell(value: T | None, failure: BaseException | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, value, failure)

        self._waiting.add(done)
        try:
            cancel = self._thread.start(function, arguments, tell)
            return await _see_through(done, cancel)
        finally:
            self._waiting.discard(done)


async def _see_through(future: "asyncio.Future[T]", cancel: Callable[[], None] = lambda: None) -> T:
    """Wait until a future is done, cancelled or not; ``cancel`` may hasten it."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
            cancel()
    if cancelled:
        if not future.cancelled():
            future.exception()  # it was looked at
        raise cancelled
    return future.result()


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

    def start(
        self,
        function: Callable[..., Awaitable[T]],
        arguments: Sequence[Any],
        tell: Callable[[T | None, BaseException | None], None],
    ) -> Callable[[], None]:
        """Call an async function over there, and tell what comes of it; return what cancels it.

        Raises:
            trio.RunFinishedError: the swarm was left.
        """
        scope = trio.CancelScope()
        left = trio.RunFinishedError("the swarm was left")

        async def work() -> None:
            value, failure = None, cast("BaseException | None", left)
            try:
                with scope:
                    try:
                        value, failure = await function(*arguments), None
                    except Exception as error:  # noqa: BLE001 -- it is raised where it is awaited
                        failure = error
            finally:
                tell(value, failure)

        def begin() -> None:
            if self._leave.is_set():
                tell(None, left)
            else:
                self._nursery.start_soon(work)

        def cancel() -> None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(scope.cancel)

        self._token.run_sync_soon(begin)
        return cancel

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
        async with self._opening() as self.swarm, trio.open_nursery() as self._nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._leave = trio.Event()
            self._is_open.set()
            await self._leave.wait()
            self._nursery.cancel_scope.cancel()
