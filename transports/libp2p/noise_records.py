"""The layer below the muxer: encrypted records on a socket, on a circuit, or on anything else.

The fast paths are a plain TCP socket under Noise, and a stream of another connection, which is a
circuit through a relay: records are encrypted by a plain function and offered to either at once.
They rely on private names of libp2p 0.8.1 and noiseprotocol 0.3.1. Anything else below (a
pre-shared key, a WebSocket) goes through the session's own read and write.
"""

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Protocol

import trio
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from libp2p.abc import ISecureConn
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.exceptions import MuxedStreamReset
from noise.state import CipherState  # type: ignore[import-untyped]  # it ships no types

from p2pinfer.core.ids import PeerId
from transports.libp2p.stream import Stream

RECORD_BYTES_MAX = 65_535
"""A Noise message, tag included (https://noiseprotocol.org/noise.html#message-format)."""

TAG_BYTES = 16
"""Poly1305's, at the end of each record."""

RECEIVE_BYTES_MAX = 256 * 1024
"""Read from the socket at once: four full records, so that bulk data needs few system calls."""

REFUSAL_BYTES = len(b"\x13/multistream/1.0.0\n\x03na\n")
"""What comes where a handshake is refused, which is shorter than any agreement."""

CLOSE_S_MAX = 1.0
"""For an underlying session or circuit to close; a plain socket needs no time."""


class Wire(Protocol):
    """A secured connection: ordered bytes both ways."""

    own_host: str
    """This machine's address that it goes from; empty where that is not known."""
    own_port: int
    """The port there; 0 where that is not known."""

    @property
    def relay(self) -> PeerId | None:
        """The peer that carries it; None if it is direct."""
        ...

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


def circuit_below(conn: object) -> "StreamPipe | None":
    """Return the circuit that a connection runs on, raw or secured, if it is one."""
    noise = getattr(getattr(conn, "conn", None), "read_writer", None)
    pipe = getattr(getattr(noise, "read_write_closer", conn), "stream", None)
    return pipe if isinstance(pipe, StreamPipe) else None


def open_wire(conn: ISecureConn) -> Wire:
    """Take over a secured connection, including what it had read ahead."""
    if isinstance(conn, SecureSession) and isinstance(conn.conn, NoiseTransportReadWriter):
        raw = conn.conn.read_writer.read_write_closer
        # Exactly these types: a subclass, such as a pre-shared key's, changes the bytes.
        if type(raw) is RawConnection and type(raw.stream) is TrioTCPStream:
            return NoiseWire(conn, conn.conn, raw.stream)
        if type(raw) is RawConnection and isinstance(raw.stream, StreamPipe):
            return CircuitWire(conn, conn.conn, raw.stream)
    return SessionWire(conn)


class NoiseRecords:
    """A session's records: frames are sealed into them, and taken out of what has arrived."""

    def __init__(self, session: SecureSession, noise: NoiseTransportReadWriter) -> None:
        state = noise.noise_state.noise_protocol
        self._encrypt = _cipher(state.cipher_state_encrypt, "encrypt")
        self._decrypt = _cipher(state.cipher_state_decrypt, "decrypt")
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

    def _opened(self, data: bytes) -> bytes:
        """Return what is in the records that these bytes complete: mostly one, all of it here."""
        if not self._raw and int.from_bytes(data[:2], "big") == len(data) - 2 > 0:
            return self._decrypt(data[2:])
        self._raw += data
        return b"".join(self._records())

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


