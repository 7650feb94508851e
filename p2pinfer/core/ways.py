"""How an advertised peer is called, as its addresses tell: at its own, or through relays."""

import re
from collections.abc import Iterable
from typing import Final

from p2pinfer.core.ids import PeerId

_RELAY: Final = re.compile(r"/p2p/(\w+)/p2p-circuit/", re.ASCII)

DIRECTLY, PUNCHED, NOT_AT_ALL = "directly", "through a punched hole", "not at all"
"""How a peer may be reached, in words; else through a relay, which is named."""


def is_circuit(address: str) -> bool:
    """Whether an address leads through a relay."""
    return "/p2p-circuit/" in address


def is_behind_relays(addresses: Iterable[str]) -> bool:
    """Whether a peer tells addresses, and each of them leads through a relay."""
    told = list(addresses)
    return bool(told) and all(map(is_circuit, told))


def relays_in(addresses: Iterable[str]) -> tuple[PeerId, ...]:
    """Return the relays that addresses lead through, each once, in their order."""
    found = (_RELAY.search(address) for address in addresses)
    return tuple(dict.fromkeys(PeerId(relay[1]) for relay in found if relay))
