"""One dial: all of a peer's addresses at once, and relays once those had a moment."""

from collections.abc import Sequence
from typing import Any

import trio
from libp2p.abc import IHost
from libp2p.network.swarm import Swarm

from p2pinfer.core.errors import PeerUnavailable
from p2pinfer.core.ids import PeerId
from transports.interfaces import is_global
from transports.libp2p.circuit import Circuits
from transports.libp2p.dialling import (
    CIRCUIT,
    REACHED,
    explain,
    libp2p_id,
    numeric,
    parse_address,
    place,
    relay_of,
    root,
    through,
)
from transports.libp2p.padded import Padding

DIAL_S_MAX = 10.0
"""For one of a peer's addresses to answer and prove who it is."""

STRAIGHT_S = 0.5
"""For direct addresses to answer before a relay is asked, too: a handshake across an ocean."""

STRAIGHT_PRIVATE_S = 0.1
"""The same where all are private ones: who is on this network answers in milliseconds."""


class Dialler:
    """Makes connections.

    Args:
        host: whose they are.
        circuits: of that host.
        is_private: whether the network has a key.
        padding: agrees on the shape of what is said.
        is_hiding: whether a relay dials for this host, so that one address of a peer is as good as
            another, and no name that a stranger told is looked up from here.
    """

    def __init__(
        self,
        host: IHost,
        circuits: Circuits,
        padding: Padding,
        *,
        is_private: bool,
        is_hiding: bool = False,
    ) -> None:
        self._padding = padding
        self._is_hiding = is_hiding
        self._host = host
        self._circuits = circuits
        self._is_private = is_private

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> tuple[object, str]:
        """Try all addresses at once; return the first connection made, and its address.

        Those through relays are tried once the others have failed, or had a moment.

        Raises:
            PeerUnavailable: none of them answers; the text says of each why.
        """
        if not addresses:
            raise PeerUnavailable(peer, "no address of it is known")
        made: list[tuple[object, str]] = []
        faults: list[str] = []
        circuits = [address for address in addresses if CIRCUIT.fullmatch(address)]
        straight = [address for address in addresses if address not in circuits]
        if self._is_hiding:
            del straight[1:]

        async def try_straight() -> None:
            async with trio.open_nursery() as dials:
                for address in straight:
                    dials.start_soon(attempt, address)
            failed.set()

        async def call(address: str) -> None:
            try:
                made.append((await self._circuits.dial(address, peer), address))
            except Exception as error:  # noqa: BLE001 - the other end of a handshake provokes any
                faults.append(f"{through(address)}: {explain(error, private=self._is_private)}")
            else:
                nursery.cancel_scope.cancel()

        async def attempt(address: str) -> None:
            try:
                targets = [address] if self._is_hiding else await numeric(address)
            except (OSError, ValueError) as error:  # the latter for what no name can be
                faults.append(f"{place(address)}: {root(error)}")
                return
            async with trio.open_nursery() as dials:
                for target in targets:
                    dials.start_soon(dial, target)

        async def dial(address: str) -> None:
            try:
                made.append((await self._connect(peer, address), address))
            except Exception as error:  # noqa: BLE001 - the other end of a handshake provokes any
                faults.append(f"{place(address)}: {explain(error, private=self._is_private)}")
            else:
                nursery.cancel_scope.cancel()

        with trio.move_on_after(DIAL_S_MAX) as deadline:
            async with trio.open_nursery() as nursery:
                failed = trio.Event()
                nursery.start_soon(try_straight)
                with trio.move_on_after(_patience_s(straight)):
                    await failed.wait()
                for address in self._trusted(circuits):
                    nursery.start_soon(call, address)
        if made:
            await self._padding.propose(made[0][0])
            return made[0]
        if deadline.cancelled_caught:
            faults.append(f"no answer within {DIAL_S_MAX:g} s")
        raise PeerUnavailable(peer, f"cannot reach {peer}: {'; '.join(faults)}")

    async def _connect(self, peer: PeerId, address: str) -> object:
        swarm: Any = self._host.get_network()
        assert isinstance(swarm, Swarm), "new_host makes a Swarm"
        conn: Any = await swarm.dial_addr(parse_address(address), libp2p_id(peer))
        return conn.muxed_conn

    def _trusted(self, circuits: Sequence[str]) -> Sequence[str]:
        """Return the circuits through relays that did not lie or stall, or all if all did."""
        good = [
            address
            for address in circuits
            if (relay := relay_of(address)) and not self._circuits.watch.is_blamed(relay)
        ]
        return good or circuits


def _patience_s(straight: Sequence[str]) -> float:
    """Return how long direct addresses are waited for before relays are asked, too."""
    found = [REACHED.match(address) for address in straight]
    return STRAIGHT_S if any(is_global(each[2]) for each in found if each) else STRAIGHT_PRIVATE_S
