"""A router that sends for ever, as one in a cafe may, costs a process that ends."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import pytest

from transports.port_mapping.messages import RouterSilence
from transports.port_mapping.upnp import UpnpControl
from transports.port_mapping.upnp_orders import MEMORY_BYTES_MAX


@contextmanager
def endless(sent: list[int]) -> Iterator[str]:
    """Serve a description without an end on loopback; note how many bytes were taken."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    asker, _ = server.accept()
                    with asker, suppress(OSError):
                        asker.recv(2000)
                        asker.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\n\r\n")
                        while True:
                            asker.sendall(bytes(65_536))
                            sent.append(65_536)

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x.xml"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


async def test_what_has_no_end_is_no_answer() -> None:
    """What reads it holds no more than it may, though it would take some 900 MB in its time."""
    sent: list[int] = []
    with endless(sent) as place, pytest.raises(RouterSilence):
        await UpnpControl(place, "127.0.0.1").add(4001, 4001)
    assert 0 < sum(sent) < 2 * MEMORY_BYTES_MAX
