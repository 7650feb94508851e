"""Running a command's main task until it ends, or the person ends it."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

from p2pinfer.core import errors
from p2pinfer.core.errors import P2pinferError


def run_task(
    main: Callable[[], Awaitable[None]], *, interrupted: int = errors.EXIT_INTERRUPTED
) -> None:
    """Run a command's main task; raises its lone exception.

    The first Ctrl-C, or SIGTERM, cancels it and exits with ``interrupted``; the second one exits at
    once.
    """
    import trio  # a tenth of a second, which --help need not take

    async def watch(signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            if scope.cancel_called:
                os._exit(errors.EXIT_INTERRUPTED)
            print("leaving", file=sys.stderr)
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
