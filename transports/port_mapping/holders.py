"""A port held in a router by each of the three protocols that routers speak."""

from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import trio

from transports.port_mapping import messages
from transports.port_mapping.asking import exchange
from transports.port_mapping.messages import SERVER_PORT, Granted, RouterRefusal, may_be_lost
from transports.port_mapping.upnp import UpnpControl

CHECK_S = 10.0
"""How often a router is asked whether it still knows the port: it may have restarted. Its answer
is a few bytes, and a machine should be reachable again within half a minute."""

UPNP_CHECK_S = 20.0
"""The same by UPnP, which takes a process and some kilobytes."""


@dataclass(frozen=True)
class Mapping:
    """A port that a router passes on, as it says."""

    host: str
    """The router's outer address."""
    port: int
    way: str
    """The protocol it was asked by."""
    lease_s: float

    @property
    def address(self) -> str:
        """As a multiaddr."""
        return f"/ip4/{self.host}/tcp/{self.port}"


class PortHolder(Protocol):
    """A router that may pass a port on."""

    way: str
    check_s: float
    """Between two looks whether the port is lost, in seconds."""

    async def map(self) -> Mapping:
        """Ask for the port, or renew it.

        Raises:
            RouterSilence: it does not answer.
            RouterRefusal: it says no.
        """
        ...

    async def is_lost(self) -> bool:
        """Whether the router may have forgotten the port, or moved; raises RouterSilence."""
        ...

    async def unmap(self) -> None:
        """Give the port back; raises as `map`."""
        ...


@dataclass
class _Epochs:
    """A router's clock, which starts again when it loses its ports."""

    epoch_s: int = 0
    seen_at: float = 0.0

    def set(self, epoch_s: int) -> None:
        self.epoch_s, self.seen_at = epoch_s, trio.current_time()

    def is_other(self, epoch_s: int) -> bool:
        """Take in the latest; whether it started again, or ran on while this machine slept."""
        found = may_be_lost(self.epoch_s, trio.current_time() - self.seen_at, epoch_s)
        self.set(epoch_s)
        return found


@dataclass
class PcpHolder:
    """A router that speaks PCP (RFC 6887).

    Args:
        router: its IPv4 address.
        inner: the port that this machine listens on.
        nonce: `messages.NONCE_BYTES` that only this machine knows.
    """

    router: str
    inner: int
    nonce: bytes
    way: str = "PCP"
    check_s: float = CHECK_S
    _outer: int = 0
    _epochs: _Epochs = field(default_factory=_Epochs)

    async def map(self) -> Mapping:
        """See `PortHolder.map`."""
        found = await self._ask(messages.LEASE_S)
        if not found.lease_s or found.host is None:
            raise RouterRefusal("it gives no lease")
        self._outer = found.port
        self._epochs.set(found.epoch_s)
        return Mapping(found.host, found.port, self.way, found.lease_s)

    async def is_lost(self) -> bool:
        """See `PortHolder.is_lost`."""
        place = self.router, SERVER_PORT
        try:
            epoch_s = await exchange(place, messages.pcp_announce, messages.read_pcp_announce)
        except RouterRefusal:
            return True  # it cannot tell; renewing does no harm
        return self._epochs.is_other(epoch_s)

    async def unmap(self) -> None:
        """See `PortHolder.unmap`."""
        await self._ask(0)

    async def _ask(self, lease_s: int) -> Granted:
        def question(own_host: str) -> bytes:
            outer = self._outer or self.inner
            return messages.pcp_map(own_host, self.nonce, self.inner, outer, lease_s)

        read = partial(messages.read_pcp_map, nonce=self.nonce, inner=self.inner)
        return await exchange((self.router, SERVER_PORT), question, read)


@dataclass
class NatPmpHolder:
    """A router that speaks NAT-PMP (RFC 6886); arguments as of `PcpHolder`."""

    router: str
    inner: int
    way: str = "NAT-PMP"
    check_s: float = CHECK_S
    _outer: int = 0
    _host: str = ""
    _epochs: _Epochs = field(default_factory=_Epochs)

    async def map(self) -> Mapping:
        """See `PortHolder.map`."""
        outside = await self._outside()
        found = await self._ask(messages.LEASE_S)
        if not found.lease_s:
            raise RouterRefusal("it gives no lease")
        self._outer, self._host = found.port, outside.host
        self._epochs.set(found.epoch_s)
        return Mapping(outside.host, found.port, self.way, found.lease_s)

    async def is_lost(self) -> bool:
        """See `PortHolder.is_lost`."""
        try:
            now = await self._outside()
        except RouterRefusal:  # it has no address at the moment
            return False
        return self._epochs.is_other(now.epoch_s) or now.host != self._host

    async def unmap(self) -> None:
        """See `PortHolder.unmap`."""
        await self._ask(0)

    async def _outside(self) -> messages.Outside:
        place = self.router, SERVER_PORT
        return await exchange(
            place, lambda _: messages.natpmp_outside(), messages.read_natpmp_outside
        )

    async def _ask(self, lease_s: int) -> Granted:
        question = messages.natpmp_map(self.inner, self._outer or self.inner, lease_s)
        read = partial(messages.read_natpmp_map, inner=self.inner)
        return await exchange((self.router, SERVER_PORT), lambda _: question, read)


@dataclass
class UpnpHolder:
    """A router that speaks UPnP."""

    control: UpnpControl
    inner: int
    way: str = "UPnP"
    check_s: float = UPNP_CHECK_S
    _outer: int = 0
    _host: str = ""

    async def map(self) -> Mapping:
        """See `PortHolder.map`."""
        wanted = self._outer or self.inner
        self._host, self._outer = await self.control.add(self.inner, wanted)
        return Mapping(self._host, self._outer, self.way, messages.LEASE_S)

    async def is_lost(self) -> bool:
        """See `PortHolder.is_lost`."""
        return not await self.control.knows(self.inner, self._outer, self._host)

    async def unmap(self) -> None:
        """See `PortHolder.unmap`."""
        await self.control.remove(self._outer)
