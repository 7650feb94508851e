"""Bare TCP: no encryption, and peer ids are taken on trust. Only a baseline for benchmarks.

One connection per channel: a line with the protocol and the caller's id, a line with the answer and
the other's id, then messages with a four-byte length before each.
"""

import logging
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

from p2pinfer.core.errors import ChannelClosed, PeerUnavailable, RemoteProtocolError, UserError
from p2pinfer.core.ids import PeerId
from transports.base import (
    MESSAGE_BYTES_MAX,
    Accept,
    Channel,
    Handler,
    Reachability,
    begun,
    receive_one_by_one,
)

log: Final = logging.getLogger("p2pinfer.transports")

LENGTH_BYTES = 4
LINE_BYTES_MAX = 256
HELLO_S_MAX = 5.0
"""For the other side to send its greeting."""

LINGER_S_MAX = 1.0
"""For the other side to take what was sent, once the handler here has returned."""

RECEIVE_BYTES_MAX = 256 * 1024
ADDRESS: Final = re.compile(r"/ip4/([\d.]+)/tcp/(\d+)/p2p/(\w+)")


class TcpChannel:
    """A `transports.base.Channel` over one TCP connection."""

    def __init__(self, sock: trio.socket.SocketType, remote: PeerId) -> None:
        self._socket = sock
        self._remote = remote
        self._lock = trio.Lock()
        self._buffer = bytearray()
        self._senders = 0
        self._receiving = trio.CancelScope()
        self._closed = self._ended = False

    @property
    def remote(self) -> PeerId:
        """The peer that the other end claims to be."""
        return self._remote

    async def send(self, message: bytes) -> None:
        """Send one message; see `transports.base.Channel.send`."""
        if len(message) > MESSAGE_BYTES_MAX:
            raise ValueError(f"a message of {len(message)} bytes; the limit is {MESSAGE_BYTES_MAX}")
        if self._closed or self._ended:
            raise self._gone()
        self._senders += 1
        try:
            async with self._lock:
                await self._send_all(len(message).to_bytes(LENGTH_BYTES, "big") + message)
        finally:
            self._senders -= 1
            if self._closed and not self._senders:
                self._finish()

    def send_now(self, message: bytes) -> bool:  # noqa: ARG002 - none is ever taken
        """Send nothing: trio's sockets always wait."""
        return False

    async def _send_all(self, framed: bytes) -> None:
        sent = 0
        try:
            with memoryview(framed) as view:
                while sent < len(framed):
                    sent += await self._socket.send(view[sent:])
        except (OSError, trio.ClosedResourceError) as error:
            raise self._gone() from error
        except trio.Cancelled:
            if sent:
                self.abort()
            raise

    async def receive(self) -> bytes:
        """Return the next message; see `transports.base.Channel.receive`."""
        if self._closed:
            raise self._gone()
        with trio.CancelScope() as self._receiving:
            return await self._receive()
        raise self._gone()  # closed by this side

    async def _receive(self) -> bytes:
        await self._fill(LENGTH_BYTES)
        size = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
        if size > MESSAGE_BYTES_MAX:
            self.abort()
            raise RemoteProtocolError(self._remote, f"announced a message of {size} bytes")
        await self._fill(LENGTH_BYTES + size)
        message = bytes(self._buffer[LENGTH_BYTES : LENGTH_BYTES + size])
        del self._buffer[: LENGTH_BYTES + size]
        return message

    async def _fill(self, size: int) -> None:
        while len(self._buffer) < size:
            try:
                data = await self._socket.recv(RECEIVE_BYTES_MAX)
            except (OSError, trio.ClosedResourceError) as error:
                raise self._gone() from error
            if not data:
                self._ended = True
                raise self._gone()
            self._buffer += data

    async def receive_each(self, take: Callable[[bytes], bool]) -> None:
        """Receive them in turn; see `transports.base.Channel.receive_each`."""
        await receive_one_by_one(self, take)

    async def close(self) -> None:
        """Say that no more messages follow; see `transports.base.Channel.close`."""
        if not self._closed:
            self._closed = True
            self._receiving.cancel()
            if not self._senders:
                self._finish()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """End the channel now in both directions."""
        self._closed = True
        self._socket.close()

    async def linger(self) -> None:
        """Close the socket once the other side is done; what it still sends is dropped."""
        with trio.move_on_after(LINGER_S_MAX), suppress(OSError, trio.ClosedResourceError):
            while await self._socket.recv(RECEIVE_BYTES_MAX):
                pass
        self.abort()

    def _finish(self) -> None:
        with suppress(OSError):  # the other side may be gone
            self._socket.shutdown(trio.socket.SHUT_WR)

    def _gone(self) -> ChannelClosed:
        return ChannelClosed(self._remote, "the connection is closed")


class SilentTopic:
    """A `transports.base.Topic` without gossip: peers on bare TCP only run anti-entropy."""

    neighbours = 0

    def publish(self, message: bytes) -> None:
        """Send to no peer."""


