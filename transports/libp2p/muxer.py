"""Yamux on a socket: a thin trio shell around `yamux`, fused with the Noise records.

What a task sends is framed, encrypted and queued in one go without waiting, and sent at
once if the socket takes it; otherwise one task flushes the queue. One task reads, decrypts and
hands out all that has arrived. So nothing is ever half done when a task is cancelled; libp2p's own
muxer loses its connection then, and needs some 26 scheduler passes for a round trip where
this one needs four. A third task pings, and drops a peer that has fallen silent.

This implements the muxer interface of libp2p 0.8.1 (`IMuxedConn`, `IMuxedStream`), and is installed
in `host`. Its streams are in `stream`.
"""

import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from libp2p.abc import ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from p2pinfer.core.ids import PeerId
from transports.libp2p import yamux
from transports.libp2p.noise_records import Wire, open_wire
from transports.libp2p.padding import Padder
from transports.libp2p.stream import Muxer, Stream
from transports.libp2p.yamux import Yamux
from transports.traffic import TRAFFIC

log: Final = logging.getLogger("p2pinfer.transports")

QUEUE_BYTES_MAX = 64 * 1024
"""Encrypted and not yet taken by the socket: beyond this, writers wait. One record's worth: a token
must not queue behind more bulk data than keeps the socket busy."""

QUEUE_CONTROL_BYTES_MAX = 256 * 1024
"""Answers (pings, refusals, windows) that may pile up beyond that before a peer that asks without
reading is dropped."""

PING_INTERVAL_S = 0.5
"""Both sides ping, so each hears the other even while its own pings wait behind bulk data."""

SILENCE_S_MAX = 1.8
"""A peer silent for this long is presumed dead: sessions must notice within 2 s."""

IDLE_PING_INTERVAL_S = 5.0
"""While no channel is open. Thirty such neighbours then cost 0.2 % of a core instead of 2 %."""

IDLE_SILENCE_S_MAX = 3.6 * IDLE_PING_INTERVAL_S
"""The same number of missed answers as with a channel."""

STALL_S = 0.25
"""If our own timer is later than this, we were stalled and heard nothing: no peer is blamed."""

PINGS_MAX = 8
"""Remembered until answered: four seconds' worth, more than a silent peer lasts; of those behind
data two."""

RTT_SMOOTHING = 1 / 8
"""Weight of a new sample, as in TCP (RFC 6298)."""

BEHIND_INTERVAL_S = 0.25
"""Between two pings right behind data, through a relay: it may slow rows, and let lone pings pass,
which it tells by their size. It cannot have them overtake rows."""

BEHIND_SMOOTHING = 1 / 4
"""Weight of a new sample of these: there are few in a second."""


