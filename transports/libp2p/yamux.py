"""Yamux, the pure half: bytes in, events out; no sockets, no tasks, no clock.

Many streams share one connection. Each frame is a 12-byte header (version, kind, flags, stream id,
length) and, for ``DATA``, that many bytes. Every stream has a window: how many bytes its sender may
still send before the receiver, having read some, allows more.
Specification: https://github.com/hashicorp/yamux/blob/master/spec.md

The owner of a `Yamux` feeds it what arrives (`receive`), tells it what the application does
(`send`, `consumed`, `finish`, `reset`, `ping`), and after either sends what `frames_to_send`
returns. What a remote must not do raises `YamuxViolation`: the owner then says goodbye and ends the
connection. What a remote may do is bounded: streams, unread bytes, frames. The queue of frames to
send is the owner's to bound, as only the owner knows how fast they leave.
"""

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

HEADER: Final = struct.Struct("!BBHII")
HEADER_BYTES: Final = HEADER.size

DATA, WINDOW, PING, GO_AWAY = range(4)
PAD: Final = 0x50
"""Our own, with a body that says nothing; only for a remote that has agreed to it (`padding`)."""

SYN, ACK, FIN, RST = 1, 2, 4, 8
NORMAL, PROTOCOL_ERROR = 0, 1

INITIAL_WINDOW_BYTES = 256 * 1024
"""What the specification lets either side send on a new stream before it hears anything."""

WINDOW_BYTES_MAX = 1024 * 1024
"""A stream earns it by being read: 20 MB/s at a round trip of 50 ms, where 256 KiB allow 5."""

UNREAD_BYTES_MAX = 32 * 1024 * 1024
"""Received and not yet read, over all streams of a connection: 128 full first windows."""

FRAME_BODY_BYTES_MAX = 65_535 - 16 - HEADER_BYTES
"""Sent in one frame, which then fits one Noise message with its 16-byte tag."""

STREAMS_MAX = 300
"""Open at once on one connection, per side; a peer has one per boundary and session."""

REFUSALS_MAX = 300
"""Streams refused in a row before the remote is considered to be flooding, not just busy."""


class YamuxViolation(Exception):
    """The remote sent what no correct peer sends; the connection cannot go on."""


class TooManyStreams(Exception):
    """We have as many streams open as one connection may carry, or the remote accepts no more."""


class StreamOpened(NamedTuple):
    """The remote opened a stream."""

    stream_id: int


class DataReceived(NamedTuple):
    """Bytes arrived; report them with `Yamux.consumed` once the application took them."""

    stream_id: int
    data: bytes


class WindowOpened(NamedTuple):
    """The remote allows more bytes than before."""

    stream_id: int


class RemoteFinished(NamedTuple):
    """No more bytes will follow from the remote; it may still read."""

    stream_id: int


class StreamReset(NamedTuple):
    """The remote ended the stream in both directions."""

    stream_id: int


class PingAnswered(NamedTuple):
    """The remote returned the value that we sent with a ping."""

    value: int


class WentAway(NamedTuple):
    """The remote will open no more streams and accept none."""

    code: int


Event = (
    StreamOpened
    | DataReceived
    | WindowOpened
    | RemoteFinished
    | StreamReset
    | PingAnswered
    | WentAway
)


@dataclass(slots=True)
class _Stream:
    """What both sides know of one open stream; window sizes in bytes."""

    send_window: int = INITIAL_WINDOW_BYTES
    receive_window: int = INITIAL_WINDOW_BYTES  # what the remote may still send
    window: int = INITIAL_WINDOW_BYTES  # what `receive_window` is topped up to
    window_max: int = WINDOW_BYTES_MAX
    unread: int = 0
    owed: int = 0  # consumed, and not yet allowed again
    ack: int = 0  # the ACK flag, until our first frame carries it
    finished: bool = False
    remote_finished: bool = False


def padding_frame(size: int) -> bytes:
    """Return a frame of this many bytes, header included, that says nothing."""
    body = size - HEADER_BYTES
    assert 0 <= body <= FRAME_BODY_BYTES_MAX, "one frame of padding"
    return HEADER.pack(0, PAD, 0, 0, body) + bytes(body)


