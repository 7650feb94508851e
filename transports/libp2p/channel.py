"""Messages on a stream: four bytes of length, big endian, then the message.

Where both ends have agreed to fill up what they say (`padding`), a long message is followed by as
many bytes as its length demands, so that nothing shows where it ends.

A message that fits the window goes out in one plain call, before the sender first yields, and one
that has arrived whole is returned in one piece. A round trip costs four scheduler passes:
on each side one for the task that reads the socket, and one for the task that it wakes, which is
not needed where messages are given to a function.
"""

from collections.abc import Callable

import trio

from p2pinfer.core.errors import ChannelClosed, RemoteProtocolError
from p2pinfer.core.ids import PeerId
from transports.base import MESSAGE_BYTES_MAX
from transports.libp2p.padding import CellShape
from transports.libp2p.stream import Muxer, Stream
from transports.libp2p.yamux import FRAME_BODY_BYTES_MAX

LENGTH_BYTES = 4

WHOLE_BYTES_MAX = 64 * 1024
"""Up to this size a message is awaited whole and taken in one piece; well within any window."""


def frame(message: bytes) -> bytes:
    """Return a message as it goes onto a stream."""
    return len(message).to_bytes(LENGTH_BYTES, "big") + message


def framed_for(connection: Muxer, message: bytes) -> bytes:
    """Return a message as it goes onto a stream, filled up where that is agreed on."""
    framed, padder = frame(message), connection.padder
    return framed + bytes(padder.shape.behind(len(framed))) if padder else framed


