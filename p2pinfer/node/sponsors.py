"""Sponsors on one machine: the peer that serves here signs for requesters from here.

It is asked over its status socket, which only its owner can reach. Stages learn from this that the
two belong together; ``--no-sponsor`` avoids that.
"""

import logging
import time

import trio

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.sponsor import SPONSORED_MS_MAX, Sponsor, to_sign
from p2pinfer.node.local_peers import is_peer_of
from p2pinfer.node.status_socket import Status, ask_all
from transports.identity import Identity, public_key, verify

_log = logging.getLogger("p2pinfer.sponsor")

LOOK_S = 60.0
"""How often a requester looks for a sponsor; a signature is valid for ten times as long."""


def clock_ms() -> int:
    """Return the wall clock's time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def sponsor(identity: Identity, network: str, question: Status) -> Status:
    """Return a peer's signature for the requester that a question names, or {} if none."""
    match question:
        case {"sponsor": str(requester)}:
            try:
                public_key(PeerId(requester))
            except ValueError:
                return {}
            expires_ms = clock_ms() + SPONSORED_MS_MAX
            signature = identity.sign(to_sign(PeerId(requester), network, expires_ms))
            return {"sponsor": {"expires_ms": expires_ms, "signature": signature.hex()}}
    return {}


class Sponsorship:
    """A requester's sponsor; the search is repeated, since peers come and go.

    Args:
        requester: the requester's id.
        network: its swarm's name.
    """

    def __init__(self, requester: PeerId, network: str) -> None:
        self._requester, self._network = requester, network
        self._found: Sponsor | None = None

    def current(self) -> Sponsor | None:
        """Return a sponsor's signature that is valid now, if there is one."""
        found = self._found
        return found if found and clock_ms() < found.expires_ms else None

    async def run(self) -> None:
        """Look for a sponsor, for ever."""
        while True:
            try:
                said = await ask_all({"sponsor": self._requester})
            except UserError as error:
                _log.info("cannot look for a sponsor: %s", error)
                return
            serving = [self._verified(each) for each in said if is_peer_of(each, self._network)]
            self._found = next(filter(None, serving), None)
            await trio.sleep(LOOK_S)

    def _verified(self, said: Status) -> Sponsor | None:
        match said:
            case {"state": "serving", "sponsor": {"expires_ms": int(at), "signature": str(text)}}:
                try:
                    found = Sponsor(PeerId(said["peer"]), at, bytes.fromhex(text))
                except ValueError:
                    return None
                signed = to_sign(self._requester, self._network, at)
                return found if verify(found.peer, signed, found.signature) else None
        return None
