"""Circuits that this peer has called over: kept going, and a relay to blame told from a dead peer.

When a circuit in use breaks, either the relay or the peer behind it may be why. So the peer is
called again at once, rather over another relay: if it answers there, the first relay is to blame,
and is used only where there is no other for a while. Who is called judges nothing: callers can
break their own circuits, and would have a peer leave its relays so.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio
from libp2p.peer.id import ID

from p2pinfer.core.errors import PeerError
from p2pinfer.core.ids import PeerId
from transports.blocklist import Blocklist
from transports.libp2p.dialling import relay_of
from transports.libp2p.muxer import STALL_S, Connection

log: Final = logging.getLogger("p2pinfer.relay")

BLAMED_S = 600.0
"""For how long a relay that broke circuits is used only where there is no other."""

SUSPECTED_S = 10.0
"""The same until it is known who is to blame: as long as a dial may take."""

REDIALS_MAX = 64
"""Circuits that are called again at once when they break; more are when they are needed."""

CIRCUIT_IDLE_S = 60.0
"""A circuit without a channel is closed by who opened it: relays have few."""

REPLACED_IDLE_S = 5.0
"""The same once a direct connection has taken its place."""

LOOK_S = 1.0
"""Between two looks at the circuits."""

LATE_S = 0.75
LATE_FOR_S = 5.0
"""A relay is left over which pings take this much longer than they did at best, for so long. One
that passes on 4 Mbit/s, its share of 16, to a busy circuit holds 256 KiB back, which is 0.5 s."""

ALONE_LATE_S = 0.3
"""The same of a circuit that carries little, as the rows of one token after another: it has nothing
to wait for. Wireless links alone are seldom late by so much for so long."""

BUSY_BYTES_PER_S = 128_000
BUSY_S = 5.0
"""A circuit that carries more is busy, and for so long after: a quarter of a relay's usual rate."""

SILENT_S = 0.9
"""A circuit in use that has brought nothing for so long, though both ends ping every half second:
its peer is called over another relay. If it answers there, the first one is left before the silence
lasts for as long as ends a connection (`SILENCE_S_MAX` in `muxer`)."""

SILENT_TOO_S = 0.4
"""Peers behind the same relay that are silent for so long are called, too: they pinged later."""

LISTEN_S = 0.1
"""Between two looks at which circuits are silent."""

STAYS_S = 60.0
"""Before another way is sought again where there was none."""


@dataclass
class _Called:
    """A circuit, as who called sees it."""

    outer: Connection
    """The connection to its relay."""
    relay: PeerId
    carried: int = 0
    """Bytes, at the last look."""
    busy_until: float = 0.0
    late_since: float | None = None
    stays_until: float = 0.0
    """No other way is sought before, since there was none a moment ago."""