class StreamChannel:
    """A `transports.base.Channel` on one stream of our muxer."""

    def __init__(self, stream: Stream, remote: PeerId) -> None:
        self._stream = stream
        self._remote = remote
        self._lock = trio.Lock()
        self._senders = 0  # tasks whose message is not yet fully sent
        self._closed = False
        self._parts: list[bytes] = []  # of a long message
        self._left = 0  # bytes of it still to come
        self._filling = 0  # and of what fills it up
        padder = stream.connection.padder
        self._shape: CellShape | None = padder.shape if padder else None
        stream.connection.watch(stream)

    @property
    def remote(self) -> PeerId:
        """The peer at the other end, as the Noise handshake proved it."""
        return self._remote

    async def send(self, message: bytes) -> None:
        """Send one message; see `transports.base.Channel.send`."""
        size = len(message)
        if size > MESSAGE_BYTES_MAX:
            raise ValueError(f"a message of {size} bytes; the limit is {MESSAGE_BYTES_MAX}")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._require_open()
        if self.send_now(message):
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        framed = frame(message)
        framed += bytes(self._padding(len(framed)))
        self._senders += 1
        try:
            async with self._lock:
                await self._send_slowly(memoryview(framed))
        finally:
            self._senders -= 1
            if self._closed and not self._senders:
                self._stream.finish()

    def send_now(self, message: bytes) -> bool:
        """Send one message at once or not at all; see `transports.base.Channel.send_now`."""
        stream = self._stream
        size = LENGTH_BYTES + len(message)
        if (
            self._senders
            or self._closed
            or stream.dead
            or stream.ended
            or size > FRAME_BODY_BYTES_MAX
            or size > stream.room()
            or self._padding(size)
        ):
            return False
        sent = stream.send_now(frame(message))
        assert sent == size, "there was room for it"
        return True

    async def _send_slowly(self, framed: memoryview) -> None:
        """Send as the window allows; the channel ends if a message is sent only in part."""
        left = framed
        try:
            while left:
                await self._stream.wait_room(or_end=True)
                sent = 0 if self._stream.ended else self._stream.send_now(left)
                if not sent:
                    raise self._closed_error()
                left = left[sent:]
                await trio.lowlevel.checkpoint()  # bulk data lets other tasks run
        except trio.Cancelled:
            if 0 < len(left) < len(framed):
                self.abort()
            raise

    def _padding(self, size: int) -> int:
        """How many bytes follow a framed message of this size that say nothing."""
        return self._shape.behind(size) if self._shape else 0

    async def receive(self) -> bytes:
        """Return the next message; see `transports.base.Channel.receive`."""
        if self._closed:
            raise self._closed_error()
        stream = self._stream
        if not self._left and not self._filling:
            if len(stream.buffer) < LENGTH_BYTES:
                await stream.wait_buffered(LENGTH_BYTES)
            else:
                await trio.lowlevel.checkpoint()
            size = self._announced()
            self._filling = self._padding(LENGTH_BYTES + size)
            if size <= WHOLE_BYTES_MAX and not self._filling:
                await stream.wait_buffered(LENGTH_BYTES + size)
                self._require_buffered(LENGTH_BYTES + size)
                return stream.take(LENGTH_BYTES + size)[LENGTH_BYTES:]
            stream.take(LENGTH_BYTES)
            self._left = size
        return await self._receive_slowly()

    async def receive_each(self, take: Callable[[bytes], bool]) -> None:
        """Give each message to a function; see `transports.base.Channel.receive_each`.

        Long messages, which are taken as they come, wait for this task.
        """
        failures: list[Exception] = []
        goes_on = True

        def deliver() -> bool:
            """Give away what is here; return whether the task has something to do."""
            nonlocal goes_on
            try:
                while goes_on and (size := self._whole()) is not None:
                    goes_on = take(self._stream.take(LENGTH_BYTES + size)[LENGTH_BYTES:])
            except Exception as error:  # noqa: BLE001 -- it is the task's, which raises it
                failures.append(error)
            return bool(failures) or not goes_on or self._is_long()

        while goes_on:
            if self._closed:
                raise self._closed_error()
            await trio.lowlevel.checkpoint()
            if self._is_long():
                goes_on = take(await self.receive())
                continue
            if not deliver():
                await self._stream.wait_told(deliver)
            if failures:
                raise failures[0]
            if goes_on and not self._is_long():
                self._require_open()

    def _is_long(self) -> bool:
        """Whether a long message has begun."""
        buffer = self._stream.buffer
        if self._left or self._filling or len(buffer) < LENGTH_BYTES:
            return bool(self._left or self._filling)
        size = int.from_bytes(buffer[:LENGTH_BYTES], "big")
        return size > WHOLE_BYTES_MAX or bool(self._padding(LENGTH_BYTES + size))

    def _whole(self) -> int | None:
        """Return the length of the short message at the start of the buffer, if it is all there."""
        buffer = self._stream.buffer
        if self._left or self._filling or len(buffer) < LENGTH_BYTES:
            return None
        size = int.from_bytes(buffer[:LENGTH_BYTES], "big")
        if self._padding(LENGTH_BYTES + size):
            return None
        return size if size <= min(WHOLE_BYTES_MAX, len(buffer) - LENGTH_BYTES) else None

    def _announced(self) -> int:
        """Return the length of the message at the start of the buffer."""
        self._require_buffered(LENGTH_BYTES)
        size = int.from_bytes(self._stream.buffer[:LENGTH_BYTES], "big")
        if size > MESSAGE_BYTES_MAX:
            self.abort()
            raise RemoteProtocolError(
                self._remote,
                f"announced a message of {size} bytes; the limit is {MESSAGE_BYTES_MAX}",
            )
        return size

    async def _receive_slowly(self) -> bytes:
        """Take a long message as it comes, so that its sender may send the rest.

        What was taken before a cancellation is kept for the next call.
        """
        while self._left:
            await self._stream.wait_buffered(min(self._left, WHOLE_BYTES_MAX))
            self._require_buffered(1)
            self._parts.append(self._stream.take(min(self._left, len(self._stream.buffer))))
            self._left -= len(self._parts[-1])
        while self._filling:
            await self._stream.wait_buffered(min(self._filling, WHOLE_BYTES_MAX))
            self._require_buffered(1)
            filling = self._stream.take(min(self._filling, len(self._stream.buffer)))
            self._filling -= len(filling)
        parts, self._parts = self._parts, []
        return b"".join(parts)

    async def close(self) -> None:
        """Say that no more messages follow; see `transports.base.Channel.close`."""
        if not self._closed:
            self._closed = True
            self._stream.abandon()
            if not self._senders:
                self._stream.finish()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """End the channel now in both directions."""
        self._closed = True
        self._stream.abort()

    def _require_open(self) -> None:
        if self._closed or self._stream.dead or self._stream.ended:
            raise self._closed_error()

    def _require_buffered(self, size: int) -> None:
        if len(self._stream.buffer) < size:
            raise self._closed_error()

    def _closed_error(self) -> ChannelClosed:
        connection = self._stream.connection
        if self._closed:
            return ChannelClosed(self._remote, "we closed the channel")
        if connection.fault:
            text, is_lost = f"the connection ended: {connection.fault}", not connection.was_left
            return ChannelClosed(self._remote, text, is_lost=is_lost)
        return ChannelClosed(self._remote, "the peer closed the channel")
