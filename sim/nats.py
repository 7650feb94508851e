"""NATs: their kinds, how common they are, and between which of them a hole can be punched.

A router's NAT keeps one outer port for a peer whatever that speaks to, or, if it is symmetric,
takes another one for each; and it lets in everybody, or those that the peer has spoken to, by
address or by address and port (RFC 4787).
"""

from enum import Enum
from random import Random

from sim.scenario import NatsTable


class NatKind(Enum):
    """What stands between a peer and the others."""

    NONE = "none"
    """Nothing, or a forwarded port: others can dial it."""
    OPEN_FILTER = "open filter"
    ADDRESS_FILTER = "address filter"
    PORT_FILTER = "port filter"
    """Most home routers, and firewalls."""
    SYMMETRIC = "symmetric"


LENIENT = (NatKind.OPEN_FILTER, NatKind.ADDRESS_FILTER)
"""They let a symmetric one in, whose outer port nobody can foretell."""


def can_punch(one: NatKind, other: NatKind) -> bool:
    """Whether two peers that cannot be dialled connect by dialling each other at once.

    As found in a laboratory of network namespaces, for each pair of kinds and both orders.
    """
    if NatKind.SYMMETRIC not in (one, other):
        return True
    return one in LENIENT or other in LENIENT


def draw_nat(table: NatsTable, chance: Random) -> NatKind:
    """Return the kind of one peer that others cannot dial."""
    at = chance.random()
    for kind, share in (
        (NatKind.OPEN_FILTER, table.open_filter),
        (NatKind.ADDRESS_FILTER, table.address_filter),
        (NatKind.SYMMETRIC, table.symmetric),
    ):
        if at < share:
            return kind
        at -= share
    return NatKind.PORT_FILTER
