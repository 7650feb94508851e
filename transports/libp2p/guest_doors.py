"""Handshakes of a host that are found when somebody asks for one, and told to nobody."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from libp2p.abc import ISecureTransport
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.security_multistream import SecurityMultistream

Find = Callable[[str], ISecureTransport | None]
"""Returns the handshake of a name, if there is one now."""


def add_doors(security: SecurityMultistream, find: Find) -> None:
    """Let those who call ask for handshakes that are looked up then, besides those that are."""
    selector: Any = security._selector
    selector.handlers = _WithDoors(selector.handlers, find)
    selector.multiselect.handlers = _WithDoors(selector.multiselect.handlers, find)


class _WithDoors(OrderedDict[Any, Any]):
    """Handshakes by name, with others looked up when one is asked for.

    They are not listed: neither offered to those that this host calls, nor told to who asks.
    """

    def __init__(self, known: OrderedDict[Any, Any], find: Find) -> None:
        super().__init__(known)
        self._known, self._find = known, find

    def __contains__(self, name: object) -> bool:
        return name in self._known or self._find(str(name)) is not None

    def __missing__(self, name: object) -> ISecureTransport:
        if found := self._known[name] if name in self._known else self._find(str(name)):
            return found
        raise HandshakeFailure("what was there a moment ago is gone")