class Yamux:
    """One side of a connection; the ``initiator`` dialled, and has the odd stream ids."""

    def __init__(self, *, initiator: bool) -> None:
        self._streams: dict[int, _Stream] = {}
        self._next_id = 1 if initiator else 2
        self._remote_parity = 0 if initiator else 1
        self._remote_id_max = 0
        self._remote_open = 0
        self._refusals = 0
        self._unread = 0
        self._gone = False  # either side went away: no new streams
        self._partial = b""  # the beginning of a header
        self._body_left = 0  # bytes of the current DATA frame still to come
        self._body_id = 0
        self._body_ends = False  # its FIN, to be reported after its bytes
        self._frames: list[bytes] = []

    # What the application does.

    def open_stream(self) -> int:
        """Open a stream and return its id.

        Raises:
            TooManyStreams: ``STREAMS_MAX`` of ours are open, or the connection is going away.
        """
        ours = len(self._streams) - self._remote_open
        if self._gone or ours >= STREAMS_MAX:
            raise TooManyStreams(f"{ours} streams are open")
        stream_id, self._next_id = self._next_id, self._next_id + 2
        self._streams[stream_id] = _Stream()
        self._emit(WINDOW, SYN, stream_id, 0)
        return stream_id

    def window(self, stream_id: int) -> int:
        """How many bytes the remote allows us to send now."""
        return self._streams[stream_id].send_window

    def send(self, stream_id: int, data: bytes | memoryview) -> int:
        """Queue one frame with the beginning of ``data``; return how many bytes it took."""
        stream = self._streams[stream_id]
        assert not stream.finished, "nothing follows a finish"
        size = min(len(data), stream.send_window, FRAME_BODY_BYTES_MAX)
        if size > 0:
            stream.send_window -= size
            flags, stream.ack = stream.ack, 0
            header = HEADER.pack(0, DATA, flags, stream_id, size)
            self._frames.append(header + (data if size == len(data) else data[:size]))
        return size

    def consumed(self, stream_id: int, size: int) -> None:
        """Note that the application took ``size`` bytes; ignored if the stream is gone."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        assert 0 <= size <= stream.unread, "consumed what never came"
        stream.unread -= size
        self._unread -= size
        stream.owed += size
        if stream.owed * 2 < stream.window or stream.remote_finished:
            return
        if stream.window < stream.window_max and self._unread * 4 < UNREAD_BYTES_MAX:
            stream.owed += stream.window_max - stream.window
            stream.window = stream.window_max
        self._emit(WINDOW, stream.ack, stream_id, stream.owed)
        stream.receive_window += stream.owed
        stream.owed = stream.ack = 0

    def keep_window(self, stream_id: int) -> None:
        """Let a stream's window stay as it is: who carries for others keeps little of each."""
        if stream := self._streams.get(stream_id):
            stream.window_max = stream.window

    def finish(self, stream_id: int) -> None:
        """Send no more on this stream, after what was sent; harmless if repeated or too late."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.finished:
            return
        stream.finished = True
        self._emit(WINDOW, FIN | stream.ack, stream_id, 0)
        stream.ack = 0
        self._forget_if_over(stream_id, stream)

    def reset(self, stream_id: int) -> None:
        """End this stream now in both directions; harmless if repeated or too late."""
        if stream_id in self._streams:
            self._emit(WINDOW, RST, stream_id, 0)
            self._forget(stream_id)

    def ping(self, value: int) -> None:
        """Ask the remote to return ``value`` (32 bits)."""
        self._emit(PING, SYN, 0, value)

    def go_away(self, code: int = NORMAL) -> None:
        """Open and accept no more streams; those that are open go on."""
        self._gone = True
        self._emit(GO_AWAY, 0, 0, code)

    def frames_to_send(self) -> list[bytes]:
        """Return the frames queued since the last call, each at most one Noise message long."""
        frames, self._frames = self._frames, []
        return frames

    # What the remote does.

    def receive(self, data: bytes) -> list[Event]:
        """Take what arrived, cut anywhere, and return what it means, in order.

        Raises:
            YamuxViolation: the remote broke the protocol or a limit.
        """
        events: list[Event] = []
        if self._partial:
            data = self._partial + data
        position, end = 0, len(data)
        while position < end:
            if self._body_left:
                size = min(self._body_left, end - position)
                self._body(data[position : position + size], events)
                position += size
            elif end - position < HEADER_BYTES:
                break
            else:
                self._header(HEADER.unpack_from(data, position), events)
                position += HEADER_BYTES
        self._partial = data[position:]
        return events

    def _header(self, header: tuple[int, ...], events: list[Event]) -> None:
        version, kind, flags, stream_id, length = header
        if version or flags > (SYN | ACK | FIN | RST):
            raise YamuxViolation(f"version {version}, flags {flags:#x}")
        if (kind in {DATA, WINDOW}) is not (stream_id != 0):
            raise YamuxViolation(f"frame of kind {kind} on stream {stream_id}")
        if kind == DATA:
            self._data(flags, stream_id, length, events)
        elif kind == WINDOW:
            self._window(flags, stream_id, length, events)
        elif kind == PING:
            if flags & SYN:
                self._emit(PING, ACK, 0, length)
            else:
                events.append(PingAnswered(length))
        elif kind == GO_AWAY:
            self._gone = True
            events.append(WentAway(length))
        elif kind == PAD:
            if length > FRAME_BODY_BYTES_MAX:
                raise YamuxViolation(f"padding of {length} bytes")
            self._body_left, self._body_id, self._body_ends = length, 0, False
        else:
            raise YamuxViolation(f"frame of unknown kind {kind}")

    def _data(self, flags: int, stream_id: int, length: int, events: list[Event]) -> None:
        stream = self._find(flags, stream_id, events)
        if stream is not None and stream.remote_finished:
            raise YamuxViolation(f"data after the end of stream {stream_id}")
        if length > (WINDOW_BYTES_MAX if stream is None else stream.receive_window):
            raise YamuxViolation(f"{length} bytes overrun the window of stream {stream_id}")
        if stream is not None:
            stream.receive_window -= length
        self._body_left, self._body_id, self._body_ends = length, stream_id, bool(flags & FIN)
        if flags & RST:
            self._body_ends = False
            self._remote_reset(stream_id, events)
        elif not length and flags & FIN:
            self._remote_finish(stream_id, events)

    def _body(self, data: bytes, events: list[Event]) -> None:
        """Take bytes of the current frame; those of a stream that is gone are dropped."""
        self._body_left -= len(data)
        stream = self._streams.get(self._body_id)
        if stream is not None:
            stream.unread += len(data)
            self._unread += len(data)
            if self._unread > UNREAD_BYTES_MAX:
                raise YamuxViolation(f"more than {UNREAD_BYTES_MAX} bytes unread")
            events.append(DataReceived(self._body_id, data))
        if not self._body_left and self._body_ends:
            self._remote_finish(self._body_id, events)

    def _window(self, flags: int, stream_id: int, length: int, events: list[Event]) -> None:
        stream = self._find(flags, stream_id, events)
        if stream is not None and length:
            stream.send_window += length
            if stream.send_window >= 1 << 32:
                raise YamuxViolation(f"the window of stream {stream_id} outgrows 32 bits")
            events.append(WindowOpened(stream_id))
        if flags & RST:
            self._remote_reset(stream_id, events)
        elif flags & FIN:
            self._remote_finish(stream_id, events)

    def _find(self, flags: int, stream_id: int, events: list[Event]) -> _Stream | None:
        """Return the stream that a frame is for, opening it if asked; None for one that is gone."""
        stream = self._streams.get(stream_id)
        theirs = stream_id % 2 == self._remote_parity
        if flags & SYN:
            if stream is not None or not theirs:
                raise YamuxViolation(f"stream {stream_id} cannot be opened")
            return self._accept(stream_id, events)
        if stream is None:
            # Frames may cross our reset or refusal, but only on streams that once existed.
            known = stream_id <= self._remote_id_max if theirs else stream_id < self._next_id
            if not known:
                raise YamuxViolation(f"frame on stream {stream_id}, which was never opened")
        return stream

    def _accept(self, stream_id: int, events: list[Event]) -> _Stream | None:
        self._remote_id_max = max(self._remote_id_max, stream_id)
        if self._gone or self._remote_open >= STREAMS_MAX:
            self.refuse(stream_id)
            return None
        self._refusals = 0
        self._remote_open += 1
        self._streams[stream_id] = stream = _Stream(ack=ACK)
        events.append(StreamOpened(stream_id))
        return stream

    def refuse(self, stream_id: int) -> None:
        """Reset a stream that the remote just opened because there are too many.

        Raises:
            YamuxViolation: ``REFUSALS_MAX`` in a row.
        """
        self._refusals += 1
        if self._refusals > REFUSALS_MAX:
            raise YamuxViolation("a flood of streams")
        self._emit(WINDOW, RST, stream_id, 0)
        if stream_id in self._streams:
            self._forget(stream_id)

    def _remote_reset(self, stream_id: int, events: list[Event]) -> None:
        if stream_id in self._streams:
            self._forget(stream_id)
            events.append(StreamReset(stream_id))

    def _remote_finish(self, stream_id: int, events: list[Event]) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.remote_finished:
            stream.remote_finished = True
            events.append(RemoteFinished(stream_id))
            self._forget_if_over(stream_id, stream)

    def _forget_if_over(self, stream_id: int, stream: _Stream) -> None:
        if stream.finished and stream.remote_finished:
            self._forget(stream_id)

    def _forget(self, stream_id: int) -> None:
        self._unread -= self._streams.pop(stream_id).unread
        if stream_id % 2 == self._remote_parity:
            self._remote_open -= 1

    def _emit(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        self._frames.append(HEADER.pack(0, kind, flags, stream_id, length))
