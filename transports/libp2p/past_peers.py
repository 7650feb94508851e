"""What a host remembers of peers that are gone: a bounded number of them, and never less of itself.

Each function that starts with ``_cure`` replaces one piece of libp2p 0.8.1 on one host and says
what goes wrong without it, as in `transports.libp2p.host`.
"""

from typing import Any

from libp2p.abc import IHost
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID

PEERS_REMEMBERED_MAX = 1000
"""Peers whose keys, protocols and addresses libp2p keeps, about 3 KB each: more than are connected,
and enough for the DHT's table. Who was met first is forgotten first."""


def remember_few(host: IHost) -> None:
    """Keep what a host remembers bounded, however many peers come and go."""
    swarm = host.get_network()
    assert isinstance(swarm, Swarm), "new_host makes a Swarm"
    _cure_dialling_everybody(swarm)
    _cure_forgetting_oneself(host)


def _cure_dialling_everybody(swarm: Swarm) -> None:
    """Dial only the peers we mean to; libp2p, when alone, dials every peer it ever heard of.

    For that it notes the end of every connection, and forgets none of these notes.
    """

    async def nobody() -> None:
        pass

    def forgotten(_: ID) -> None:
        pass

    replaced: Any = swarm.auto_connector
    replaced.maybe_connect = nobody
    replaced.record_disconnect = forgotten


def _cure_forgetting_oneself(host: IHost) -> None:
    """Forget peers that are gone, and neither this one nor who is connected.

    Libp2p counts only where a peer tells an address. Then it forgets those without one first, among
    them itself: after the thousandth peer it has no key left to sign with, so that nobody gets to
    know any more what it speaks.
    """
    replaced: Any = host
    store: Any = replaced.get_peerstore()
    store.max_peers = PEERS_REMEMBERED_MAX
    swarm, me = replaced.get_network(), replaced.get_id()
    forget = replaced._on_notifee_disconnected

    def enforce() -> None:
        known: dict[ID, object] = store.peer_data_map
        for peer in list(known) if len(known) > store.max_peers else ():
            if peer != me and not swarm.get_connections(peer):
                store.peer_record_map.pop(peer, None)
                del known[peer]
            if len(known) <= store.max_peers:
                break

    def disconnected(conn: object) -> None:
        forget(conn)
        enforce()

    store._enforce_peer_limit = enforce
    replaced._on_notifee_disconnected = disconnected
