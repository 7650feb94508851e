"""Spot checks: a peer is asked for a chunk that it says it holds."""

import logging

import trio
from blake3 import blake3

from p2pinfer.core.errors import PeerError, RemoteProtocolError
from p2pinfer.core.ids import ModelId
from p2pinfer.core.manifest import Part
from p2pinfer.core.messages import AskChunks, Chunk, Denied
from peers.parts.describe import Blame
from peers.parts.link import Holder
from peers.parts.protocol import PARTS
from peers.steps.messaging import receive, send
from transports.base import Transport

_log = logging.getLogger("p2pinfer.parts")

CHECK_S_MAX = 60.0
"""For one chunk: at 17 KB/s, as slow as a holder gives one."""


async def spot_check(
    transport: Transport, holder: Holder, model: ModelId, part: Part, index: int, blame: Blame
) -> bool:
    """Return whether a peer gave a chunk; ``blame`` gets the error of one that gave other bytes.

    One that is silent, or says that it lacks the chunk, may have lost it just now.
    """
    try:
        with trio.fail_after(CHECK_S_MAX):
            channel = await transport.open(holder.peer, PARTS, holder.addresses)
            try:
                await send(channel, AskChunks(0, model, part.hash, (index,)))
                answer = await receive(channel, Chunk, Denied)
            finally:
                channel.abort()
        if isinstance(answer, Denied):
            _log.info("%s lacks chunk %d of %s", holder.peer, index, part.name)
            return False
        if blake3(answer.data).digest() != part.chunks[index]:
            text = f"{holder.peer} gave wrong bytes for chunk {index} of {part.name}"
            raise RemoteProtocolError(holder.peer, text)
        return True
    except RemoteProtocolError as error:
        blame(error)
    except (PeerError, trio.TooSlowError) as error:
        _log.info("%s did not give chunk %d of %s: %s", holder.peer, index, part.name, error)
    return False
