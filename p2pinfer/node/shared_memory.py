"""One machine's memory for several models: each waits until all have said what they can use."""

import logging

import trio

from p2pinfer.core.errors import UserError
from p2pinfer.engine.llama.memory import mib
from scheduler.memory_shares import Appetite, divide

_log = logging.getLogger("p2pinfer.node")

APPETITES_S_MAX = 60.0
"""For all models to say what they can use. That is known once their metadata has been fetched; one
that nobody has yet must not keep the others from being served."""


class SharedMemory:
    """Divides ``total`` bytes among ``count`` models."""

    def __init__(self, total: int, count: int) -> None:
        self._total, self._count = total, count
        self._waiting: dict[str, Appetite] = {}
        self._given: dict[str, int] = {}
        self._changed = trio.Event()

    async def share(self, name: str, appetite: Appetite) -> int:
        """Return how many bytes a model gets.

        Args:
            name: of the model, for the sentence.
            appetite: what it can use.

        Raises:
            UserError: there is too little for all of them.
        """
        self._waiting[name] = appetite
        if len(self._waiting) + len(self._given) == self._count:
            self._decide()
        with trio.move_on_after(APPETITES_S_MAX):
            while name not in self._given:
                await self._changed.wait()
        if name not in self._given:
            self._decide()
        return self._given[name]

    def _decide(self) -> None:
        """Divide what is left among those who wait, as if the others could use any amount."""
        left = self._total - sum(self._given.values())
        unknown = self._count - len(self._given) - len(self._waiting)
        appetites = [*self._waiting.values(), *[Appetite(0, left)] * unknown]
        try:
            shares = divide(left, appetites)
        except ValueError:
            least = sum(each.least for each in self._waiting.values())
            names = " and ".join(sorted(self._waiting))
            raise UserError(
                f"one layer of each of {names}, with its sessions, takes {mib(least)}, and there"
                f" are {mib(left)}: name fewer models, choose a smaller --context, fewer"
                " --sessions, or more --memory"
            ) from None
        for name, share in zip(self._waiting, shares, strict=False):
            _log.info("%s gets %s of memory", name, mib(share))
            self._given[name] = share
        self._waiting.clear()
        self._changed.set()
        self._changed = trio.Event()
