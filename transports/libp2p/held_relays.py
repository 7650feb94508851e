"""The relays of a hidden peer: found, kept, renewed early, and replaced when they are lost.

Whether a peer relays is not advertised: it is asked, which takes one round trip. The candidates are
the peers that the node names, in its order, and those that this peer has dialled anyway.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

import trio

from p2pinfer.core.errors import PeerError
from p2pinfer.core.ids import PeerId
from transports.base import is_circuit
from transports.libp2p.circuit import Circuits, circuit_address
from transports.libp2p.circuit_messages import CircuitStatus, RelayAnswer
from transports.libp2p.muxer import Connection
from transports.libp2p.relay_limits import LOOKED_AT_MAX, exchanges, site_of

log: Final = logging.getLogger("p2pinfer.relay")

RELAYS_MAX = 3
"""Held at once: one may go away at any time, and two at once seldom do."""

AT_ONCE_MAX = 4
"""Candidates asked at the same time."""

LOOK_S = 1.0
"""How often a peer with few relays looks whether it needs more: a round trip to each new one."""

SETTLED_LOOK_S = 30.0
"""How often a peer with enough relays looks whether another is nearer; it moves after minutes."""

RESERVE_S_MAX = 10.0
"""To reach a relay, and for its answer."""

BACKOFF_S_MIN, BACKOFF_S_MAX = 60.0, 3600.0
"""Before a peer that does not relay, or has no room, is asked again; twice as long each time."""

LOST_BACKOFF_S = 5.0
"""Before a relay whose connection broke is asked again: perhaps only the connection did."""

RENEW_S_MIN, RENEW_S_MAX = 30.0, 1800.0
"""A reservation shorter than twice the first is renewed as seldom; however long it is said to be,
it is renewed after the second."""

PROVE_S = 300.0
"""Between two calls of this peer itself through each of its relays: they may lie, or grow tired."""

BETTER_FOR_S = 600.0
"""A relay is exchanged for one that has been much nearer for this long. The first ones were taken
before any distance was known: they are exchanged as soon as some distances are."""

DOUBT_S = 60.0
"""The same where a caller's word raised a doubt: callers may lie, and each look is a circuit."""

Candidate = tuple[PeerId, tuple[str, ...]]
"""A peer that may relay, and where it is."""


@dataclass
class HeldRelay:
    """One reservation."""

    connection: Connection
    address: str
    """The relay's, with its id."""
    renew_at: float
    proved_at: float = -inf
    """When it was last seen whether it brings callers."""
    doubted: bool = False
    """Something has raised a doubt since."""
    failed: bool = False
    """It did not when last seen; it is held only until there is another."""

    @property
    def prove_at(self) -> float:
        """When to see next whether it brings callers."""
        return self.proved_at + (DOUBT_S if self.doubted else PROVE_S)

    @property
    def site(self) -> str:
        """Which network the relay is in: two relays of one are lost together."""
        return _network(self.address)


@dataclass
class _Tried:
    """When a candidate may be asked again."""

    again_at: float = 0.0
    failures: int = 0


