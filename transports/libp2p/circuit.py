"""Circuits as their ends see them: calling a hidden peer through a relay, and being called.

A circuit's stream stands where a socket would: Noise and our muxer run on it end to end, so the
relay learns who speaks, with which peer and how much, and can neither read nor change a byte.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio
from libp2p.abc import IHost, INetStream
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamReset
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from p2pinfer.core.errors import PeerError, PeerUnavailable, RemoteProtocolError
from p2pinfer.core.ids import PeerId
from transports.blocklist import Blocklist
from transports.libp2p import circuit_messages as messages
from transports.libp2p.circuit_messages import (
    HOP,
    MESSAGE_BYTES_MAX,
    STOP,
    CircuitStatus,
    RelayAnswer,
)
from transports.libp2p.muxer import Connection
from transports.libp2p.negotiation import open_stream, read_delimited
from transports.libp2p.noise_records import StreamPipe
from transports.libp2p.stream import Stream

log: Final = logging.getLogger("p2pinfer.relay")

CIRCUIT: Final = re.compile(r"(/.+/p2p/(\w+))/p2p-circuit/p2p/(\w+)", re.ASCII)
"""A relay's address, its id, and the peer behind it."""

CALLS_MAX = 64
"""Circuits that others have opened to this peer: as many as a busy stage has requesters."""

ANSWER_S_MAX = 8.0
"""For a relay to answer: it waits 5 s for the hidden peer."""

CALL_S_MAX = 5.0
"""For a relay to say which caller it brings."""

CIRCUIT_IDLE_S = 60.0
"""A circuit without a channel is closed by who opened it: relays have few."""

IDLE_LOOK_S = 10.0

REDIALS_MAX = 64
"""Circuits that are called again at once when their relay goes; more are when they are needed."""

BLAMED_S = 600.0
"""For how long a relay that lied or stalled is used only where there is no other."""


def circuit_address(relay_address: str, peer: PeerId) -> str:
    """Return where a hidden peer is reached through a relay."""
    return f"{relay_address}/p2p-circuit/p2p/{peer}"


