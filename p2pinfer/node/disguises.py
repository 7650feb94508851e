"""Under whose name each session is asked for, where a requester hides behind relays.

Each session has an identity of its own, on a path of its own behind the same first relay, and so
have its receipts, audits and certificates. The next one is prepared meanwhile: a first relay's
answer, and with two relays a handshake with the second, are not waited for.
"""

import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.node.one_ahead import OneAhead
from p2pinfer.node.swarm_connection import SwarmConnection
from p2pinfer.node.vouching import AccountOptions, speaking_for
from peers.asking.session import Requester
from peers.audits.auditor import Auditor
from peers.audits.replay import PeerReplays
from peers.receipts.session_evidence import Gatherer
from transports.base import Transport
from transports.libp2p.padding import PACED_BYTES_MAX, BadShape, CellShape


class HidingOptions(AccountOptions, Protocol):
    """How a client asks: see ``ClientOptions``."""

    @property
    def evidence(self) -> bool:
        """Whether receipts are gathered."""
        ...

    @property
    def pace_ms(self) -> int:
        """Milliseconds between two rows; 0: they leave as they are made."""
        ...


FindOver = Callable[[Transport, Gatherer], PeerReplays]
"""Returns what finds replays over a transport."""


Accuse = Callable[..., None]
"""Tells a proof of fraud, with what signs it as its author; see ``Frauds.accuse``."""


@dataclass(frozen=True)
class Disguise:
    """One identity, for as long as its session is open."""

    sign: Callable[[bytes], bytes]
    auditor: Auditor | None
    """Checks what was had under that name; None if nothing is to be checked."""


class Disguises:
    """Draws an identity for each session of a client.

    Args:
        swarm: the swarm, and what opens ways into it.
        options: how to ask.
        requester: asks for sessions.
        row_bytes: of one row, which all bytes on the way are filled up to.

    Raises:
        UserError: rows of that size cannot leave at the pace that is wanted.
    """

    def __init__(
        self,
        swarm: SwarmConnection,
        options: HidingOptions,
        requester: Requester,
        row_bytes: int,
    ) -> None:
        assert swarm.another
        self._nursery, self._options, self._requester = swarm.nursery, options, requester
        self._auditor: Auditor | None = None
        self._find: FindOver | None = None
        self._accuse: Accuse | None = None
        shape = shape_of(row_bytes, options.pace_ms)
        self._ahead = OneAhead(swarm.nursery, partial(swarm.another, shape))
        self._ahead.prepare()
        self._worn: dict[PeerId, Disguise] = {}

    def audit_with(self, auditor: Auditor, find: FindOver, accuse: Accuse) -> None:
        """Have answers examined as by this auditor, and proofs signed, in each session's name."""
        self._auditor, self._find, self._accuse = auditor, find, accuse

    @asynccontextmanager
    async def take(self) -> AsyncGenerator[Requester, None]:
        """Return who asks in one session; raises NoPath."""
        async with self._ahead.take() as way:
            me = way.identity.peer_id
            spoken_for = speaking_for(self._nursery, me, self._options)
            gatherer = Gatherer(self._nursery, way.transport, secrets.token_bytes, *spoken_for)
            auditor = None
            if self._auditor and self._find and self._accuse:
                find = self._find(way.transport, gatherer).find
                accuse = partial(self._accuse, sign=way.identity.sign)
                auditor = self._auditor.over(way.transport, find, accuse)
            self._worn[me] = Disguise(way.identity.sign, auditor)
            try:
                evidence = gatherer if self._options.evidence else None
                yield self._requester.over(way.transport, evidence)
            finally:
                del self._worn[me]

    def worn(self, name: PeerId) -> Disguise:
        """Return the disguise of an open session, by the name under which it was asked for."""
        return self._worn[name]


def shape_of(row_bytes: int, pace_ms: int) -> CellShape:
    """Return what a model's rows look like on the way; raises UserError."""
    try:
        return CellShape.for_rows(row_bytes, pace_ms)
    except BadShape:
        least = -(-row_bytes * 1000 // PACED_BYTES_MAX) + 1
        raise UserError(
            f"--pace {pace_ms}: this model's rows are {row_bytes} bytes long, which peers do not"
            f" send so often in vain: choose at least {least}"
        ) from None
