"""The requests that a node sends to its worker."""

import socket
from collections.abc import Iterator
from typing import Any

from p2pinfer.engine.frames import RECEIVE_BYTES, Splitter


class Inbox:
    """The node's requests."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._splitter = sock, Splitter()
        self.is_closed = False

    def frames(self, *, wait: bool) -> Iterator[list[Any]]:
        """Yield all that has come, after waiting for some if nothing has.

        All: a single row may lie behind several blocks of a prompt, and is to run before them.
        """
        flags = 0 if wait else socket.MSG_DONTWAIT
        while not self.is_closed:
            try:
                data = self._sock.recv(RECEIVE_BYTES, flags)
            except BlockingIOError:
                return
            self.is_closed = not data
            yield from self._splitter.feed(data)
            if len(data) < RECEIVE_BYTES:
                return
            flags = socket.MSG_DONTWAIT
