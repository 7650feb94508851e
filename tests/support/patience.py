"""A time limit that starts again at each sign of progress: slow machines pass, hangs do not."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

LOOK_S = 1.0


@asynccontextmanager
async def while_it_moves(signs: Callable[[], object], silence_s_max: float) -> AsyncIterator[None]:
    """Raise TooSlowError if ``signs`` stay the same for so long while the block lasts."""

    async def look() -> None:
        seen = signs()
        while True:
            await trio.sleep(LOOK_S)
            if (now := signs()) != seen:
                seen = now
                limit.deadline = trio.current_time() + silence_s_max

    with trio.fail_after(silence_s_max) as limit:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            yield
            nursery.cancel_scope.cancel()
