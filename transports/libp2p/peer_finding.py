"""Where else peers may be: on the local network by mDNS, and in a Kademlia DHT.

What comes from here is a hint: perhaps stale, perhaps a lie; the caller must dial to know. Waiting
they cost next to nothing.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

import trio
from blake3 import blake3
from libp2p.abc import IHost
from libp2p.discovery.mdns import listener as listener_module
from libp2p.discovery.mdns.mdns import MDNSDiscovery, create_mdns_discovery
from libp2p.kad_dht import provider_store as provider_store_module
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.peer.peerinfo import PeerInfo

from p2pinfer.core.ids import PeerId
from transports.base import Reach
from transports.libp2p.gossip import Tasks
from transports.libp2p.host import has_direct

log: Final = logging.getLogger("p2pinfer.transports")

PROVIDE_S = 600.0
"""How often a record of what this peer takes part in is put into the DHT again."""

RECORD_S: Final = 1800
"""How long others keep such a record; libp2p would for two days."""

FIRST_PROVIDE_S = 2.0
"""How soon to try again while no peer is connected that would keep it."""

ASK_S_MAX = 10.0
"""For the DHT to answer."""

KEYS_MAX = 4096
"""Keys whose records are kept for others, at most 20 each: libp2p itself sets no limit."""

HINTS_MAX = 64
"""Addresses given at once."""


WaitMoved = Callable[[], Awaitable[None]]


class Lan:
    """Peers of one swarm on the local network."""

    def __init__(self, host: IHost, reach: Reach, *, announces: bool) -> None:
        """Prepare; a host that does not listen must not be announced, and only looks."""
        self._host, self._announces = host, announces
        # Hashed with the key, so that a private network's name stays secret. mDNS takes 15
        # characters.
        named = blake3(reach.network.encode(), key=reach.key) if reach.key else None
        self._name = (named or blake3(reach.network.encode())).hexdigest(4)
        self._mdns: MDNSDiscovery | None = None

    async def run(self, wait_moved: WaitMoved) -> None:
        """Look for others, and announce this peer if it listens, until cancelled.

        It is announced on all networks of this machine, so again whenever the machine has moved.
        """
        while True:
            await self._run_here(wait_moved)

    async def _run_here(self, wait_moved: WaitMoved) -> None:
        # Asked itself, libp2p would announce 0.0.0.0 for a peer that listens on all interfaces.
        told = [str(address) for address in self._host.get_addrs()] if self._announces else []
        make = partial(
            create_mdns_discovery,
            self._host.get_network(),
            listen_addrs=told,
            private_network_fingerprint=self._name,
        )
        try:
            mdns = await trio.to_thread.run_sync(make)
        except OSError as error:
            log.warning("mDNS does not work on this machine: %s", error)
            await wait_moved()
            return
        self._mdns = mdns  # it looks already
        try:
            if told:
                # In a thread: it takes a second and a half. Zeroconf's own threads do the rest.
                await trio.to_thread.run_sync(mdns.broadcaster.register)
            await wait_moved()
        finally:
            self._mdns = None
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(mdns.stop if told else partial(_end, mdns))

    def found(self) -> list[str]:
        """Return the addresses that are being announced.

        Of zeroconf, which drops what is not announced any more: libp2p forgets a peer's addresses
        two minutes after it has heard of it first, however often it announces itself.
        """
        if self._mdns is None:
            return []
        heard: Any = self._mdns.listener
        found: list[str] = []
        for name in list(heard.discovered_services):
            info = listener_module.ServiceInfo(heard.service_type, name)  # type: ignore[attr-defined]  # not exported
            if info.load_from_cache(heard.zeroconf) and (peer := heard._extract_peer_info(info)):
                found += [_with_id(str(address), str(peer.peer_id)) for address in peer.addrs]
        return found


def _end(mdns: MDNSDiscovery) -> None:
    """Stop looking; libp2p's own way also takes back what was never announced."""
    mdns.listener.stop()
    mdns.zeroconf.close()