class Circuits:
    """The circuits that begin or end at one host.

    Args:
        host: whose circuits they are.
        reach: returns a direct connection to a relay; raises PeerUnavailable.
    """

    def __init__(
        self, host: IHost, reach: Callable[[PeerId, Sequence[str]], Awaitable[Connection]]
    ) -> None:
        swarm = host.get_network()
        assert isinstance(swarm, Swarm), "new_host makes a Swarm"
        self._swarm, self._reach = swarm, reach
        self._calls = 0
        self._lost, self._losses = trio.open_memory_channel[PeerId](REDIALS_MAX)
        self._blamed = Blocklist()
        self.on_call: Callable[[Connection], object] = lambda _: None
        """Called with each circuit over which another peer has called this one."""
        self.on_blame: Callable[[PeerId], object] = lambda _: None
        """Called with a relay that lied or stalled."""
        self.serves: Callable[[PeerId], bool] = lambda _: False
        """Whether a peer is one of this peer's relays: nobody else may bring callers."""
        self.call_again: Callable[[PeerId], Awaitable[object]]
        """Reaches a peer at the addresses known of it; raises PeerUnavailable."""
        host.set_stream_handler(TProtocol(STOP), self._serve_stop)

    def blame(self, relay: PeerId, why: str) -> None:
        """Use a relay only where there is no other, for a while."""
        log.info("relay %s is left: %s", relay, why)
        self._blamed.block(relay, trio.current_time() + BLAMED_S)
        self.on_blame(relay)

    def is_blamed(self, relay: PeerId) -> bool:
        """Whether a relay lied or stalled not long ago."""
        return self._blamed.blocks(relay, trio.current_time())

    async def reserve(self, relay: Connection) -> RelayAnswer:
        """Ask a relay to bring callers; the answer says whether it will.

        Raises:
            PeerUnavailable: it is no relay, or does not answer.
            RemoteProtocolError: it broke the protocol.
        """
        stream, answer = await self._ask(relay, messages.reserve_request())
        stream.abort()
        return answer

    async def dial(self, address: str, peer: PeerId) -> Connection:
        """Call a hidden peer through the relay that its address names.

        Raises:
            PeerUnavailable: the relay cannot be reached, or does not connect us.
            RemoteProtocolError: it broke the protocol.
        """
        found = CIRCUIT.fullmatch(address)
        if found is None:
            raise PeerUnavailable(peer, f"{address} is no circuit's address")
        relay = PeerId(found[2])
        outer = await self._reach(relay, [found[1]])
        stream, answer = await self._ask(outer, messages.connect_request(ID.from_string(peer)))
        try:
            if answer.status != CircuitStatus.OK:
                raise PeerUnavailable(peer, f"the relay {relay} says: {answer.name}")
            raw = self._raw(stream, relay, ID.from_string(peer), initiator=True)
            try:
                conn: Any = await self._swarm.upgrade_outbound_raw_conn(raw, ID.from_string(peer))
            except Exception:
                if (
                    not outer.is_closed and not stream.dead
                ):  # it connected us, but not with the peer
                    self.blame(relay, f"it does not connect with {peer}")
                raise
        except BaseException:
            stream.abort()
            raise
        inner: Connection = conn.muxed_conn
        inner.call_at_end(partial(self._judge, inner, outer, relay))
        return inner

    async def run(self) -> None:
        """Close circuits that nobody uses, and replace those that lost their relay, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_idle)
            async for peer in self._losses:
                nursery.start_soon(self._replace, peer)

    async def _replace(self, peer: PeerId) -> None:
        """Call a peer through another relay before anybody asks, who then finds the circuit."""
        try:
            await self.call_again(peer)
        except PeerError as error:
            log.debug("%s cannot be called again: %s", peer, error)

    async def _close_idle(self) -> None:
        while True:
            await trio.sleep(IDLE_LOOK_S)
            for conn in self._swarm.get_connections():
                muxed = conn.muxed_conn
                if not isinstance(muxed, Connection) or muxed.is_closed or muxed.relay is None:
                    continue
                idle_s = trio.current_time() - muxed.idle_since
                if muxed.is_initiator and muxed.idle and idle_s >= CIRCUIT_IDLE_S:
                    muxed.leave()

    def _judge(self, inner: Connection, outer: Connection, relay: PeerId) -> None:
        """Blame a relay whose circuit fell silent, though it is there itself; replace the circuit.

        Who called does that, and only if channels were open.
        """
        if is_silent := "silent" in inner.fault and not outer.is_closed:
            self.blame(relay, "a circuit through it fell silent")
        if inner.is_initiator and not inner.idle and (is_silent or outer.is_closed):
            with suppress(trio.WouldBlock):
                self._lost.send_nowait(PeerId(str(inner.peer_id)))

    async def _ask(self, relay: Connection, request: bytes) -> tuple[Stream, RelayAnswer]:
        """Send a relay a request, and return the stream and its answer."""
        peer = PeerId(str(relay.peer_id))
        stream = await open_stream(relay, peer, HOP, watched=False, first=request)
        try:
            with trio.fail_after(ANSWER_S_MAX):
                body = await read_delimited(stream, MESSAGE_BYTES_MAX)
            return stream, messages.read_hop_answer(body)
        except BaseException as error:
            stream.abort()
            if isinstance(error, messages.MalformedMessage):
                raise RemoteProtocolError(peer, f"the relay {peer} sent {error}") from error
            if isinstance(error, trio.TooSlowError):
                raise PeerUnavailable(peer, f"the relay {peer} does not answer") from None
            if isinstance(error, MuxedStreamReset):
                raise PeerUnavailable(peer, f"the relay {peer} hung up") from error
            raise

    def _raw(self, stream: Stream, relay: PeerId, peer: ID, *, initiator: bool) -> RawConnection:
        pipe = StreamPipe(stream, relay, PeerId(str(peer)))
        at = [Multiaddr(f"/p2p/{relay}/p2p-circuit/p2p/{peer}")]
        return RawConnection(pipe, initiator, ConnectionType.RELAYED, at)

    async def _serve_stop(self, inbound: INetStream) -> None:
        """Take a call, and live as long as its circuit."""
        given: Any = inbound
        stream, outer = given.muxed_stream, given.muxed_conn
        if not isinstance(stream, Stream) or not isinstance(outer, Connection):
            await inbound.reset()
            return
        relay = PeerId(str(outer.peer_id))
        try:
            with trio.fail_after(CALL_S_MAX):
                caller = messages.read_stop_request(await read_delimited(stream, MESSAGE_BYTES_MAX))
        except messages.MalformedMessage as error:
            log.info("relay %s sent %s", relay, error)
            stream.send_now(messages.stop_answer(CircuitStatus.MALFORMED_MESSAGE))
            await messages.hang_up(stream)
            return
        except (MuxedStreamReset, trio.TooSlowError):
            stream.abort()
            return
        if outer.relay is not None or not self.serves(relay):
            refusal = CircuitStatus.PERMISSION_DENIED
        elif self._calls >= CALLS_MAX:
            refusal = CircuitStatus.RESOURCE_LIMIT_EXCEEDED
        else:
            await self._take(stream, outer, relay, caller)
            return
        stream.send_now(messages.stop_answer(refusal))
        await messages.hang_up(stream)

    async def _take(self, stream: Stream, outer: Connection, relay: PeerId, caller: ID) -> None:
        self._calls += 1
        try:
            stream.send_now(messages.stop_answer(CircuitStatus.OK))
            raw = self._raw(stream, relay, caller, initiator=False)
            at = Multiaddr(f"/p2p/{relay}/p2p-circuit")
            inner: Any = await self._swarm.upgrade_inbound_raw_conn(raw, at)
            assert isinstance(inner, Connection), "the muxer is ours"
            inner.call_at_end(partial(self._judge, inner, outer, relay))
            self.on_call(inner)
            await inner.event_closed.wait()
        except Exception as error:  # noqa: BLE001 - a caller's handshake ends only itself
            log.info("a call through relay %s failed: %r", relay, error)
            if lie := _lie_in(error):
                self.blame(relay, str(lie))
        finally:
            self._calls -= 1
            stream.abort()


class LyingRelay(Exception):
    """Who is at the other end of a circuit is not who the relay said."""


def check_caller(conn: Any, peer: ID) -> None:
    """Raise LyingRelay if a circuit, whose handshake is done, leads to another than was said."""
    raw = getattr(
        getattr(getattr(conn, "conn", None), "read_writer", None), "read_write_closer", None
    )
    pipe = getattr(raw, "stream", None)
    if isinstance(pipe, StreamPipe) and pipe.expected != str(peer):
        raise LyingRelay(f"it said that {pipe.expected} calls, and {peer} did")


def _lie_in(error: BaseException) -> LyingRelay | None:
    """Return the lie that a handshake failed at, if that was why."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, LyingRelay):
        found = found.__cause__ or found.__context__
    return found