class NoiseWire(NoiseRecords):
    """Noise records on a TCP socket, which it takes over from libp2p."""

    relay: PeerId | None = None

    def __init__(
        self, session: SecureSession, noise: NoiseTransportReadWriter, tcp: TrioTCPStream
    ) -> None:
        super().__init__(session, noise)
        with suppress(OSError):  # it is gone already
            # Kept where libp2p would: it knows IPv4 alone, and no socket without its descriptor.
            host, port, *_ = tcp.stream.socket.getpeername()
            tcp._cached_remote_address = str(host).partition("%")[0], port
        self._socket = socket.socket(fileno=tcp.stream.socket.detach())
        self._socket.setblocking(False)
        host, self.own_port, *_ = self._socket.getsockname()
        self.own_host = str(host).partition("%")[0]

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
            if plain := self._opened(data):
                return plain

    def abort(self) -> None:
        """Close the socket; tasks waiting on it are woken."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def aclose(self) -> None:
        """Do nothing: `abort` released everything."""


class StreamPipe(ReadWriteCloser):
    """One of our streams in the place where libp2p has a socket, while a handshake runs on it."""

    def __init__(self, stream: Stream, relay: PeerId, expected: PeerId) -> None:
        self.stream, self.relay = stream, relay
        self.expected = expected
        """Who is at the other end, if the relay does not lie."""
        self._closed = self._was_hung_up = False
        self._held, self._due = b"", b""
        self.muxer_due = b""
        """What the other end says before its first frame."""

    @property
    def carrier(self) -> PeerId | None:
        """The relay that the connection on it goes through."""
        return self.relay

    @property
    def was_hung_up(self) -> bool:
        """Whether the other end, or the relay, ended the circuit before this one did."""
        return self._was_hung_up if self._closed else self.stream.dead or self.stream.ended

    def propose(self, lines: bytes) -> None:
        """Say what is to be spoken, together with the first bytes of that; agreement is awaited.

        A round trip through a relay may be half a second.
        """
        self._held = self._due = lines

    async def read(self, n: int | None = None) -> bytes:
        """Return what has come.

        Raises:
            MuxedStreamReset: the circuit is gone, or the other end does not agree.
        """
        if due := self._due:
            for size in (REFUSAL_BYTES, len(due)):
                await self.stream.wait_buffered(size)
                if len(self.stream.buffer) < size:
                    raise MuxedStreamReset("the circuit ended")
                if not due.startswith(self.stream.buffer[: len(due)]):
                    raise MuxedStreamReset("protocols not supported: noise")
            self.stream.take(len(due))
            self._due = b""
        return await self.stream.read(n)

    async def write(self, data: bytes) -> None:
        """Send."""
        held, self._held = self._held, b""
        await self.stream.write(held + data)

    async def close(self) -> None:
        """End the circuit."""
        self._closed, self._was_hung_up = True, self.was_hung_up
        self.stream.abort()
        await trio.lowlevel.checkpoint()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return None: only the relay's is known."""
        return None


class CircuitWire(NoiseRecords):
    """Noise records on a stream of another connection, which leads through a relay.

    What is sealed is offered to the outer connection in the same call, so that a token needs no
    more passes of the scheduler than without a relay.
    """

    own_host = ""
    own_port = 0

    def __init__(
        self, session: SecureSession, noise: NoiseTransportReadWriter, pipe: StreamPipe
    ) -> None:
        super().__init__(session, noise)
        self._stream = pipe.stream
        self.relay: PeerId | None = pipe.carrier
        self._due = pipe.muxer_due  # still to come, before its first frame

    def send_now(self, sealed: bytes) -> int:
        """Send what the stream takes."""
        sent = 0
        with memoryview(sealed) as view:
            while sent < len(view) and (took := self._stream.send_now(view[sent:])):
                sent += took
        return sent

    async def send(self, sealed: bytearray) -> int:
        """Wait for the stream, then send what it takes."""
        await self._stream.wait_room()
        if self._stream.dead or self._stream.finished:
            raise EOFError("the circuit ended")
        return self.send_now(bytes(sealed))

    async def receive(self) -> bytes:
        """Wait for bytes and return those of whole records, perhaps none.

        A relay that limits the rate may take seconds to pass on one record: its pieces, too, show
        that the peer lives.
        """
        if self._plain:
            plain, self._plain = self._plain, b""
            return plain
        await self._stream.wait_buffered(1)
        if not self._stream.buffer:
            raise EOFError("the circuit ended")
        plain = self._opened(self._stream.take(len(self._stream.buffer)))
        return self._agreed(plain) if self._due else plain

    def _agreed(self, plain: bytes) -> bytes:
        """Take the other end's agreement to our muxer off what it sends."""
        said = plain[: len(self._due)]
        if not self._due.startswith(said):
            raise EOFError("it does not speak our muxer")
        self._due = self._due[len(said) :]
        return plain[len(said) :]

    def abort(self) -> None:
        """Say that no more follows; what was sent still arrives, as on a socket."""
        self._stream.abandon()
        self._stream.finish()

    async def aclose(self) -> None:
        """Give the other end time to hang up, too, then drop the stream."""
        with trio.move_on_after(CLOSE_S_MAX):
            await self._stream.wait_end()
        self._stream.abort()


class SessionWire:
    """Any other secured connection, through its own read and write."""

    relay: PeerId | None = None

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


def _cipher(state: CipherState, way: str) -> Callable[[bytes], bytes]:
    """Return a function that goes on where one direction of a handshake has left its state.

    The library's own goes through six functions for each record, on the path of every token.
    A nonce is the record's number; 2**64 of them, after which a connection must end, never come.
    """
    aead = state.cipher.cipher
    assert isinstance(aead, ChaCha20Poly1305), "libp2p's Noise has no other cipher"
    crypt, number = getattr(aead, way), state.n

    def next_record(data: bytes) -> bytes:
        nonlocal number
        nonce = b"\0\0\0\0" + number.to_bytes(8, "little")
        number += 1
        found: bytes = crypt(nonce, data, None)
        return found

    return next_record


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
