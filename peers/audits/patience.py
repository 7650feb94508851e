"""What a refusal to open rows costs: nothing where an honest stage may have to give it.

A busy stage puts its requesters off, and one that does so again and again may be hiding something.
Some machines compute attention in a way that cannot be shown, and which ones is only known from
what they say; but all machines of a numerics class are alike, so once one of them has opened rows,
nobody else of it is believed.
"""

from collections import OrderedDict
from typing import Final, TypeVar

from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Refusal

K = TypeVar("K")
V = TypeVar("V")

PUT_OFF_MAX: Final = 3
"""In a row, each after coming back once: an honest stage is so busy only by chance."""

PEERS_MAX = CLASSES_MAX = 256
"""Remembered; the oldest are forgotten."""

PUTS_OFF: Final = (Refusal.BUSY, Refusal.TOO_SLOW)


class Patience:
    """Decides which refusals count against a stage of one model."""

    def __init__(self) -> None:
        self._put_off: OrderedDict[PeerId, int] = OrderedDict()
        self._opened: OrderedDict[bytes, None] = OrderedDict()

    def opened(self, peer: PeerId, numerics: bytes) -> None:
        """Remember that a stage of some numerics class has opened rows."""
        self._put_off.pop(peer, None)
        _put(self._opened, numerics, None, CLASSES_MAX)

    def is_tried(self, peer: PeerId) -> bool:
        """Count that a stage put this machine off; return whether it did so too often."""
        times = self._put_off.get(peer, 0) + 1
        _put(self._put_off, peer, times, PEERS_MAX)
        return times > PUT_OFF_MAX

    def may_refuse(self, peer: PeerId, code: Refusal, numerics: bytes, *, is_long: bool) -> bool:
        """Return whether a refusal costs a stage nothing.

        Args:
            peer: the stage.
            code: why it says that it opens nothing.
            numerics: its class, as it signed.
            is_long: its cells may be more than any stage copies.
        """
        if code in PUTS_OFF:
            return not self.is_tried(peer)
        return code is Refusal.CONTEXT_FULL and (is_long or numerics not in self._opened)


def _put(kept: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)
