"""One stream of our muxer: unread bytes, and the tasks that wait for more or for room.

It has two interfaces: libp2p's (`IMuxedStream`), which waits at every step, and a synchronous one
for our own channels, which does at once what can be done at once.
"""

from abc import abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

import trio
from libp2p.abc import IMuxedConn, IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamReset

from transports.libp2p.padding import Padder


class Muxer(IMuxedConn):
    """What a stream needs from the connection that carries it."""

    fault: str
    """Why the connection ended."""
    was_left: bool
    """Whether one side said goodbye."""
    padder: Padder | None = None
    """Fills up what is sent, where both ends have agreed to that."""

    @property
    @abstractmethod
    def congested(self) -> bool:
        """Whether writers must wait for the socket."""

    @abstractmethod
    async def wait_uncongested(self) -> None:
        """Wait until the queue has room, or the connection has ended."""

    @abstractmethod
    def room(self, stream_id: int) -> int:
        """How many bytes a stream may send now."""

    @abstractmethod
    def send(self, stream_id: int, data: bytes | memoryview) -> int:
        """Send one frame; return how many bytes of ``data`` it took."""

    @abstractmethod
    def consumed(self, stream_id: int, size: int) -> None:
        """Take note that bytes were read."""

    @abstractmethod
    def keep_window(self, stream_id: int) -> None:
        """Let a stream's window not grow."""

    @abstractmethod
    def finish(self, stream: "Stream") -> None:
        """Say that a stream sends no more."""

    @abstractmethod
    def reset(self, stream: "Stream") -> None:
        """End a stream in both directions."""

    @abstractmethod
    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the remote's IP address and port, if they are known."""

    @abstractmethod
    def watch(self, stream: "Stream") -> None:
        """Check closely whether the peer is alive, for as long as this stream lives."""


class Stream(IMuxedStream):
    """One stream: unread bytes, and the tasks that wait for more or for room.

    ``ended`` says that the remote sends no more; ``dead`` that neither side does.
    """

    def __init__(self, connection: Muxer, stream_id: int) -> None:
        self.muxed_conn = self.connection = connection
        self.stream_id = stream_id
        self.buffer = bytearray()
        self.ended = self.dead = False
        self.finished = self._abandoned = False
        self.outlives = False
        """Whether what serves it goes on when the connection has ended."""
        self._wanted = 0  # bytes that a reader waits for
        self._told: Callable[[], bool] | None = None
        self._reader = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()

    # The synchronous interface, for channels.

    def take(self, size: int) -> bytes:
        """Remove and return the first ``size`` unread bytes, which must have arrived."""
        if size == len(self.buffer):
            data = bytes(self.buffer)
            self.buffer.clear()
        else:
            with memoryview(self.buffer) as view:
                data = bytes(view[:size])
            del self.buffer[:size]
        self.connection.consumed(self.stream_id, size)
        return data

    async def wait_buffered(self, size: int) -> None:
        """Wait until ``size`` bytes (at most a window) are unread, or no more will come."""
        while len(self.buffer) < size and not (self.ended or self.dead or self._abandoned):
            self._wanted = size
            await self._reader.park()

    async def wait_told(self, told: Callable[[], bool]) -> None:
        """Have a function called when bytes arrive, until it returns True or no more will come.

        It is called by the connection's own reader: it must neither wait nor raise.
        """
        self._told = told
        try:
            while self._told is not None and not (self.ended or self.dead or self._abandoned):
                await self._reader.park()
        finally:
            self._told = None

    async def wait_end(self) -> None:
        """Wait until the remote sends no more, or the stream is gone; drops what arrives."""
        self.abandon()
        while not (self.ended or self.dead):
            await self._reader.park()

    def keep_window(self) -> None:
        """Never let the remote send more ahead of its being read than at first."""
        self.connection.keep_window(self.stream_id)

    def room(self) -> int:
        """How many bytes may be sent now."""
        return 0 if self.dead or self.finished else self.connection.room(self.stream_id)

    def send_now(self, data: bytes | memoryview) -> int:
        """Send the beginning of ``data``, at most one frame; return how many bytes were sent."""
        return self.connection.send(self.stream_id, data) if self.room() else 0

    async def wait_room(self, *, or_end: bool = False) -> None:
        """Wait until bytes may be sent or never can; with ``or_end``, or the remote finished."""
        while not self.dead and not self.finished and not (or_end and self.ended):
            if self.room():
                return
            if self.connection.congested:
                await self.connection.wait_uncongested()
            else:
                await self._writers.park()

    def finish(self) -> None:
        """Send no more, after what was sent."""
        if not self.dead and not self.finished:
            self.finished = True
            self.connection.finish(self)
            self._writers.unpark_all()

    def abandon(self) -> None:
        """Drop what is unread and what still arrives; the remote's window is not extended."""
        self._abandoned = True
        self.buffer.clear()
        self._reader.unpark_all()

    def abort(self) -> None:
        """End the stream now, in both directions."""
        if not self.dead:
            self.connection.reset(self)

    # Called by the connection.

    def fed(self, data: bytes) -> None:
        """Bytes arrived."""
        if not self._abandoned:
            self.buffer += data
            if self._told is None:
                if len(self.buffer) >= self._wanted:
                    self._reader.unpark_all()
            elif self._told():
                self._told = None
                self._reader.unpark_all()

    def opened(self) -> None:
        """There is room to send."""
        self._writers.unpark_all()

    def remote_finished(self) -> None:
        """The remote sends no more."""
        self.ended = True
        self._reader.unpark_all()
        self._writers.unpark_all()

    def died(self) -> None:
        """The stream was reset or its connection ended; unread bytes are lost."""
        self.dead = True
        self.buffer.clear()
        self._reader.unpark_all()
        self._writers.unpark_all()

    # The interface for libp2p.

    async def read(self, n: int | None = None) -> bytes:
        """Return up to ``n`` bytes, at least one.

        Raises:
            MuxedStreamEOF: the remote sends no more.
            MuxedStreamReset: the stream or the connection is gone.
        """
        await trio.lowlevel.checkpoint()
        await self.wait_buffered(1)
        if self.buffer:
            return self.take(len(self.buffer) if n is None or n < 0 else min(n, len(self.buffer)))
        if self.dead:
            raise MuxedStreamReset("the stream was reset")
        raise MuxedStreamEOF("the remote finished")

    async def write(self, data: bytes) -> None:
        """Send all of ``data``.

        Raises:
            MuxedStreamReset: the stream or the connection is gone, or we had finished.
        """
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while view:
            await self.wait_room()
            sent = self.send_now(view)
            if not sent:
                raise MuxedStreamReset("the stream was reset")
            view = view[sent:]

    async def close(self) -> None:
        """Send no more; the remote may continue."""
        self.finish()
        await trio.lowlevel.checkpoint()

    async def close_write(self) -> None:
        """Send no more; the remote may continue."""
        await self.close()

    async def reset(self) -> None:
        """End the stream in both directions."""
        self.abort()
        await trio.lowlevel.checkpoint()

    def set_deadline(self, ttl: int) -> None:
        """Do nothing: deadlines are the caller's cancel scopes."""

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the remote's host and port, where known."""
        return self.connection.get_remote_address()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
