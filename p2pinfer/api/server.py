"""Serving a gateway over HTTP, in its opener's nursery."""

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from p2pinfer.core.errors import UserError, lone_errors

GRACE_S = 1.0
"""For replies that are under way when the gateway ends."""

KEEP_ALIVE_S = 75.0
"""Between two requests of one connection: clients that keep pools expect a minute or so."""

HEADER_BYTES_MAX = 32 * 1024
STALLED_MS_MAX = 30_000
"""A client that does not read what it asked for is dropped after this, and its session freed."""

_TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)
"""Linux has it; elsewhere a stalled reader is noticed by the system's own, longer timeouts."""


class _Config(Config):
    """Sockets on which nobody may stall for ever."""

    def create_sockets(self) -> Sockets:
        sockets = super().create_sockets()
        if _TCP_USER_TIMEOUT is not None:
            for each in sockets.insecure_sockets:  # accepted ones inherit it
                each.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, STALLED_MS_MAX)
        return sockets


class Front:
    """The application that a server serves from its first moment on; another one takes its place.

    Requests that came before stay with the one that took them.
    """

    def __init__(self, first: ASGIApp) -> None:
        self.app = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        await self.app(scope, receive, send)


@asynccontextmanager
async def open_server(app: ASGIApp, host: str, port: int) -> AsyncIterator[str]:
    """Serve an application while the block lasts; gives the URL.

    Raises:
        UserError: the address cannot be taken.
    """
    config = _Config()
    config.bind = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    config.include_server_header = False
    config.graceful_timeout = GRACE_S
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.h11_max_incomplete_size = HEADER_BYTES_MAX
    config.errorlog = logging.getLogger("p2pinfer.http")
    config.loglevel = "WARNING"
    with lone_errors():
        async with trio.open_nursery() as nursery:
            try:
                urls: list[str] = await nursery.start(_serve, app, config)
            except OSError as error:
                text = f"cannot listen on {config.bind[0]} ({error.strerror}): choose another port"
                raise UserError(text) from error
            try:
                yield urls[0]
            finally:
                nursery.cancel_scope.cancel()


async def _serve(app: ASGIApp, config: Config, *, task_status: trio.TaskStatus[list[str]]) -> None:
    with lone_errors():
        same = cast("Any", app)  # the two libraries' words for the same protocol
        await serve(same, config, task_status=task_status)
