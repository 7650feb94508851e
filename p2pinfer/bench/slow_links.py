"""Links between processes of this machine that are as slow as those between distant hosts.

Each peer announces a port of ours, from which its connections go on to its own port, later and no
faster than the link allows. So every two hosts talk through one such link, over the same TCP,
Noise and Yamux as in the field.
"""

from contextlib import suppress
from dataclasses import dataclass

import trio

CHUNK_BYTES_MAX = 64 * 1024
"""Read at a time: a frame of a block is larger, and takes its turn in pieces."""

CHUNKS_MAX = 1024
"""On their way in one direction: enough for 100 ms at 1,000 Mbit/s in pieces of 12 KiB."""

_Due = tuple[float, bytes]
"""When bytes arrive at the other end, and the bytes."""


@dataclass(frozen=True)
class SlowLink:
    """How slow a link is, the same in both directions."""

    round_trip_s: float
    bytes_per_s: float


class SlowPort:
    """A port in front of a peer's own."""

    def __init__(self, link: SlowLink) -> None:
        self._link = link
        self._target, self._known = "", trio.Event()
        self.address = ""
        """Multiaddr to announce."""

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Carry connections until cancelled."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        self.address = f"/ip4/127.0.0.1/tcp/{port}"
        task_status.started()
        await trio.serve_listeners(self._carry, [listener])

    def lead_to(self, address: str) -> None:
        """Carry connections to a peer's own multiaddr from now on."""
        self._target = address
        self._known.set()

    async def _carry(self, near: trio.SocketStream) -> None:
        await self._known.wait()
        _, _, host, _, port, *_ = self._target.split("/")
        try:
            far = await trio.open_tcp_stream(host, int(port))
        except OSError:
            return  # the peer is gone, which its caller learns from the closed connection
        async with near, far, trio.open_nursery() as nursery:
            for source, sink in ((near, far), (far, near)):
                send, receive = trio.open_memory_channel[_Due](CHUNKS_MAX)
                nursery.start_soon(_read, source, self._link, send)
                nursery.start_soon(_write, receive, sink, nursery.cancel_scope)


async def _read(
    source: trio.SocketStream, link: SlowLink, send: "trio.MemorySendChannel[_Due]"
) -> None:
    """Note when each chunk is due at the other end."""
    free_at = 0.0
    with send, suppress(trio.BrokenResourceError):
        while chunk := await source.receive_some(CHUNK_BYTES_MAX):
            free_at = max(free_at, trio.current_time()) + len(chunk) / link.bytes_per_s
            await send.send((free_at + link.round_trip_s / 2, chunk))


async def _write(
    receive: "trio.MemoryReceiveChannel[_Due]", sink: trio.SocketStream, over: trio.CancelScope
) -> None:
    with suppress(trio.BrokenResourceError):
        async for due, chunk in receive:
            await trio.sleep_until(due)
            await sink.send_all(chunk)
    over.cancel()
