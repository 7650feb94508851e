"""Circuits as their ends see them: calling a hidden peer through a relay, and being called.

A circuit's stream stands where a socket would: Noise and our muxer run on it end to end, so the
relay learns who speaks, with which peer and how much, and can neither read nor change a byte.
"""

import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
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

from p2pinfer.core.errors import PeerUnavailable, RemoteProtocolError
from p2pinfer.core.ids import PeerId
from transports.libp2p import circuit_messages as messages
from transports.libp2p.circuit_messages import (
    HOP,
    MESSAGE_BYTES_MAX,
    STOP,
    CircuitStatus,
    RelayAnswer,
)
from transports.libp2p.circuit_watch import CircuitWatch
from transports.libp2p.dialling import CIRCUIT
from transports.libp2p.muxer import Connection
from transports.libp2p.negotiation import open_stream, read_delimited
from transports.libp2p.noise_records import StreamPipe, circuit_below
from transports.libp2p.stream import Stream

log: Final = logging.getLogger("p2pinfer.relay")

CALLS_MAX = 64
"""Circuits that others have opened to this peer: as many as a busy stage has requesters."""

ANSWER_S_MAX = 8.0
"""For a relay to answer: it waits 5 s for the hidden peer."""

CALL_S_MAX = 5.0
"""For a relay to say which caller it brings."""

CIRCUIT_IDLE_S = 60.0
"""A circuit without a channel is closed by who opened it: relays have few."""

IDLE_LOOK_S = 10.0

HANDSHAKE_S_MAX = 5.0
"""For the peer behind a relay to prove who it is, once the relay has said that it connects."""

PROOF_BYTES = 32
"""Sent through a relay to oneself."""

PROOF_S_MAX = 5.0
"""For them to come back; also how long the called end waits for them."""


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
        self._me = host.get_id()
        self._calls = 0
        self.watch = CircuitWatch(self.dial)
        """What becomes of the circuits over which this peer has called."""
        self.on_call: Callable[[Connection], object] = lambda _: None
        """Called with each circuit over which another peer has called this one."""
        self.on_begin: Callable[[Connection], object] = lambda _: None
        """Called with the connection to a relay when a circuit through it begins to be made."""
        self.serves: Callable[[PeerId], bool] = lambda _: False
        """Whether a peer is one of this peer's relays: nobody else may bring callers."""
        host.set_stream_handler(TProtocol(STOP), self._serve_stop)

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
        self.on_begin(outer)
        stream, answer = await self._ask(outer, messages.connect_request(ID.from_string(peer)))
        try:
            if answer.status != CircuitStatus.OK:
                raise PeerUnavailable(peer, f"the relay {relay} says: {answer.name}")
            conn: Any = await self._shake_hands(StreamPipe(stream, relay, peer), outer)
        except BaseException:
            stream.abort()
            raise
        inner: Connection = conn.muxed_conn
        self.watch.add(inner, outer, relay)
        return inner

    async def _shake_hands(self, pipe: StreamPipe, outer: Connection) -> object:
        """Have the peer behind a relay prove who it is; blame the relay if it cannot."""
        peer = pipe.expected
        try:
            with trio.fail_after(HANDSHAKE_S_MAX):
                raw = _raw(pipe, outer, initiator=True)
                return await self._swarm.upgrade_outbound_raw_conn(raw, ID.from_string(peer))
        except Exception as error:
            if not outer.is_closed and not pipe.was_hung_up:  # it said that it connects
                self.watch.blame(pipe.relay, f"it does not connect with {peer}")
            if isinstance(error, trio.TooSlowError):
                text = f"nothing comes through the relay {pipe.relay}"
                raise PeerUnavailable(peer, text) from None
            raise

    async def prove(self, relay: Connection) -> None:
        """Call this peer itself through one of its relays, and see bytes come back.

        A relay that is too busy, or lets nobody call itself, is believed.

        Raises:
            PeerUnavailable: it does not answer, knows no reservation, or passes nothing on.
            RemoteProtocolError: it broke the protocol.
        """
        peer = PeerId(str(relay.peer_id))
        stream, answer = await self._ask(relay, messages.connect_request(self._me))
        try:
            if answer.status in (CircuitStatus.NO_RESERVATION, CircuitStatus.CONNECTION_FAILED):
                raise PeerUnavailable(peer, f"the relay {peer} brings no callers: {answer.name}")
            if answer.status != CircuitStatus.OK:
                return
            sent = secrets.token_bytes(PROOF_BYTES)
            stream.send_now(sent)
            with trio.move_on_after(PROOF_S_MAX):
                await stream.wait_buffered(PROOF_BYTES)
            if bytes(stream.buffer) != sent:
                raise PeerUnavailable(peer, f"the relay {peer} passes nothing on")
        finally:
            stream.abort()

    async def _ask(self, relay: Connection, request: bytes) -> tuple[Stream, RelayAnswer]:
        return await ask_relay(relay, HOP, request)

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
        if caller == self._me:
            await self._echo(stream)
            return
        if outer.relay is not None or not self.serves(relay):
            refusal = CircuitStatus.PERMISSION_DENIED
        elif self._calls >= CALLS_MAX:
            refusal = CircuitStatus.RESOURCE_LIMIT_EXCEEDED
        else:
            await self._take(StreamPipe(stream, relay, PeerId(str(caller))), outer)
            return
        stream.send_now(messages.stop_answer(refusal))
        await messages.hang_up(stream)

    async def _echo(self, stream: Stream) -> None:
        """Take a call of this peer itself, which wants its few bytes back."""
        stream.send_now(messages.stop_answer(CircuitStatus.OK))
        with trio.move_on_after(PROOF_S_MAX):
            await stream.wait_buffered(PROOF_BYTES)
        stream.send_now(bytes(stream.buffer[:PROOF_BYTES]))
        await messages.hang_up(stream)

    async def _take(self, pipe: StreamPipe, outer: Connection) -> None:
        self._calls += 1
        self.on_begin(outer)
        try:
            pipe.stream.send_now(messages.stop_answer(CircuitStatus.OK))
            at = Multiaddr(f"/p2p/{pipe.relay}/p2p-circuit")
            raw = _raw(pipe, outer, initiator=False)
            inner: Any = await self._swarm.upgrade_inbound_raw_conn(raw, at)
            assert isinstance(inner, Connection), "the muxer is ours"
            self.on_call(inner)
            await inner.event_closed.wait()
        except Exception as error:  # noqa: BLE001 - a caller's handshake ends only itself
            log.info("a call through relay %s failed: %r", pipe.relay, error)
            if _lie_in(error):  # of the relay, or of the caller: a proof will tell
                self.watch.on_doubt(pipe.relay)
        finally:
            self._calls -= 1
            pipe.stream.abort()