@dataclass
class HeldRelays:
    """The reservations of one peer.

    Args:
        circuits: to ask relays with.
        reach: returns a direct connection to a peer; raises PeerUnavailable.
        connected: returns the direct connections that this peer has made.
        is_needed: returns whether others cannot dial this peer.
        unix_s: the wall-clock time.
        on_change: called when the addresses have changed.
    """

    circuits: Circuits
    reach: Callable[[PeerId, Sequence[str]], object]
    connected: Callable[[], Iterable[Connection]]
    is_needed: Callable[[], bool]
    unix_s: Callable[[], float]
    me: PeerId
    on_change: Callable[[], object] = lambda: None
    candidates: Callable[[], Sequence[Candidate]] = tuple
    """Returns who may relay, the best first; the node sets it."""
    held: dict[PeerId, HeldRelay] = field(default_factory=dict)
    _tried: dict[PeerId, _Tried] = field(default_factory=dict)
    _wake: trio.Event = field(default_factory=trio.Event)
    _to_prove: trio.Event = field(default_factory=trio.Event)
    _better_since: dict[PeerId, float] = field(default_factory=dict)
    _looked_at: set[PeerId] = field(default_factory=set)
    """Candidates whose distance was looked up since a first relay was held."""
    _is_settled: bool = False
    """Such a look around is over."""

    def __post_init__(self) -> None:
        self.circuits.serves = self.held.__contains__
        self.circuits.watch.on_doubt = self._doubt

    @property
    def addresses(self) -> list[str]:
        """Where this peer is reached through its relays."""
        return [circuit_address(held.address, self.me) for held in self.held.values()]

    def look(self) -> None:
        """Look for relays now: something has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Hold relays while they are needed, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hold_some)
            nursery.start_soon(self._prove_some)

    async def _prove_some(self) -> None:
        """See now and then whether the relays bring callers, and leave those that do not."""
        while True:
            self._to_prove = trio.Event()
            now = trio.current_time()
            async with trio.open_nursery() as nursery:
                for peer, held in list(self.held.items()):
                    if held.prove_at <= now:
                        nursery.start_soon(self._prove, peer, held)
            due = min((held.prove_at for held in self.held.values()), default=float("inf"))
            with trio.move_on_at(due):
                await self._to_prove.wait()

    async def _prove(self, peer: PeerId, held: HeldRelay) -> None:
        held.proved_at, held.doubted = trio.current_time(), False
        try:
            await self.circuits.prove(held.connection)
        except PeerError as error:
            if self.held.get(peer) is not held or held.connection.is_closed:
                return
            log.info("relay %s brings no callers: %s", peer, error)
            held.failed = True
            self._leave_failed()
        else:
            held.failed = False

    def _leave_failed(self) -> None:
        """Hold relays no longer that bring no callers, unless there is no other."""
        for peer in [peer for peer, held in self.held.items() if held.failed]:
            if len(self.held) > 1:
                self._tried[peer] = _Tried(trio.current_time() + BACKOFF_S_MAX, failures=1)
                self._let_go(peer)

    async def _hold_some(self) -> None:
        while True:
            self._wake = trio.Event()
            if not self.is_needed():
                for peer in list(self.held):
                    self._let_go(peer)
            else:
                await self._renew()
                await self._find()
            due = min((held.renew_at for held in self.held.values()), default=float("inf"))
            # Also while none is needed: that changes with a first dial, and with a verdict.
            enough = self._is_settled and len(self.held) >= RELAYS_MAX
            pause_s = SETTLED_LOOK_S if enough else LOOK_S
            with trio.move_on_at(min(trio.current_time() + pause_s, due)):
                await self._wake.wait()

    async def _renew(self) -> None:
        for peer, held in list(self.held.items()):
            if held.renew_at <= trio.current_time():
                await self._ask(peer, (held.address,))

    async def _find(self) -> None:
        """Ask the best candidates until enough of them relay."""
        while len(self.held) < RELAYS_MAX:
            asked = self._due()[: min(AT_ONCE_MAX, RELAYS_MAX - len(self.held))]
            if not asked:
                break
            async with trio.open_nursery() as nursery:
                for peer, addresses in asked:
                    nursery.start_soon(self._ask, peer, addresses)
        if self.held:
            await self._look_around()

    async def _look_around(self) -> None:
        """Connect to some candidates to see how far they are; then exchange far relays."""
        near = {PeerId(str(connection.peer_id)) for connection in self.connected()}
        strangers = [each for each in self._due() if each[0] not in near | self._looked_at]
        room = min(AT_ONCE_MAX, LOOKED_AT_MAX - len(self._looked_at))
        async with trio.open_nursery() as nursery:
            for peer, addresses in strangers[:room]:
                self._looked_at.add(peer)
                nursery.start_soon(self._meet, peer, addresses)
        if not strangers[:room]:
            await self._improve()
            self._is_settled = True

    async def _meet(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        try:
            with trio.fail_after(RESERVE_S_MAX):
                await self.reach(peer, addresses)  # type: ignore[misc]
        except (PeerError, trio.TooSlowError) as error:
            log.debug("%s is not there: %s", peer, error)

    def _due(self) -> list[Candidate]:
        """Return the candidates that may be asked now, the best first."""
        now = trio.current_time()
        named = dict(self.candidates())
        rtts: dict[PeerId, float] = {}
        for connection in self.connected():
            peer = PeerId(str(connection.peer_id))
            named.setdefault(peer, ())
            rtts[peer] = connection.rtt_s if connection.rtt_s is not None else 1.0
        order = {peer: place for place, peer in enumerate(self.candidates_order(named, rtts))}
        good = [
            (peer, addresses)
            for peer, addresses in named.items()
            if peer not in self.held
            and peer != self.me
            and self._tried.get(peer, _Tried()).again_at <= now
        ]
        return sorted(good, key=lambda each: order[each[0]])

    def candidates_order(
        self, named: dict[PeerId, tuple[str, ...]], rtts: dict[PeerId, float]
    ) -> list[PeerId]:
        """Sort candidates: other networks than the relays held first, then as named, then near."""
        sites = {held.site for held in self.held.values()}
        places = {peer: place for place, peer in enumerate(dict(self.candidates()))}
        return sorted(
            named,
            key=lambda peer: (
                self.circuits.watch.is_blamed(peer),
                any(_network(address) in sites for address in named[peer]),
                places.get(peer, len(places)),
                rtts.get(peer, 1.0),
            ),
        )

    async def _ask(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """Reserve with a peer, or renew; note when to ask it again if it says no."""
        try:
            with trio.fail_after(RESERVE_S_MAX):
                connection = await self.reach(peer, addresses)  # type: ignore[misc]
                answer = await self.circuits.reserve(connection)
        except (PeerError, trio.TooSlowError) as error:
            log.debug("%s does not relay: %s", peer, error)
            self._fail(peer)
            return
        if answer.status != CircuitStatus.OK:
            log.info("%s gives no reservation: %s", peer, answer.name)
            self._fail(peer)
            return
        self._hold(peer, connection, answer)

    def _hold(self, peer: PeerId, connection: Connection, answer: RelayAnswer) -> None:
        before = self.held.get(peer)
        lasts_s = answer.expires_unix_s - self.unix_s()
        renew_at = trio.current_time() + min(RENEW_S_MAX, max(RENEW_S_MIN, lasts_s / 2))
        address = _place(peer, connection, answer)
        if not address or connection.is_closed:  # it ended while it answered
            self._fail(peer)
            return
        if before and before.connection is connection:
            self.held[peer] = replace(before, address=address, renew_at=renew_at)
        else:
            self.held[peer] = HeldRelay(connection, address, renew_at)
        self._to_prove.set()
        self._tried.pop(peer, None)
        if before is None or before.connection is not connection:
            connection.call_at_end(lambda: self._lost(peer, connection))
        if before is None:
            log.info("others can call this peer through %s", peer)
        if before is None or before.address != address:
            self.on_change()
        self._leave_failed()

    def _fail(self, peer: PeerId) -> None:
        tried = self._tried.setdefault(peer, _Tried())
        pause_s = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2**tried.failures)
        if not self.held:
            pause_s = min(pause_s, LOST_BACKOFF_S * 2**tried.failures)  # unreached until one agrees
        tried.failures, tried.again_at = tried.failures + 1, trio.current_time() + pause_s
        if peer in self.held:
            self._let_go(peer)

    def _lost(self, peer: PeerId, connection: Connection) -> None:
        held = self.held.get(peer)
        if held and held.connection is connection:
            log.info("relay %s is lost: %s", peer, connection.fault)
            self._tried[peer] = _Tried(trio.current_time() + LOST_BACKOFF_S)
            self._let_go(peer)

    def _doubt(self, peer: PeerId) -> None:
        """See at once whether a relay brings callers that is said to have lied or stalled."""
        if held := self.held.get(peer):
            held.doubted = True
            self._to_prove.set()

    def _let_go(self, peer: PeerId) -> None:
        del self.held[peer]
        if not self.held:  # perhaps it is in another network now, where others are near
            self._looked_at, self._is_settled = set(), False
        self.on_change()
        self.look()

    async def _improve(self) -> None:
        """Exchange relays for candidates that are much nearer, and have been for a while."""
        now, may = trio.current_time(), {peer for peer, _ in self._due()}
        away_s = {
            PeerId(str(connection.peer_id)): connection.rtt_s
            for connection in self.connected()
            if connection.rtt_s is not None
        }
        held_s = {peer: held.connection.rtt_s or 0.0 for peer, held in self.held.items()}
        better = exchanges(held_s, {peer: away_s[peer] for peer in away_s.keys() & may})
        self._better_since = {new: self._better_since.get(new, now) for _, new in better}
        for old, new in better:
            if self._is_settled and now - self._better_since[new] < BETTER_FOR_S:
                continue
            await self._ask(new, ())
            if new in self.held and old in self.held:
                self._let_go(old)


def _place(peer: PeerId, connection: Connection, answer: RelayAnswer) -> str:
    """Return where others reach a relay: where this peer does, as it says itself otherwise."""
    remote = connection.get_remote_address()
    if remote and connection.is_initiator:
        host, port = remote[0].partition("%")[0], remote[1]
        return f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}/p2p/{peer}"
    for address in answer.addresses:
        if "/tcp/" in address and not is_circuit(address):
            return f"{address.partition('/p2p/')[0]}/p2p/{peer}"
    return ""


def _network(address: str) -> str:
    """Return the IPv4 /16 or IPv6 /56 that an address is in."""
    parts = address.split("/")
    host = parts[2] if len(parts) > 2 else ""
    return ".".join(host.split(".")[:2]) if "." in host else site_of(host)