class CircuitWatch:
    """What becomes of the circuits that one peer called over.

    Args:
        dial: calls a peer at a circuit's address; raises PeerError, or whatever a remote provokes.
    """

    def __init__(self, dial: Callable[[str, PeerId], Awaitable[object]]) -> None:
        self._dial = dial
        self.call_again: Callable[[PeerId], Awaitable[object]]
        """Reaches a peer at the addresses known of it; raises PeerUnavailable."""
        self.ways: Callable[[PeerId], Sequence[str]] = lambda _: ()
        """Returns the addresses known of a peer."""
        self.has_direct: Callable[[ID], bool] = lambda _: False
        """Returns whether a peer is connected without a relay, too."""
        self.on_doubt: Callable[[PeerId], object] = lambda _: None
        """Called with a relay that may have lied or stalled."""
        self._called: dict[Connection, _Called] = {}
        self._blamed = Blocklist()
        self._broken, self._breaks = trio.open_memory_channel[tuple[PeerId, PeerId | None, str]](
            REDIALS_MAX
        )

    def blame(self, relay: PeerId, why: str) -> None:
        """Use a relay only where there is no other, for a while."""
        log.info("relay %s is left: %s", relay, why)
        self._blamed.block(relay, trio.current_time() + BLAMED_S)
        self.on_doubt(relay)

    def is_blamed(self, relay: PeerId) -> bool:
        """Whether a relay broke a circuit not long ago."""
        return self._blamed.blocks(relay, trio.current_time())

    def add(self, inner: Connection, outer: Connection, relay: PeerId) -> None:
        """Watch a circuit that this peer has called over."""
        self._called[inner] = _Called(outer, relay)
        inner.call_at_end(lambda: self._ended(inner))

    async def run(self) -> None:
        """Close circuits that nobody uses, leave slow relays, and replace circuits, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look, nursery)
            nursery.start_soon(self._listen, nursery)
            async for peer, suspect, why in self._breaks:
                nursery.start_soon(self._replace, peer, suspect, why)

    async def _look(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.sleep(LOOK_S)
            now = trio.current_time()
            for inner, called in list(self._called.items()):
                if inner.carried - called.carried > BUSY_BYTES_PER_S * LOOK_S:
                    called.busy_until = now + BUSY_S
                called.carried = inner.carried
                late_s = LATE_S if now < called.busy_until else ALONE_LATE_S
                if inner.idle:
                    called.late_since = None
                    is_replaced = self.has_direct(inner.peer_id)
                    enough_s = REPLACED_IDLE_S if is_replaced else CIRCUIT_IDLE_S
                    if now - inner.idle_since >= enough_s:
                        inner.leave()
                elif inner.lag_s < late_s or called.outer.lag_s >= late_s / 2:
                    called.late_since = None  # or it is this machine's own link that is busy
                elif called.late_since is None:
                    called.late_since = now
                elif now >= max(called.late_since + LATE_FOR_S, called.stays_until):
                    called.stays_until = now + STAYS_S
                    nursery.start_soon(self._leave, inner, called)

    async def _listen(self, nursery: trio.Nursery) -> None:
        while True:
            due = trio.current_time() + (LISTEN_S if self._called else LOOK_S)
            await trio.sleep_until(due)
            if trio.current_time() - due > STALL_S:
                continue  # it was this machine that slept
            for outer in dict.fromkeys(called.outer for called in self._called.values()):
                if silent := self._silent(outer):
                    nursery.start_soon(self._leave_silent, silent)

    def _silent(self, outer: Connection) -> list[Connection]:
        """Return the silent circuits of a relay, if one of them has been so for long."""
        now = trio.current_time()
        found = {
            inner: inner.silent_s
            for inner, called in self._called.items()
            if called.outer is outer
            and not inner.idle
            and inner.silent_s >= SILENT_TOO_S
            and now >= called.stays_until
        }
        if max(found.values(), default=0.0) < SILENT_S:
            return []
        for inner in found:
            self._called[inner].stays_until = now + STAYS_S
        return list(found)

    async def _leave_silent(self, silent: Sequence[Connection]) -> None:
        """Leave those whose peers answer elsewhere, all at once: they are often of one session."""
        answered: list[Connection] = []

        async def call(inner: Connection) -> None:
            called = self._called.get(inner)
            if called and await self._calls_elsewhere(inner, called):
                answered.append(inner)

        async with trio.open_nursery() as calls:
            for inner in silent:
                calls.start_soon(call, inner)
        for inner in answered:
            if inner.silent_s >= SILENT_S:
                self._end(inner, f"its relay is silent for {inner.silent_s:.1f} s")

    async def _leave(self, inner: Connection, called: _Called) -> None:
        """Leave a slow circuit once its peer has answered over another relay, without blame."""
        if await self._calls_elsewhere(inner, called):
            self._end(inner, f"its relay is slow: pings wait {inner.lag_s:.1f} s")

    async def _calls_elsewhere(self, inner: Connection, called: _Called) -> bool:
        """Whether a circuit's peer answers over another relay."""
        peer = PeerId(str(inner.peer_id))
        for address in self.ways(peer):
            relay = relay_of(address)
            if relay is None or relay == called.relay or self.is_blamed(relay):
                continue
            try:
                await self._dial(address, peer)
            except Exception as error:  # noqa: BLE001 - the other end of a handshake provokes any
                log.debug("%s cannot be called over %s: %s", peer, relay, error)
                continue
            return True
        return False

    def _end(self, inner: Connection, why: str) -> None:
        """End a circuit that another one has replaced, unless it ended itself meanwhile."""
        if called := self._called.pop(inner, None):
            self.blame(called.relay, why)
            inner.abort(why)

    def _ended(self, inner: Connection) -> None:
        """Have a circuit replaced that was in use; suspect its relay, unless that went itself."""
        called = self._called.pop(inner, None)
        if called is None or inner.idle or inner.was_left:
            return
        suspect = None if called.outer.is_closed else called.relay
        if suspect and not self.is_blamed(suspect):
            self._blamed.block(suspect, trio.current_time() + SUSPECTED_S)
        with suppress(trio.WouldBlock):
            self._broken.send_nowait((PeerId(str(inner.peer_id)), suspect, inner.fault))

    async def _replace(self, peer: PeerId, suspect: PeerId | None, why: str) -> None:
        """Call a peer again before anybody asks, who then finds the circuit."""
        try:
            found = await self.call_again(peer)
        except PeerError as error:
            log.debug("%s cannot be called again: %s", peer, error)
            return
        if suspect and getattr(found, "relay", None) != suspect:
            self.blame(suspect, f"it broke a circuit to {peer}, which answers elsewhere: {why}")
