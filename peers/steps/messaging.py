"""Messages over channels: encode and send, receive and check."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Never, TypeVar, overload

import trio
from attrs import evolve

from p2pinfer.core.errors import PeerError, PeerUnavailable, RemoteProtocolError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import TEXT_CHARS_MAX, Message, Refusal, Refused
from p2pinfer.core.text import printable
from p2pinfer.core.wire import BadMessage, decode, encode
from transports.base import Channel

SESSION = "session"
DIRECTORY = "directory"

GOODBYE_S_MAX = 1.0
"""How long to try to tell a peer why its channel ends."""

M = TypeVar("M")
N = TypeVar("N")


class RefusedError(PeerError):
    """A peer refused; ``refused`` is its message."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.peer, f"{refused.code}: {printable(refused.text)}")
        self.refused = refused

    @classmethod
    def of(cls, peer: PeerId, code: Refusal, text: str, retry_ms: int = 0) -> "RefusedError":
        """Refuse in a peer's name."""
        return cls(Refused(code, text[:TEXT_CHARS_MAX], peer, retry_ms))


async def send(channel: Channel, message: Message) -> None:
    """Send one message; raises as ``Channel.send``."""
    await channel.send(encode(message))


async def refuse(channel: Channel, no: RefusedError) -> None:
    """Send a refusal, if the peer still listens, and end the channel."""
    with trio.move_on_after(GOODBYE_S_MAX), suppress(PeerUnavailable):
        await send(channel, no.refused)
        await channel.close()


@overload
async def receive(channel: Channel) -> Never: ...
@overload
async def receive(channel: Channel, due: type[M], /) -> M: ...
@overload
async def receive(channel: Channel, due: type[M], or_due: type[N], /) -> M | N: ...
@overload
async def receive(channel: Channel, *due: type[M]) -> M: ...
async def receive(channel: Channel, *due: type[Any]) -> Any:
    """Return the next message, which must be of a type that is due.

    Raises:
        RefusedError: the peer refused instead (which it may at any time).
        RemoteProtocolError: it sent something else.
        ChannelClosed: it closed the channel, or is gone.
    """
    return _judged(channel, await channel.receive(), due)


async def receive_each(channel: Channel, take: Callable[[M], bool], due: type[M]) -> None:
    """Give each message to ``take``, as ``Channel.receive_each``, until that returns False.

    Raises:
        RefusedError, RemoteProtocolError, ChannelClosed: as ``receive``.
        Exception: whatever ``take`` raised.
    """
    await channel.receive_each(lambda data: take(_judged(channel, data, (due,))))


def _judged(channel: Channel, data: bytes, due: tuple[type[Any], ...]) -> Any:
    """Return the message that came over a channel; raises as ``receive``."""
    try:
        message = decode(data, *due, Refused)
    except BadMessage as error:
        raise RemoteProtocolError(channel.remote, f"{channel.remote} sent {error}") from error
    if isinstance(message, Refused):
        # Blamed on the sender, whatever it says: else it could have another peer blamed.
        raise RefusedError(evolve(message, peer=channel.remote))
    return message