class TcpTransport:
    """A `transports.base.Transport` on bare TCP."""

    def __init__(self, peer_id: PeerId, address: str) -> None:
        self.peer_id = peer_id
        self.addresses: Sequence[str] = [f"{address}/p2p/{peer_id}"]
        self.reachability = Reachability.UNKNOWN
        self.was_dialled, self.via = False, None
        self._handlers: dict[str, Handler] = {}
        self._known: dict[PeerId, tuple[str, int]] = {}
        self._channels: list[TcpChannel] = []

    async def wait_moved(self) -> None:
        """Wait for ever: a benchmark's peer stays where it is."""
        await trio.sleep_forever()

    def handle(self, protocol: str, handler: Handler, *, outlives: bool = False) -> None:
        """Serve inbound channels of ``protocol`` with ``handler``; none is cancelled."""
        del outlives
        self._handlers[protocol] = handler

    async def connect(self, address: str) -> PeerId:
        """Ask the peer at ``address`` who it is; see `transports.base.Transport.connect`."""
        peer = self._remember(address)
        (await self._call(peer, "")).abort()
        return peer

    async def open(
        self,
        peer: PeerId,
        protocol: str,
        addresses: Sequence[str] = (),
        *,
        own: bool = False,  # noqa: ARG002 - every channel is a connection of its own
        first: bytes = b"",
    ) -> Channel:
        """Open a channel; see `transports.base.Transport.open`."""
        for address in addresses:
            self._remember(address)
        channel = await self._call(peer, protocol)
        self._channels.append(channel)
        return await begun(channel, first)

    async def discover(self, topic: str | None) -> Sequence[str]:  # noqa: ARG002 - nowhere to look
        """Find no peers."""
        return []

    @asynccontextmanager
    async def join_topic(
        self,
        name: str,  # noqa: ARG002 - no peer gossips
        accept: Accept,  # noqa: ARG002
    ) -> AsyncGenerator[SilentTopic, None]:
        """Take part in no gossip."""
        yield SilentTopic()

    def _remember(self, address: str) -> PeerId:
        found = ADDRESS.fullmatch(address)
        if found is None:
            raise UserError(f"{address!r} is not /ip4/ADDRESS/tcp/PORT/p2p/ID.")
        self._known[peer := PeerId(found.group(3))] = found.group(1), int(found.group(2))
        return peer

    async def _call(self, peer: PeerId, protocol: str) -> TcpChannel:
        if peer not in self._known:
            raise PeerUnavailable(peer, f"no address of {peer} is known")
        sock = trio.socket.socket()
        try:
            with trio.fail_after(HELLO_S_MAX):
                await sock.connect(self._known[peer])
                sock.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
                await sock.send(f"{protocol} {self.peer_id}\n".encode())
                answer, claimed = await _read_line(sock)
            if claimed != peer:
                raise PeerUnavailable(peer, f"{claimed} answers there")
            if answer != "yes" and protocol:
                raise PeerUnavailable(peer, f"{peer} does not speak {protocol}")
        except (OSError, ValueError, trio.TooSlowError) as error:
            sock.close()
            raise PeerUnavailable(peer, f"cannot reach {peer}: {error}") from error
        except BaseException:
            sock.close()
            raise
        return TcpChannel(sock, peer)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer one inbound connection."""
        channel = TcpChannel(stream.socket, PeerId("?"))
        try:
            stream.socket.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
            with trio.fail_after(HELLO_S_MAX):
                protocol, claimed = await _read_line(stream.socket)
                handler = self._handlers.get(protocol)
                await stream.socket.send(f"{'yes' if handler else 'no'} {self.peer_id}\n".encode())
            if handler is not None:
                self.was_dialled = True
                channel._remote = PeerId(claimed)
                await handler(channel)
                await channel.close()
                await channel.linger()
        except Exception as error:  # noqa: BLE001 - a handler's failure ends its channel only
            level = logging.DEBUG if isinstance(error, ChannelClosed) else logging.WARNING
            log.log(level, "a channel from peer %s failed: %r", channel.remote, error)
        finally:
            channel.abort()

    def abort(self) -> None:
        """Close every channel that was opened here."""
        for channel in self._channels:
            channel.abort()


@asynccontextmanager
async def open_tcp(peer_id: PeerId) -> AsyncGenerator[TcpTransport, None]:
    """Run a peer on a free port of this machine until the block ends."""
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        transport = TcpTransport(peer_id, f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}")
        nursery.start_soon(trio.serve_listeners, transport.serve, [listener])
        try:
            yield transport
        except BaseException as error:  # noqa: BLE001 - raised below, outside the group
            failure = error
        transport.abort()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _read_line(sock: trio.socket.SocketType) -> list[str]:
    """Read two words and a newline, and not a byte beyond."""
    line = b""
    while not line.endswith(b"\n"):
        data = await sock.recv(1)
        line += data
        if not data or len(line) > LINE_BYTES_MAX:
            raise ValueError("it does not greet")
    first, second = line[:-1].decode("ascii", "replace").split(" ")
    return [first, second]
