"""News of a libp2p host's connections."""

from collections.abc import Callable

from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types


class News(INotifee):
    """Calls a function whenever a connection has begun."""

    def __init__(self, tell: Callable[[], object]) -> None:
        self._tell = tell

    async def connected(self, network: INetwork, conn: INetConn) -> None:  # noqa: ARG002
        """Take note."""
        self._tell()

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        """Nothing is to be done."""

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        """Nothing is to be done."""

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        """Nothing is to be done."""

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Nothing is to be done."""

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Nothing is to be done."""