class _Records(ProviderStore):
    """What others say to take part in, as much as there is room for."""

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Keep a record."""
        if key in self.providers or len(self.providers) < KEYS_MAX:
            super().add_provider(key, provider)


class Dht:
    """Records of which peers take part in what, kept by the peers together."""

    def __init__(self, host: IHost, network: str, topics: Callable[[], Iterable[str]]) -> None:
        replaced: Any = provider_store_module
        replaced.PROVIDER_RECORD_EXPIRATION_INTERVAL = RECORD_S
        self._host, self._network, self._topics = host, network, topics
        self._dht = KadDHT(host, DHTMode.SERVER, enable_values=False, strict_validation=True)
        self._dht.provider_store = _Records(host, self._dht.peer_routing)
        self._provided: dict[str, float] = {}

    async def run(self) -> None:
        """Keep records of others, and put one for each topic of ours, until cancelled."""
        async with trio.open_nursery() as nursery:
            tasks: Any = Tasks(nursery)
            self._dht._manager = tasks
            tasks.run_task(self._dht.run)
            while True:
                await self._provide()
                await trio.sleep(FIRST_PROVIDE_S)

    async def find(self, topic: str) -> list[str]:
        """Return addresses of peers that said to take part in a topic."""
        key, kept = bytes.fromhex(self._key(topic)), self._dht.provider_store
        await self._meet()
        # libp2p asks nobody while it has any record here, be it its own, and dates what it reads as
        # if it were new: the dead would be passed around for ever. So what is read goes elsewhere.
        read = ProviderStore(self._host, self._dht.peer_routing)
        try:
            with trio.move_on_after(ASK_S_MAX):
                await read.find_providers(key)
        except Exception as error:  # noqa: BLE001 - others provoke any
            log.info("the DHT does not answer: %r", error)
        infos = [*kept.get_providers(key), *read.get_providers(key)]
        found = [_with_id(str(at), str(info.peer_id)) for info in infos for at in info.addrs]
        return list(dict.fromkeys(found))

    async def _provide(self) -> None:
        now = trio.current_time()
        due = [t for t in self._topics() if now - self._provided.get(t, -PROVIDE_S) >= PROVIDE_S]
        if not due or not await self._meet():
            return
        for topic in due:
            try:
                with trio.move_on_after(ASK_S_MAX):
                    await self._dht.provide(self._key(topic))
                self._provided[topic] = now
            except Exception as error:  # noqa: BLE001 - it is tried again
                log.info("the DHT takes no record: %r", error)

    async def _meet(self) -> int:
        """Add connected peers to libp2p's table, which else stays empty. Return how many."""
        everybody = self._host.get_connected_peers()
        connected = [peer for peer in everybody if has_direct(self._host, peer)]
        for peer in connected:
            await self._dht.add_peer(peer, skip_server_mode_check=True)
        return len(connected)

    def _key(self, topic: str) -> str:
        """Return the multihash, in hexadecimal, of a topic in this network."""
        name = f"/p2pinfer/{self._network}/{topic}"
        return "1220" + hashlib.sha256(name.encode()).hexdigest()


class Lookout:
    """All places where a host looks for peers."""

    def __init__(
        self, host: IHost, reach: Reach, topics: Callable[[], Iterable[str]], *, listens: bool
    ) -> None:
        self._me = PeerId(str(host.get_id()))
        self._lan = Lan(host, reach, announces=listens) if reach.mdns else None
        self._dht = Dht(host, reach.network, topics) if reach.dht else None

    def start(self, nursery: trio.Nursery, wait_moved: WaitMoved) -> None:
        """Look out until the nursery is cancelled; ``wait_moved`` as a transport's."""
        if self._lan:
            nursery.start_soon(self._lan.run, wait_moved)
        if self._dht:
            nursery.start_soon(self._dht.run)

    async def find(self, topic: str | None) -> list[str]:
        """Return hints of others; see `transports.base.Transport.discover`."""
        found = self._lan.found() if self._lan else []
        if self._dht and topic:
            found += await self._dht.find(topic)
        others = [address for address in found if not address.endswith(f"/p2p/{self._me}")]
        return list(dict.fromkeys(others))[:HINTS_MAX]


def _with_id(address: str, peer: str) -> str:
    return address if "/p2p/" in address else f"{address}/p2p/{peer}"
