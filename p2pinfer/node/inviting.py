"""What an invitation from this machine says: the ways in that its processes know, or knew.

A running peer is asked over its status socket, which only its owner can reach: so the key of its
network need not be named again.
"""

from collections.abc import Callable, Iterable, Sequence

import trio
from attrs import frozen

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.node.guest_tokens import GuestTokens
from p2pinfer.node.invitation import ADDRESSES_MAX, Invitation
from p2pinfer.node.known_peers import KnownPeers
from p2pinfer.node.status_socket import Status, ask_all
from peers.discovery.directory import Directory
from transports.base import NETWORK_NAME, Reach, is_circuit
from transports.dnsaddr import is_dialled
from transports.interfaces import is_global, is_loopback

Places = tuple[str, ...]
"""The addresses of one peer, the best first."""

_QUESTION = "ways_in"


@frozen
class WaysIn:
    """What one process of this machine knows about the ways into its swarm."""

    network: str
    key: bytes | None
    model: ModelId | None
    own: Places
    """Where it can be reached itself; empty for a gateway."""
    others: tuple[Places, ...]
    """Where others answered it, the latest first."""
    has_founders: bool = False
    """Whether its members are invited by them alone."""


def ways_in_told(
    network: str | Reach, own: Callable[[], Sequence[str]], directory: Directory, question: Status
) -> Status:
    """Return what a process adds to its status if it is asked for the ways into its swarm."""
    if not question.get(_QUESTION):
        return {}
    reach = Reach(network) if isinstance(network, str) else network
    answered = [list(addresses) for addresses, _ in reversed([*directory.answered.values()])]
    key = reach.key.hex() if reach.key else None
    said = {"network": reach.network, "key": key, "own": [*own()], "others": answered}
    return {_QUESTION: said | ({"founders": True} if reach.members else {})}


def invitation_here(network: str | None, key: bytes | None, *, once: bool = False) -> Invitation:
    """Return an invitation into the swarm of this machine.

    Args:
        network: its name; None for the one whose peer runs here, or else for ``main``.
        key: of a private network; not needed while a peer of it runs here.
        once: for one guest, who gets the key from a peer that runs here.

    Raises:
        UserError: no way in is known, or several networks could be meant.
    """
    told = [ways for said in trio.run(ask_all, {_QUESTION: True}) if (ways := _parsed(said))]
    told = [
        ways
        for ways in told
        if network in (None, ways.network) and (key is None or key == ways.key)
    ]
    # The peers of a trial on this machine alone are meant only if there are no others.
    told = [ways for ways in told if _far([ways.own, *ways.others])] or told
    if len({(ways.network, ways.key) for ways in told}) > 1:
        names = ", ".join(sorted({ways.network for ways in told}))
        raise UserError(
            f"processes of several networks run here ({names}): name one by --network, and"
            " --network-key if that is not enough"
        )
    if told and told[0].has_founders:
        name = told[0].network
        raise UserError(
            f"the founders of {name} say who is a member: p2pinfer network invite, on a machine of"
            " theirs"
        )
    if once:
        return _single_use(told)
    if told:
        models = {ways.model for ways in told if ways.model}
        model = models.pop() if len(models) == 1 else None
        own, others = [ways.own for ways in told], [each for ways in told for each in ways.others]
        found = Invitation(told[0].network, told[0].key, model, pick_ways(own, others))
    else:
        reach = Reach(network or "main", key)
        known = KnownPeers(reach).load()
        found = Invitation(reach.network, key, None, pick_ways([], known.values()))
    if not found.addresses:
        raise UserError(
            f"no way into the network {found.network} is known: no peer of it runs here that others"
            " can reach, and none has answered this machine; start one with p2pinfer join"
        )
    return found


def _single_use(told: Sequence[WaysIn]) -> Invitation:
    """Return an invitation for one guest, with a new token; raises UserError if there can be none.

    Its ways in are those to this machine alone, where the token is known. Its relays pass guests on
    to it, though they carry nobody else who lacks the network's key. Guests of older releases know
    no relay for that, and try what is direct first.
    """
    addresses = tuple(sorted(pick_ways([ways.own for ways in told], []), key=is_circuit))
    if not addresses:
        raise UserError(
            "a single-use invitation needs a peer on this machine that the guest can call: start"
            " one with p2pinfer join"
        )
    key = told[0].key
    if not key:
        raise UserError(
            f"anybody can enter the network {told[0].network}, who knows its name: a single-use"
            " invitation is for one with a key (p2pinfer network key FILE)"
        )
    models = {ways.model for ways in told if ways.model}
    model = models.pop() if len(models) == 1 else None
    token = GuestTokens(Reach(told[0].network, key)).issue()
    return Invitation(told[0].network, None, model, addresses, token)


def ways_into(network: str, key: bytes) -> Places:
    """Return addresses of a network's peers, as the processes here know them; none is no fault."""
    told = [ways for said in trio.run(ask_all, {_QUESTION: True}) if (ways := _parsed(said))]
    told = [ways for ways in told if (ways.network, ways.key) == (network, key)]
    own, others = [ways.own for ways in told], [each for ways in told for each in ways.others]
    return pick_ways(own, [*others, *KnownPeers(Reach(network, key)).load().values()])


def pick_ways(own: Iterable[Places], others: Iterable[Places]) -> Places:
    """Return the addresses to give away, by turns: of this machine's peers, and of others.

    So the invitation still holds when one of them is gone. Of a peer, the first counts most, and
    then those that lead to it from elsewhere, too. Loopback ones come only where there is nothing
    else. What nobody can dial is left out: peers may say anything of themselves.
    """
    good = [[each for each in places if is_dialled(each)] for places in (*own, *others)]
    peers = [
        (*places[:1], *sorted(places[1:], key=_leads_from_elsewhere, reverse=True))
        for places in good
    ]
    near = [[each for each in places if is_loopback(each)] for places in peers]
    return (_by_turns(_far(peers)) or _by_turns(near))[:ADDRESSES_MAX]


def _leads_from_elsewhere(address: str) -> bool:
    """Whether an address is good outside its peer's own network."""
    kind, host = address.split("/")[1:3]
    return is_circuit(address) or kind.startswith("dns") or is_global(host)


def _far(peers: Iterable[Places]) -> list[list[str]]:
    far = ([each for each in places if not is_loopback(each)] for places in peers)
    return [places for places in far if places]


def _by_turns(peers: Sequence[Sequence[str]]) -> Places:
    """Return the first address of each peer, then the second of each, and so on, each once."""
    deepest = max(map(len, peers), default=0)
    turns = (places[turn] for turn in range(deepest) for places in peers if turn < len(places))
    return tuple(dict.fromkeys(turns))


def _parsed(said: Status) -> WaysIn | None:
    """Return what a process knows; None if it says nothing, or is of another release."""
    match said.get(_QUESTION):
        case {"network": str(network), "key": key, "own": [*own], "others": [*others]}:
            pass
        case _:
            return None
    try:
        ways = WaysIn(
            network,
            bytes.fromhex(key) if key else None,
            ModelId(said["model"]) if said.get("model") else None,
            _places(own),
            tuple(map(_places, others)),
            said[_QUESTION].get("founders") is True,
        )
    except (TypeError, ValueError):
        return None
    return ways if NETWORK_NAME.fullmatch(network) else None


def _places(found: Sequence[object]) -> Places:
    if not all(isinstance(each, str) for each in found):
        raise TypeError("an address is a text")
    return tuple(map(str, found))
