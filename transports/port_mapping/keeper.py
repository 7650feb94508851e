"""Keeps a port open in the router while a peer runs: by PCP, NAT-PMP or UPnP, whichever it speaks.

What a router grants is a candidate only: whether others reach it is found out as for any other
address. The router is asked beside everything else, so that its silence delays nothing; and no
other machine of the network is asked.
"""

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from transports.interfaces import is_global
from transports.port_mapping.gateway import find_gateway
from transports.port_mapping.holders import (
    Mapping,
    NatPmpHolder,
    PcpHolder,
    PortHolder,
    UpnpHolder,
)
from transports.port_mapping.messages import UNSUPPORTED_VERSION, RouterRefusal, RouterSilence
from transports.port_mapping.upnp import UpnpControl, find_description

log: Final = logging.getLogger("p2pinfer.transports")

RENEW_S_MIN, RENEW_S_MAX = 30.0, 1800.0
"""Between two renewals, whatever lease a router gives; half of the lease otherwise."""

AGAIN_S_MIN, AGAIN_S_MAX = 5.0, 300.0
"""How soon a machine without a port asks again, twice as long each time: the router may be about
to start, or somebody may change its settings. Also at once when it has moved."""

HASTE_S = 2.0
"""Between two looks at least, however often the machine moves."""

UNMAP_S_MAX = 2.0
"""At the end, for the router to take its port back: milliseconds, or half a second by UPnP."""

OFF: Final = "the router is not asked to pass a port on"
ASKING: Final = "the router is being asked to pass a port on"
NO_ROUTER: Final = "this machine has no router that could be asked to pass a port on"
NOT_NEEDED: Final = "this machine has an address of the Internet, so no router is asked for a port"
NOT_HERE: Final = "this peer does not listen at the address of this machine that the router knows"
MAPPED: Final = "the router {} passes port {} on to this machine ({})"
BEHIND_ANOTHER: Final = (
    ", but its own outer address {} is a private one: another NAT is before it, the provider's or"
    " a second router's, which would have to pass the port on, too"
)
_BY_HAND: Final = ", or forward TCP port {} to this machine in its settings"
REFUSED: Final = (
    "the router {} passes no port on: {} ({}); allow UPnP or NAT-PMP in its settings" + _BY_HAND
)
SILENT: Final = (
    "the router {} answers neither PCP nor NAT-PMP nor UPnP: switch UPnP on in its settings"
    + _BY_HAND
)
LOST: Final = "the router {} does not answer any more"


Way = Callable[[], Awaitable[PortHolder]]
"""Finds what holds a port by one protocol; raises RouterSilence."""

Ways = Callable[[str, str, int, bytes], Sequence[Way]]
"""What to try in turn, given the router, this machine's address, the port and a nonce."""


def all_ways(router: str, own_host: str, inner: int, nonce: bytes) -> Sequence[Way]:
    """Return the three protocols, the newest first."""

    async def by_pcp() -> PortHolder:
        return PcpHolder(router, inner, nonce)

    async def by_natpmp() -> PortHolder:
        return NatPmpHolder(router, inner)

    async def by_upnp() -> PortHolder:
        description = await find_description(router, own_host)
        return UpnpHolder(UpnpControl(description, router), inner)

    return by_pcp, by_natpmp, by_upnp