async def ask_relay(
    relay: Connection, protocol: str, request: bytes, *, watched: bool = False
) -> tuple[Stream, RelayAnswer]:
    """Send a relay a request, and return the stream and its answer.

    Raises:
        PeerUnavailable: it does not speak the protocol, or does not answer.
        RemoteProtocolError: it broke the protocol.
    """
    peer = PeerId(str(relay.peer_id))
    stream = await open_stream(relay, peer, protocol, watched=watched, first=request)
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


def _raw(pipe: StreamPipe, outer: Connection, *, initiator: bool) -> RawConnection:
    # Identify tells it to the other end, and js-libp2p drops an answer whose address has no IP.
    host, port = outer.get_remote_address() or ("0.0.0.0", 0)  # noqa: S104 - only said
    place = f"/{'ip6' if ':' in host else 'ip4'}/{host.partition('%')[0]}/tcp/{port}"
    at = [Multiaddr(f"{place}/p2p/{pipe.relay}/p2p-circuit/p2p/{pipe.expected}")]
    return RawConnection(pipe, initiator, ConnectionType.RELAYED, at)


class LyingRelay(Exception):
    """Who is at the other end of a circuit is not who the relay said."""


def check_caller(conn: object, peer: ID) -> None:
    """Raise LyingRelay if a circuit, whose handshake is done, leads to another than was said."""
    pipe = circuit_below(conn)
    if pipe and pipe.expected != str(peer):
        raise LyingRelay(f"it said that {pipe.expected} calls, and {peer} did")


def _lie_in(error: BaseException) -> LyingRelay | None:
    """Return the lie that a handshake failed at, if that was why."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, LyingRelay):
        found = found.__cause__ or found.__context__
    return found
