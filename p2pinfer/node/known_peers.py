"""Peers that answered, from one run to the next: a restart finds the swarm without an address.

A small file that several processes share, by network: each puts in who answered it, the latest word
of each peer stands. A private network is one of its own, whatever its name.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import trio
from blake3 import blake3

from p2pinfer.core.checks import ADDRESS_CHARS_MAX, ADDRESSES_MAX
from p2pinfer.core.ids import PeerId
from p2pinfer.node.atomic_file import replace_text
from p2pinfer.places import state_dir
from peers.discovery.bootstrap import ANSWERED_MAX
from transports.base import Reach
from transports.interfaces import is_loopback

_log = logging.getLogger("p2pinfer.known_peers")

KEEP_S = 30.0
"""How often a process that goes on for long writes down who answered."""

STALE_S = 30 * 86_400.0
"""For how long a peer that answers nobody here is remembered: longer than a holiday."""

NETWORKS_MAX = 16
"""Networks remembered; of more, those go where nobody has answered for the longest."""

Answered = Mapping[PeerId, tuple[tuple[str, ...], float]]
"""Where peers are, and when they last answered."""


class KnownPeers:
    """Who answered in one network."""

    def __init__(self, network: str | Reach, path: Path | None = None) -> None:
        reach = Reach(network) if isinstance(network, str) else network
        named = reach.network.encode()
        # No network's name has a slash; and the file gives nothing of the key away.
        secret = f"/{blake3(named, key=reach.key).hexdigest(8)}" if reach.key else ""
        self.name = reach.network + secret
        self._path = path or state_dir() / "peers.json"

    def load(self) -> dict[PeerId, tuple[str, ...]]:
        """Return where they were, the latest first."""
        found = self._read().get(self.name, {})
        latest = sorted(found.items(), key=lambda each: -each[1][1])
        return {peer: addresses for peer, (addresses, _) in latest}

    def drop(self, peers: list[PeerId]) -> None:
        """Forget peers that did not answer where others did."""
        found = self._read()
        left = {p: each for p, each in found.get(self.name, {}).items() if p not in peers}
        self._write(found | {self.name: left})

    def put(self, answered: Answered, ahead_s: float) -> None:
        """Take in who answered, by a clock that everybody's is so far ahead of.

        Those of this machine alone are left out: they are found otherwise, and another's run may
        have their ports by then.
        """
        own = {
            peer: (addresses, at_s + ahead_s)
            for peer, (all_, at_s) in answered.items()
            if (addresses := tuple(each for each in all_ if not is_loopback(each)))
        }
        found = self._read()
        before = found.get(self.name, {})
        if all(peer in before and before[peer][1] >= at_s for peer, (_, at_s) in own.items()):
            return
        latest = sorted([*before.items(), *own.items()], key=lambda each: each[1][1])
        newest = sorted(dict(latest).items(), key=lambda each: each[1][1])[-ANSWERED_MAX:]
        self._write(found | {self.name: dict(newest)})

    async def keep(self, answered: Callable[[], Answered]) -> None:
        """Write down who answered, now and then, and when cancelled."""
        try:
            while True:
                await trio.sleep(KEEP_S)
                self._keep(answered())
        finally:
            self._keep(answered())

    def _keep(self, answered: Answered) -> None:
        self.put(answered, time.time_ns() / 1e9 - trio.current_time())

    def _write(self, found: Mapping[str, Answered]) -> None:
        """Replace the file; one that cannot be written is a pity, and no more."""
        kept = sorted((n for n in found if found[n]), key=lambda n: _latest(found[n]))
        text = json.dumps({name: found[name] for name in kept[-NETWORKS_MAX:]})
        try:
            replace_text(self._path, text)
        except OSError as error:
            _log.info("who answered is forgotten: %s", error)

    def _read(self) -> dict[str, Answered]:
        """Return all networks, without what is stale; nothing if the file is damaged."""
        now = time.time_ns() / 1e9
        try:
            found = json.loads(self._path.read_text())
            return {
                str(network): {
                    PeerId(peer): each
                    for peer, (addresses, at_s) in peers.items()
                    # Nobody has answered in the future: a clock was set back.
                    if (each := (_addresses(addresses), min(float(at_s), now)))[1] > now - STALE_S
                }
                for network, peers in found.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def _latest(answered: Answered) -> float:
    return max((at_s for _, at_s in answered.values()), default=0.0)


def _addresses(found: object) -> tuple[str, ...]:
    if not isinstance(found, list) or len(found) > ADDRESSES_MAX:
        raise ValueError("a peer has a few addresses")
    if not all(isinstance(each, str) and len(each) <= ADDRESS_CHARS_MAX for each in found):
        raise ValueError("an address is a text")
    return tuple(found)
