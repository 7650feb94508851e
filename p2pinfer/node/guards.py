"""The first relays of this machine's paths, kept for weeks.

The first relay is the one that sees this machine's address. Who takes another one each time meets a
spy among them sooner or later; who keeps one meets none, or one. So they are drawn once, and kept
in a small file of the state folder, by network.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final

from p2pinfer.core.checks import ADDRESS_CHARS_MAX, ADDRESSES_MAX
from p2pinfer.core.ids import PeerId
from p2pinfer.node.atomic_file import replace_text
from p2pinfer.places import state_dir
from peers.discovery.path_relays import Relay

_log = logging.getLogger("p2pinfer.path")

DAY_S: Final = 86_400.0

KEPT_S: Final = (28 * DAY_S, 56 * DAY_S)
"""For how long one is kept, drawn between these: so nobody knows when the next is chosen."""

GUARDS_MAX: Final = 3
"""The first that answers is used; more that know this machine's address would be worse."""

NETWORKS_MAX: Final = 16


def _now() -> float:
    return time.time_ns() / 1e9


class Guards:
    """The first relays in one network."""

    def __init__(
        self,
        network: str,
        chance: Random,
        path: Path | None = None,
        unix_s: Callable[[], float] = _now,
    ) -> None:
        self._network, self._chance, self._unix_s = network, chance, unix_s
        self._path = path or state_dir() / "guards.json"

    def load(self) -> list[Relay]:
        """Return them, in the order in which they are tried; a damaged file has none."""
        return [(peer, addresses) for peer, addresses, _ in self._read().get(self._network, [])]

    def keep(self, relays: Sequence[Relay]) -> None:
        """Keep these from now on, behind those that are kept already; the dates of both stay."""
        found = self._read()
        kept = found.pop(self._network, [])
        known = {peer for peer, _, _ in kept}
        until = self._unix_s() + self._chance.uniform(*KEPT_S)
        kept += [(peer, addresses, until) for peer, addresses in relays if peer not in known]
        found[self._network] = kept[:GUARDS_MAX]
        text = json.dumps(dict([*found.items()][-NETWORKS_MAX:]))
        try:
            replace_text(self._path, text)
        except OSError as error:
            _log.warning("the first relay is not kept, and another one is drawn next: %s", error)

    def _read(self) -> dict[str, list[tuple[PeerId, tuple[str, ...], float]]]:
        now = self._unix_s()
        try:
            return {
                str(network): [
                    (PeerId(str(peer)), _addresses(addresses), min(float(until), now + KEPT_S[1]))
                    for peer, addresses, until in guards[:GUARDS_MAX]
                    if float(until) > now
                ]
                for network, guards in json.loads(self._path.read_text()).items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def _addresses(found: object) -> tuple[str, ...]:
    if not isinstance(found, list) or not 0 < len(found) <= ADDRESSES_MAX:
        raise ValueError("a relay has a few addresses")
    if not all(isinstance(each, str) and len(each) <= ADDRESS_CHARS_MAX for each in found):
        raise ValueError("an address is a text")
    return tuple(found)
