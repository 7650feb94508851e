"""The stages of one peer: two while it moves, and each session is sent to the right one."""

import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import trio

from p2pinfer.core.errors import ChannelClosed, RemoteProtocolError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Attach, Link, Open, Refusal
from p2pinfer.core.wire import BadMessage, decode
from peers.serving.accounts import Account, own_account
from peers.serving.door import Door, Shut
from peers.serving.stage import Stage
from peers.steps.limits import OPEN_S_MAX
from peers.steps.messaging import SESSION, RefusedError, refuse
from scheduler.admission import Ask
from transports.base import Channel, Transport

_log = logging.getLogger("p2pinfer.stage")


class Dispatcher:
    """Hands each inbound channel to the stage that it is meant for."""

    def __init__(
        self,
        transport: Transport,
        account_of: Callable[[Open, PeerId], Awaitable[Account]] = own_account,
    ) -> None:
        self._transport, self._account_of = transport, account_of
        self._stages: dict[Stage, Door] = {}
        self.closed = ""
        """Why sessions are refused; empty if they are accepted."""

    def listen(self) -> None:
        """Accept sessions from now on."""
        self._transport.handle(SESSION, self._serve, outlives=True)

    def add(self, stage: Stage, door: Door) -> None:
        """Prefer this stage from now on, as long as its door admits sessions."""
        self._stages = {stage: door, **self._stages}

    def remove(self, stage: Stage) -> None:
        """Give the stage no more channels."""
        del self._stages[stage]

    async def _serve(self, channel: Channel) -> None:
        """Read a channel's first message, and let a stage do the rest."""
        try:
            with trio.fail_after(OPEN_S_MAX):
                data = await channel.receive()
            first: Open | Link | Attach = decode(data, Open, Link, Attach)  # type: ignore[assignment]
            self._find(first)  # what is refused need not be looked at
            ask = await self._ask(first, channel.remote)
            stage = self._find(first)  # the one of before may be gone by now
        except ChannelClosed:
            return
        except trio.TooSlowError:
            await refuse(channel, self._no(Refusal.TOO_SLOW, "nothing came for too long"))
        except (BadMessage, RemoteProtocolError) as error:
            _log.info("%s sent %s", channel.remote, error)
            await refuse(channel, self._no(Refusal.BAD_REQUEST, str(error)))
        except RefusedError as error:
            await refuse(channel, error)
        else:
            await self._let_in(stage, ask, _Peeked(channel, data))

    async def _ask(self, first: Open | Link | Attach, remote: PeerId) -> Ask | None:
        """Return the admission request of a channel that opens a session, otherwise None."""
        if not isinstance(first, Open):
            return None
        account, now_s = await self._account_of(first, remote), trio.current_time()
        return Ask(first.session, account.peer, first.context, now_s, account.credit)

    async def _let_in(self, stage: Stage, ask: Ask | None, channel: "_Peeked") -> None:
        """Serve a channel; a session that it opens keeps its place as long as it lasts."""
        if ask is None or stage.holds(ask.session):
            await stage.serve(channel)
            return
        door = self._stages[stage]
        if not door.admission.sessions_free:
            stage.make_room(channel.remote)
        try:
            async with door.admit(ask):
                await stage.serve(channel)
        except Shut as shut:
            no = RefusedError.of(self._transport.peer_id, Refusal.BUSY, str(shut), shut.retry_ms)
            await refuse(channel, no)

    def _find(self, first: Open | Link | Attach) -> Stage:
        """Return the stage that a channel is for, or raise RefusedError."""
        for stage in self._stages:
            if stage.holds(first.session):
                return stage
        if not isinstance(first, Open):
            raise self._no(Refusal.UNKNOWN_SESSION, "no such session waits here for you")
        if self.closed:
            raise self._no(Refusal.BUSY, f"{self.closed}; ask another peer")
        if not self._stages:
            raise self._no(Refusal.WRONG_RANGE, "this peer serves no layers yet")
        for stage in self._stages:
            if stage.first == first.first and first.end <= stage.end:
                return stage
        return next(iter(self._stages))  # it explains the refusal

    def _no(self, code: Refusal, text: str) -> RefusedError:
        return RefusedError.of(self._transport.peer_id, code, text)


class _Peeked:
    """A channel whose first message was read already, and is returned again."""

    def __init__(self, channel: Channel, first: bytes) -> None:
        self.remote: PeerId = channel.remote
        self.send, self.send_now = channel.send, channel.send_now
        self.close, self.abort = channel.close, channel.abort
        self.receive: Callable[[], Coroutine[Any, Any, bytes]] = self._receive_first
        self.receive_each = channel.receive_each  # after the first, which is awaited
        self._channel, self._first = channel, first

    async def _receive_first(self) -> bytes:
        self.receive = self._channel.receive  # from now on at no cost
        await trio.lowlevel.checkpoint()
        return self._first
