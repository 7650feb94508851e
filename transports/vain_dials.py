"""Hosts at which peers were said to be, and were not: so that nobody is made to dial them often.

Made-up peers, whose advertisements name a stranger's address, could otherwise have a whole swarm
dial it; and with private addresses, have each member search its own network.
"""

import re
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

from transports.interfaces import is_global

VAIN_PER_HOST_MAX = 4
"""Dials without an answer at one host, in ``VAIN_S``: a house may have some peers that just left.
All private hosts together count as one."""

VAIN_S = 600.0

HOSTS_MAX = 1024
"""Hosts remembered; the one longest without a dial in vain is forgotten first."""

_HOST: Final = re.compile(r"/(?:ip4|ip6|dns|dns4|dns6)/([^/]+)/")

PRIVATE: Final = "private"


class VainDials:
    """How often nobody answered lately, by host; the clock is an argument."""

    def __init__(self) -> None:
        self._at: OrderedDict[str, deque[float]] = OrderedDict()

    def begin(self, addresses: Sequence[str], now: float) -> list[str]:
        """Return those addresses that may be dialled, each counted as in vain until `answered`."""
        found = [each for each in addresses if self.may(each, now)]
        for host in dict.fromkeys(host for each in found if (host := _host(each))):
            self._at.setdefault(host, deque(maxlen=VAIN_PER_HOST_MAX)).append(now)
            self._at.move_to_end(host)
            if len(self._at) > HOSTS_MAX:
                self._at.popitem(last=False)
        return found

    def answered(self, addresses: Sequence[str]) -> None:
        """Take back what was counted: a peer has proved that it is at one of these."""
        for host in dict.fromkeys(map(_host, addresses)):
            if self._at.get(host):
                self._at[host].pop()

    def may(self, address: str, now: float) -> bool:
        """Whether an address may be dialled, as far as its host goes."""
        times = self._at.get(_host(address), ())
        return sum(now - at < VAIN_S for at in times) < VAIN_PER_HOST_MAX


def _host(address: str) -> str:
    """Return what is dialled for an address: of a circuit, its relay; empty if that is no host."""
    found = _HOST.match(address)
    if found is None:
        return ""
    host = found[1]
    is_number = "/ip4/" in address[:5] or "/ip6/" in address[:5]
    return PRIVATE if is_number and not is_global(host) else host