class Connection(Muxer):
    """One Yamux connection to one peer; `start` runs it until it ends."""

    def __init__(
        self,
        conn: ISecureConn,
        peer_id: ID,
        is_initiator: bool | None = None,
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.secured_conn = conn
        self.peer_id = peer_id
        self.on_close = on_close  # libp2p sets it
        self.event_started, self.event_closed = trio.Event(), trio.Event()
        self.fault = ""  # why it ended
        self.rtt_s: float | None = None
        self.was_left = False
        """Whether one side said goodbye."""
        self.carried = 0
        """Bytes sent and received, encrypted."""
        self._heard_at = self._rtt_s_min = 0.0  # the latter of all samples
        self._behind_s = self._behind_at = 0.0  # round trip of data; when it was last asked for
        self._behind: set[int] = set()  # the pings for it
        self._ping_values = itertools.cycle(range(1 << 32))
        self._initiator = conn.is_initiator if is_initiator is None else is_initiator
        self._wire: Wire = open_wire(conn)
        self._core = Yamux(initiator=self._initiator)
        self._streams: dict[int, Stream] = {}
        self._accepted, self._accepting = trio.open_memory_channel[Stream](yamux.STREAMS_MAX)
        self._queue = bytearray()
        self._flusher, self._congested = trio.lowlevel.ParkingLot(), trio.lowlevel.ParkingLot()
        self.beater = trio.lowlevel.ParkingLot()  # for data that starts a rhythm
        self._scope = trio.CancelScope()
        self._ended: list[Callable[[], object]] = []
        self.idle_since = trio.current_time()  # while no channel is open
        self._watched: set[int] = set()  # streams of channels, which need to know of a dead peer
        self._alert = trio.lowlevel.ParkingLot()
        self._pings: dict[int, float] = {}  # not yet answered: the value, and when it was sent

    _nursery: trio.Nursery  # from the start to the end
    # The interface for streams.

    @property
    def own_host(self) -> str:
        """This machine's address that the connection goes from; empty where that is not known."""
        return self._wire.own_host

    @property
    def relay(self) -> PeerId | None:
        """The peer that carries the connection; None if it is direct."""
        return self._wire.relay

    @property
    def own_port(self) -> int:
        """The port of that address; 0 where it is not known."""
        return self._wire.own_port

    @property
    def congested(self) -> bool:
        """Whether writers must wait for the socket."""
        held = self.padder.held_bytes if self.padder else 0
        return len(self._queue) + held > QUEUE_BYTES_MAX

    async def wait_uncongested(self) -> None:
        """Wait until the queue has room, or the connection has ended."""
        if self.congested and not self.is_closed:
            await self._congested.park()

    def room(self, stream_id: int) -> int:
        """How many bytes a stream may send now."""
        return 0 if self.congested else self._core.window(stream_id)

    def send(self, stream_id: int, data: bytes | memoryview) -> int:
        """Send one frame; return how many bytes of ``data`` it took."""
        sent = self._core.send(stream_id, data)
        if sent and self.relay is not None:
            self._ping_behind()
        self._pump()
        return sent

    def consumed(self, stream_id: int, size: int) -> None:
        """Tell the remote, when it is worth a frame, that bytes were read."""
        self._core.consumed(stream_id, size)
        self._pump()

    def keep_window(self, stream_id: int) -> None:
        """Let a stream's window not grow."""
        self._core.keep_window(stream_id)

    def finish(self, stream: Stream) -> None:
        """Say that a stream sends no more."""
        self._core.finish(stream.stream_id)
        self._pump()
        if stream.ended:
            self._forget(stream.stream_id)

    def reset(self, stream: Stream) -> None:
        """End a stream in both directions."""
        self._core.reset(stream.stream_id)
        self._forget(stream.stream_id)
        stream.died()
        self._pump()

    def open_now(self) -> Stream:
        """Open a stream; the remote learns of it with our first bytes.

        Raises:
            MuxedConnUnavailable: the connection has ended, or carries too many streams.
        """
        if self.is_closed:
            raise MuxedConnUnavailable(self.fault)
        try:
            stream_id = self._core.open_stream()
        except yamux.TooManyStreams as error:
            raise MuxedConnUnavailable(str(error)) from error
        stream = self._streams[stream_id] = Stream(self, stream_id)
        return stream

    def watch(self, stream: Stream) -> None:
        """Check closely whether the peer is alive, for as long as this stream lives."""
        if not self._watched:
            # While idle, a long silence was normal and must not count.
            self._heard_at = max(self._heard_at, trio.current_time())
            self._alert.unpark_all()
        self._watched.add(stream.stream_id)

    @property
    def channels(self) -> int:
        """How many channels we opened that have not ended."""
        return len(self._watched)

    @property
    def idle(self) -> bool:
        """Whether no channel is open."""
        return not self._watched

    @property
    def silent_s(self) -> float:
        """Seconds since anything came."""
        return trio.current_time() - self._heard_at

    @property
    def lag_s(self) -> float:
        """How much longer pings take now than they did at best, in seconds."""
        if self.rtt_s is None:
            return 0.0
        waits_since = next(iter(self._pings.values()), float("inf"))
        waiting_s = trio.current_time() - waits_since
        return max(self.rtt_s, self._behind_s, waiting_s) - self._rtt_s_min

    def _forget(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        if stream_id in self._watched:
            self._watched.remove(stream_id)
            self.idle_since = trio.current_time()

    def abort(self, fault: str) -> None:
        """End the connection and all its streams now, without a wait or a goodbye. Idempotent."""
        if self.is_closed:
            return
        self.fault = fault
        self.event_closed.set()
        log.debug("connection to %s ended: %s", self.peer_id, fault)
        self._wire.abort()
        self._accepted.close()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.died()
        self._congested.unpark_all()
        for tell in self._ended:
            tell()
        self._scope.cancel()

    def leave(self) -> None:
        """Say goodbye if the socket takes it, and end the connection now."""
        if not self.is_closed:
            self.was_left = True
            self._core.go_away()
            self._pump()
            if self.padder:
                self.seal(self.padder.flush())
            self.abort("we closed it")

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task until the connection ends."""
        if not self.is_closed:
            self._nursery.start_soon(self._guarded, task)

    def call_at_end(self, tell: Callable[[], object]) -> Callable[[], object]:
        """Have a function called when the connection ends; return a function that undoes this."""
        self._ended.append(tell)
        return lambda: self._ended.remove(tell)

    async def wait_flushed(self) -> None:
        """Wait until the socket has taken all that was sent, or the connection has ended."""
        while self._queue and not self.is_closed:
            await self._congested.park()

    # The three tasks.

    async def start(self) -> None:
        """Run until the connection ends; never raises, whatever the remote does."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    for task in (self._read, self._flush, self._watch):
                        nursery.start_soon(self._guarded, task)
                    self.event_started.set()
        finally:
            self.event_started.set()
            self.abort("we ended it")
            with trio.CancelScope(shield=True):
                await self._wire.aclose()
                await self._tell_libp2p()

    async def _tell_libp2p(self) -> None:
        if self.on_close is not None:
            try:
                await self.on_close()
            except Exception:  # an exception from here would end the whole host
                log.exception("libp2p failed to let go of peer %s", self.peer_id)

    async def _guarded(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except yamux.YamuxViolation as error:
            log.info("peer %s broke the protocol: %s", self.peer_id, error)
            self._core.go_away(yamux.PROTOCOL_ERROR)
            self._pump()
            self.abort(f"the peer broke the protocol: {error}")
        except Exception as error:  # noqa: BLE001 - what a remote provokes ends only this connection
            self.abort(f"{type(error).__name__}: {error}")

    async def _read(self) -> None:
        while True:
            data = await self._wire.receive()
            TRAFFIC.received += len(data)
            self.carried += len(data)
            self._heard_at = trio.current_time()
            for event in self._core.receive(data):
                self._apply(event)
                if self.padder and isinstance(event, yamux.DataReceived):
                    self.padder.touch(self._heard_at)
                    self.beater.unpark_all()
            self._pump()

    def _apply(self, event: yamux.Event) -> None:
        if isinstance(event, yamux.PingAnswered):
            self._measure(event.value)
        elif isinstance(event, yamux.WentAway):
            self.was_left = True
            log.debug("peer %s is going away, code %d", self.peer_id, event.code)
        elif isinstance(event, yamux.StreamOpened):
            self._accept(event.stream_id)
        elif (stream := self._streams.get(event.stream_id)) is None:
            pass  # reset by us while the bytes were on their way
        elif isinstance(event, yamux.DataReceived):
            stream.fed(event.data)
        elif isinstance(event, yamux.WindowOpened):
            stream.opened()
        elif isinstance(event, yamux.RemoteFinished):
            stream.remote_finished()
            if stream.finished:
                self._forget(event.stream_id)
        else:
            self._forget(event.stream_id)
            stream.died()

    def _accept(self, stream_id: int) -> None:
        stream = Stream(self, stream_id)
        try:
            self._accepted.send_nowait(stream)
        except trio.WouldBlock:
            self._core.refuse(stream_id)
        else:
            self._streams[stream_id] = stream

    def _pump(self) -> None:
        """Send what the core has to say, or have it wait for the next beat."""
        frames = self._core.frames_to_send()
        if frames and self.padder:
            frames = self.padder.put(frames, trio.current_time())
            self.beater.unpark_all()
        self.seal(frames)

    def beat(self, padder: Padder) -> None:
        """Send the cell of one beat."""
        self.seal(padder.beat(trio.current_time(), is_behind=bool(self._queue)))
        self._congested.unpark_all()

    def seal(self, frames: list[bytes]) -> None:
        """Encrypt frames; send them if the socket takes them, else queue them."""
        if not frames or self.is_closed:
            return
        sealed = self._wire.seal(frames)
        TRAFFIC.sent += len(sealed)
        self.carried += len(sealed)
        if not self._queue:
            try:
                sent = self._wire.send_now(sealed)
            except OSError as error:
                self.abort(f"{type(error).__name__}: {error}")
                return
            if sent == len(sealed):
                return
            sealed = sealed[sent:]
        self._queue += sealed
        self._flusher.unpark_all()
        if len(self._queue) > QUEUE_BYTES_MAX + QUEUE_CONTROL_BYTES_MAX:
            self.abort("the peer asks and does not read")

    async def _flush(self) -> None:
        while True:
            if not self._queue:
                await self._flusher.park()
            sent = await self._wire.send(self._queue)
            del self._queue[:sent]
            if len(self._queue) <= QUEUE_BYTES_MAX // 2:
                self._congested.unpark_all()

    async def _watch(self) -> None:
        """Ping, and end the connection when the peer has been silent for too long."""
        self._heard_at = trio.current_time()
        pinged_at = self._heard_at - (IDLE_PING_INTERVAL_S if self.idle else PING_INTERVAL_S)
        while True:
            due, _ = self._due(pinged_at)
            with trio.move_on_at(due):
                await self._alert.park()
            _, ping_at = self._due(pinged_at)  # a channel may have opened
            now = trio.current_time()
            if now - due > STALL_S:
                # We were stopped, not the peer: what it sent meanwhile is still unread.
                self._heard_at += now - due
            if now >= ping_at:
                pinged_at = now
                self._ping()
                self._pump()
            await trio.lowlevel.checkpoint()  # the reader may have been about to run
            silence_s_max = IDLE_SILENCE_S_MAX if self.idle else SILENCE_S_MAX
            if trio.current_time() >= self._heard_at + silence_s_max:
                raise TimeoutError(f"silent for {silence_s_max:g} s")

    def _due(self, pinged_at: float) -> tuple[float, float]:
        """Return when to check again, and when to ping."""
        interval_s = IDLE_PING_INTERVAL_S if self.idle else PING_INTERVAL_S
        silence_s_max = IDLE_SILENCE_S_MAX if self.idle else SILENCE_S_MAX
        ping_at = pinged_at + interval_s
        return min(ping_at, self._heard_at + silence_s_max), ping_at

    def _ping(self) -> int:
        """Queue a ping; return its value."""
        value = next(self._ping_values)
        self._pings[value] = trio.current_time()
        if len(self._pings) > PINGS_MAX:
            oldest = next(iter(self._pings))
            del self._pings[oldest]
            self._behind.discard(oldest)
        self._core.ping(value)
        return value

    def _ping_behind(self) -> None:
        """Queue a ping behind data, unless there was one a moment ago."""
        now = trio.current_time()
        if now - self._behind_at >= BEHIND_INTERVAL_S:
            self._behind_at = now
            self._behind.add(self._ping())

    def _measure(self, value: int) -> None:
        if (sent_at := self._pings.pop(value, None)) is not None:
            sample = trio.current_time() - sent_at
            if value in self._behind:
                self._behind.remove(value)
                before = self._behind_s or sample
                self._behind_s = before + BEHIND_SMOOTHING * (sample - before)
            self._rtt_s_min = sample if self.rtt_s is None else min(self._rtt_s_min, sample)
            before = sample if self.rtt_s is None else self.rtt_s
            self.rtt_s = before + RTT_SMOOTHING * (sample - before)

    # The interface for libp2p.

    @property
    def is_initiator(self) -> bool:
        """Whether we dialled."""
        return self._initiator

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and not self.is_closed

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended."""
        return self.event_closed.is_set()

    async def open_stream(self) -> Stream:
        """Open a stream."""
        await trio.lowlevel.checkpoint()
        return self.open_now()

    async def accept_stream(self) -> Stream:
        """Return the next stream that the remote opened.

        Raises:
            MuxedConnUnavailable: the connection has ended.
        """
        try:
            return await self._accepting.receive()
        except trio.EndOfChannel:
            raise MuxedConnUnavailable(self.fault) from None

    async def close(self) -> None:
        """Say goodbye and end the connection."""
        self.leave()
        await trio.lowlevel.checkpoint()

    def get_transport_addresses(self) -> list[Multiaddr]:
        """Return the addresses that this connection really uses."""
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        """Say whether the connection is direct or relayed."""
        return self.secured_conn.get_connection_type()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the remote's host and port, where known."""
        return self.secured_conn.get_remote_address()
