"""Running a command's main task until it ends or is interrupted."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from p2pinfer.core import errors
from p2pinfer.core.errors import P2pinferError
from p2pinfer.logs import note

if TYPE_CHECKING:
    import trio


def run_task(
    main: Callable[[], Awaitable[None]],
    *,
    interrupted: int = errors.EXIT_INTERRUPTED,
    leave: Callable[[], None] | None = None,
) -> None:
    """Run a command's main task; raises its lone exception.

    The first Ctrl-C, or SIGTERM, cancels it and exits with ``interrupted``; the second one exits at
    once. With ``leave`` the first one calls that instead, and the task ends by itself.
    """
    import trio  # a tenth of a second, which --help does not need

    async def watch(signals: AsyncIterator[int]) -> None:
        asked = False
        async for _ in signals:
            if asked:
                os._exit(errors.EXIT_INTERRUPTED)
            asked = True
            if leave:
                note("leaving; Ctrl-C again stops at once")
                leave()
            else:
                note("leaving")
                scope.cancel()

    async def run() -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, signals)
                with scope:
                    await main()
                nursery.cancel_scope.cancel()

    scope = trio.CancelScope()
    try:
        with errors.lone_errors():
            trio.run(run)
    except P2pinferError:
        if not scope.cancel_called:
            raise
    if scope.cancelled_caught:
        sys.exit(interrupted)


async def cancel_at_end_of_input(scope: "trio.CancelScope") -> None:
    """Cancel the scope when standard input ends: the process that started this one is gone."""
    import trio

    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:  # closing it leaves 0 open
        while await stdin.receive_some():
            pass
    scope.cancel()
