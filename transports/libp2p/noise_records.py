"""The layer below the muxer: encrypted records on a socket, or any other secured connection.

The fast path is a plain TCP socket under Noise: records are encrypted by a plain function and
offered to the socket at once. It relies on private names of libp2p 0.8.1. Anything else below (a
pre-shared key, a relay, a WebSocket) goes through the session's own read and write.
"""

import socket
from collections.abc import Iterable, Iterator
from typing import Protocol

import trio
from libp2p.abc import ISecureConn
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession

RECORD_BYTES_MAX = 65_535
"""A Noise message, tag included (https://noiseprotocol.org/noise.html#message-format)."""

TAG_BYTES = 16
"""Poly1305's, at the end of each record."""

RECEIVE_BYTES_MAX = 256 * 1024
"""Read from the socket at once: four full records, so that bulk data needs few system calls."""

CLOSE_S_MAX = 1.0
"""For an underlying session to close; a plain socket needs no time."""


class Wire(Protocol):
    """A secured connection: ordered bytes both ways."""

    own_host: str
    """This machine's address that it goes from; empty where that is not known."""
    own_port: int
    """The port there; 0 where that is not known."""

    def seal(self, frames: list[bytes]) -> bytes:
        """Turn frames into bytes for the wire, to be sent in the order of the calls."""
        ...

    def send_now(self, sealed: bytes) -> int:
        """Send what can be sent without waiting; return how many bytes."""
        ...

    async def send(self, sealed: bytearray) -> int:
        """Wait until some bytes could be sent; return how many."""
        ...

    async def receive(self) -> bytes:
        """Wait for bytes and return them decrypted.

        Raises:
            EOFError: the remote has gone.
        """
        ...

    def abort(self) -> None:
        """Close without waiting."""
        ...

    async def aclose(self) -> None:
        """Release what `abort` could not without waiting."""
        ...


def open_wire(conn: ISecureConn) -> Wire:
    """Take over a secured connection, including what it had read ahead."""
    if isinstance(conn, SecureSession) and isinstance(conn.conn, NoiseTransportReadWriter):
        raw = conn.conn.read_writer.read_write_closer
        # Exactly these types: a subclass, such as a pre-shared key's, changes the bytes.
        if type(raw) is RawConnection and type(raw.stream) is TrioTCPStream:
            return NoiseWire(conn, conn.conn, raw.stream)
    return SessionWire(conn)


class NoiseWire:
    """Noise records on a TCP socket, which it takes over from libp2p."""

    def __init__(
        self, session: SecureSession, noise: NoiseTransportReadWriter, tcp: TrioTCPStream
    ) -> None:
        tcp.get_remote_address()  # cached there; a socket without its descriptor cannot tell
        self._socket = socket.socket(fileno=tcp.stream.socket.detach())
        self._socket.setblocking(False)
        host, self.own_port, *_ = self._socket.getsockname()
        self.own_host = str(host).partition("%")[0]
        self._encrypt, self._decrypt = noise.encrypt, noise.decrypt
        self._plain = session._drain(None)
        self._raw = bytearray()

    def seal(self, frames: list[bytes]) -> bytes:
        """Encrypt frames into as few records as possible."""
        if len(frames) == 1:
            return self._record(frames[0])
        return b"".join(map(self._record, _packed(frames, RECORD_BYTES_MAX - TAG_BYTES)))

    def _record(self, plain: bytes) -> bytes:
        sealed = self._encrypt(plain)
        return len(sealed).to_bytes(2, "big") + sealed

    def send_now(self, sealed: bytes) -> int:
        """Send what the socket takes."""
        try:
            return self._socket.send(sealed)
        except BlockingIOError:
            return 0

    async def send(self, sealed: bytearray) -> int:
        """Wait for the socket, then send what it takes."""
        await trio.lowlevel.wait_writable(self._socket)
        return self.send_now(sealed)  # type: ignore[arg-type]  # sockets take any buffer

    async def receive(self) -> bytes:
        """Wait for whole records and return their bytes."""
        if self._plain:
            plain, self._plain = self._plain, b""
            return plain
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data = self._socket.recv(RECEIVE_BYTES_MAX)
            except BlockingIOError:
                continue
            if not data:
                raise EOFError("the peer hung up")
            self._raw += data
            if plain := b"".join(self._records()):
                return plain

    def _records(self) -> Iterator[bytes]:
        """Yield what is in the records that have arrived whole."""
        raw, position = self._raw, 0
        while len(raw) - position >= 2:
            end = position + 2 + (raw[position] << 8 | raw[position + 1])
            if len(raw) < end:
                break
            yield self._decrypt(bytes(raw[position + 2 : end]))
            position = end
        del raw[:position]

    def abort(self) -> None:
        """Close the socket; tasks waiting on it are woken."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def aclose(self) -> None:
        """Do nothing: `abort` released everything."""


class SessionWire:
    """Any other secured connection, through its own read and write."""

    def __init__(self, session: ISecureConn) -> None:
        self._session = session
        self.own_host, self.own_port = "", 0

    def seal(self, frames: list[bytes]) -> bytes:
        """Join frames: the session encrypts."""
        return b"".join(frames)

    def send_now(self, sealed: bytes) -> int:  # noqa: ARG002 - every write of a session may wait
        """Send nothing."""
        return 0

    async def send(self, sealed: bytearray) -> int:
        """Write one record."""
        data = bytes(sealed[: RECORD_BYTES_MAX - TAG_BYTES])
        await self._session.write(data)
        return len(data)

    async def receive(self) -> bytes:
        """Read what comes."""
        data = await self._session.read()
        if not data:
            raise EOFError("the peer hung up")
        return data

    def abort(self) -> None:
        """Do nothing: the muxer's tasks are cancelled, then `aclose` is called."""

    async def aclose(self) -> None:
        """Close the session below."""
        with trio.move_on_after(CLOSE_S_MAX):
            await self._session.close()


def _packed(frames: Iterable[bytes], size_max: int) -> Iterator[bytes]:
    """Join neighbours as long as they fit into ``size_max`` bytes."""
    batch: list[bytes] = []
    size = 0
    for frame in frames:
        if size + len(frame) > size_max:
            yield b"".join(batch)
            batch, size = [], 0
        batch.append(frame)
        size += len(frame)
    yield b"".join(batch)
