"""Links: when what enters comes out, or that it does not."""

import random
from dataclasses import dataclass, field

QUEUE_S_MAX = 1.0
"""What a link with a rate holds back; more is dropped, as by a modem."""


@dataclass
class Link:
    """What lies between a host, or a NAT's outer side, and the core of the Internet."""

    delay_ms: float = 0.0
    """One way."""
    jitter_ms: float = 0.0
    """Up to this much more; packets keep their order."""
    loss: float = 0.0
    """Share of packets, each way."""
    mbit: float = 0.0
    """Per second, each way; 0 is without limit."""
    is_up: bool = True
    """False while it is cut."""
    packets: int = 0
    bytes: int = 0
    _free_at: dict[str, float] = field(default_factory=dict)
    _last_at: dict[str, float] = field(default_factory=dict)

    def arrival(self, now: float, size: int, way: str, chance: random.Random) -> float | None:
        """Return when a packet of ``size`` bytes that enters now comes out; None if it is lost."""
        if not self.is_up or (self.loss and chance.random() < self.loss):
            return None
        at = now
        if self.mbit:
            at = max(now, self._free_at.get(way, 0.0)) + size * 8e-6 / self.mbit
            if at - now > QUEUE_S_MAX:
                return None
            self._free_at[way] = at
        self.packets += 1
        self.bytes += size
        at += (self.delay_ms + self.jitter_ms * chance.random()) / 1000
        at = self._last_at[way] = max(at, self._last_at.get(way, 0.0))
        return at