def own_host_towards(router: str) -> str | None:
    """Return this machine's address on the way to the router; sends nothing."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((router, 9))  # of a datagram socket: only looks the way up
        return str(probe.getsockname()[0])
    return None


@dataclass
class PortKeeper:
    """Keeps the port of one peer open.

    Args:
        inner_port: returns the port on which the peer listens at one of this machine's addresses;
            None if it does not.
        nonce: `messages.NONCE_BYTES` that nobody can guess.
        on_change: called whenever the mapping is another one.
        find: returns the router's address.
        own_host: returns this machine's address on the way to a router.
        ways: as `all_ways`.
    """

    inner_port: Callable[[str], int | None]
    nonce: bytes
    on_change: Callable[[], object]
    find: Callable[[], Awaitable[str | None]] = find_gateway
    own_host: Callable[[str], str | None] = own_host_towards
    ways: Ways = all_ways
    mapping: Mapping | None = None
    words: str = ASKING
    """What became of it, for a person."""
    _moved: trio.Event = field(default_factory=trio.Event)

    def look(self) -> None:
        """Ask again now: this machine has moved, or has lost all of its connections."""
        self._moved.set()

    async def run(self) -> None:
        """Keep a port, until cancelled; then give it back."""
        again_s = AGAIN_S_MIN
        while True:
            if await self._hold():
                again_s = AGAIN_S_MIN
            self._note(None)
            with trio.move_on_after(again_s):
                await self._moved.wait()
            again_s = min(AGAIN_S_MAX, 2 * again_s)
            if self._moved.is_set():
                again_s = AGAIN_S_MIN
                self._moved = trio.Event()
                await trio.sleep(HASTE_S)  # a network that comes back does so in several steps

    async def _hold(self) -> bool:
        """Hold a port of the present router as long as it lasts; say whether there was one."""
        router = await self.find()
        own_host = self.own_host(router) if router else None
        if router is None or own_host is None:
            self.words = NO_ROUTER
            return False
        inner = self.inner_port(own_host)
        if is_global(own_host) or inner is None:
            self.words = NOT_NEEDED if is_global(own_host) else NOT_HERE
            return False
        holder = await self._ask(router, own_host, inner)
        if holder is None:
            return False
        try:
            await self._keep(holder, router, own_host)
        finally:
            with trio.move_on_after(UNMAP_S_MAX, shield=True):
                await _give_back(holder)
        return True

    async def _ask(self, router: str, own_host: str, inner: int) -> PortHolder | None:
        """Try one protocol after the other; return what grants a port."""
        words = SILENT.format(router, inner)
        for way in self.ways(router, own_host, inner, self.nonce):
            try:
                holder = await way()
                try:
                    self._take(await holder.map(), router)
                except RouterRefusal as error:
                    log.debug("router %s refuses by %s: %s", router, holder.way, error)
                    if error.code != UNSUPPORTED_VERSION:
                        words = REFUSED.format(router, error, holder.way, inner)
                else:
                    return holder
            except RouterSilence as error:
                log.debug("router %s: %s", router, error)
        self.words = words
        return None

    async def _keep(self, holder: PortHolder, router: str, own_host: str) -> None:
        """Renew a port until the router does not give it any more, or is another one."""
        granted_at = trio.current_time()
        while True:
            with trio.move_on_after(holder.check_s):
                await self._moved.wait()
            is_moved, self._moved = self._moved.is_set(), trio.Event()
            if is_moved:
                there = await self.find()
                if there != router or self.own_host(router) != own_host:
                    self._moved.set()  # ask the new one soon
                    return
            mapping = self.mapping
            assert mapping, "it is kept until this ends"
            try:
                is_due = trio.current_time() - granted_at >= renewal_s(mapping)
                if is_moved or is_due or await holder.is_lost():
                    self._take(await holder.map(), router)
                    granted_at = trio.current_time()
            except RouterRefusal as error:
                log.info("router %s gives the port no more: %s", router, error)
                return
            except RouterSilence as error:  # it may be starting, and needs a minute
                log.debug("router %s: %s", router, error)
                if is_moved or trio.current_time() - granted_at >= mapping.lease_s:
                    self.words = LOST.format(router)
                    return

    def _take(self, mapping: Mapping, router: str) -> None:
        self.words = MAPPED.format(router, mapping.port, mapping.way)
        if not is_global(mapping.host):
            self.words += BEHIND_ANOTHER.format(mapping.host)
        self._note(mapping)

    def _note(self, mapping: Mapping | None) -> None:
        before, self.mapping = self.mapping, mapping
        if before != mapping:
            log.info("%s", self.words)
            self.on_change()


def renewal_s(mapping: Mapping) -> float:
    """Return when to renew a port, in seconds from when it was granted."""
    return min(RENEW_S_MAX, max(RENEW_S_MIN, mapping.lease_s / 2))


async def _give_back(holder: PortHolder) -> None:
    with suppress(RouterSilence, RouterRefusal):
        await holder.unmap()
