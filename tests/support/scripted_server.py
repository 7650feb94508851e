"""A gateway on a loopback socket, whose model says what it is told to: for official clients."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from p2pinfer.api.server import open_server
from tests.support.fake_gateway import FakeClient, fake_gateway

START_S_MAX = 60.0


@contextmanager
def scripted_server(chat_template: str) -> Iterator[tuple[str, FakeClient]]:
    """Serve in a thread while the block lasts; gives the URL, and what holds the script."""
    is_ready = threading.Event()
    found: list[tuple[str, FakeClient, trio.CancelScope, trio.lowlevel.TrioToken]] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with (
                fake_gateway(chat_template=chat_template) as (_, client, app),
                open_server(app, "127.0.0.1", 0) as url,
            ):
                found.append((url, client, scope, trio.lowlevel.current_trio_token()))
                is_ready.set()
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    assert is_ready.wait(START_S_MAX)
    url, client, scope, token = found[0]
    try:
        yield url, client
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join()
