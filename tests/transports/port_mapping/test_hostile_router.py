"""A router that sends for ever, as one in a cafe may, costs a process that ends."""

import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import pytest

from transports.port_mapping.messages import RouterSilence
from transports.port_mapping.upnp import UpnpControl
from transports.port_mapping.upnp_orders import MEMORY_BYTES_MAX


@contextmanager
def endless() -> Iterator[str]:
    """Serve a description without an end on loopback."""
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

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x.xml"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


async def test_what_has_no_end_is_no_answer() -> None:
    """And what has read of it has held no more than it may."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with endless() as place, pytest.raises(RouterSilence):
        await UpnpControl(place, "127.0.0.1").add(4001, 4001)
    held = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert held <= max(before * 1024, MEMORY_BYTES_MAX)
