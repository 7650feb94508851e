"""Comparing views with one peer: see `p2pinfer.core.exchange` for the messages."""

from collections.abc import Iterable

import trio

from p2pinfer.core.advertisement import ADVERTISEMENTS_MAX, KNOWN_MAX, Known
from p2pinfer.core.errors import RemoteProtocolError
from p2pinfer.core.exchange import BUCKETS, DIGEST_BYTES, NUMBER_BYTES, TAG_BYTES, Compare, Differs
from p2pinfer.core.exchange import Wanted as WantedMessage
from p2pinfer.core.ids import ModelId
from peers.discovery.model_index import IndexEntry, ModelIndex, aged
from peers.discovery.view import SwarmView, Taken
from peers.steps.messaging import receive, send
from peers.steps.rate_limit import RateLimits
from transports.base import Channel

MESSAGES_MAX = 16
"""`Known` messages in a row: twice what a full view fills."""

AT_ONCE_MAX = 16
"""Advertisements judged before other tasks get a turn: 2 ms of signature checks."""

OFFENCES_MAX = 8
"""Advertisements that are not genuine; each costs a signature check. An older version may pass on
something that a newer one rejects, once or twice."""

TOLD_MAX = 2.0 * ADVERTISEMENTS_MAX
TOLD_PER_S = 100.0
"""Advertisements accepted from one peer in comparisons, at once and in the long run: a newcomer
receives a full view, and then some changes; each costs a signature check."""


async def ask(channel: Channel, view: SwarmView, model: ModelId | None, told: RateLimits) -> None:
    """Compare views of a model, or learn which models there are.

    ``told`` limits how much each peer may still send.

    Raises:
        ChannelClosed, RefusedError, RemoteProtocolError: as `peers.steps.messaging.receive`.
    """
    index = view.indexes.get(model) if model else None
    known = index is not None and any(peer != view.me for peer in index.entries)
    digests = index.digests() if index and known else b""
    await send(channel, Compare(model or ModelId(""), digests, view.models_digest()))
    if not digests:
        await _tell(channel, view.of(model) if model else ())
    reply = await receive(channel, Differs, Known)
    if isinstance(reply, Known):
        await _learn(channel, view, told, reply)
        return
    if reply.glimpse:
        await _learn(channel, view, told)
    if reply.buckets and index:
        missing, newer = _against(index, reply)
        await send(channel, WantedMessage(missing))
        await _tell(channel, newer)
        await _learn(channel, view, told)


async def answer(channel: Channel, view: SwarmView, told: RateLimits) -> None:
    """Answer one peer that compares views; raises as `ask`."""
    asked = await receive(channel, Compare)
    index = view.indexes.get(asked.model) if asked.model in view.followed else None
    strange = asked.models != view.models_digest()
    if not asked.digests:
        await _learn(channel, view, told)
        await _tell(channel, [*view.of(asked.model), *view.glimpses([asked.model])])
    elif len(asked.digests) != BUCKETS * DIGEST_BYTES:
        raise RemoteProtocolError(channel.remote, f"{channel.remote} sent half a digest")
    elif index is None:
        await _tell(channel, view.glimpses())
    else:
        buckets = index.differing(asked.digests)
        await send(channel, Differs(buckets, index.newest(buckets), strange))
        if strange:
            await _tell(channel, view.glimpses([asked.model]))
        if buckets:
            wanted = await receive(channel, WantedMessage)
            await _learn(channel, view, told)
            tags = set(_split(wanted.tags, TAG_BYTES))
            await _tell(channel, [e for e in index.within(buckets) if e.parsed.tag in tags])


def _against(index: ModelIndex, reply: Differs) -> tuple[bytes, list[IndexEntry]]:
    """Return tags of peers with newer advertisements on the other side, and entries it lacks."""
    words = _split(reply.newest, TAG_BYTES + NUMBER_BYTES)
    theirs = {word[:TAG_BYTES]: word for word in words}
    newer: list[IndexEntry] = []
    for entry in index.within(reply.buckets):
        parsed = entry.parsed
        own, their = parsed.word, theirs.get(parsed.tag, b"")
        if own > their:
            newer.append(entry)
        if own >= their:
            theirs.pop(parsed.tag, None)
    return b"".join(theirs), newer


def _split(data: bytes, size: int) -> Iterable[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


async def _tell(channel: Channel, entries: Iterable[IndexEntry]) -> None:
    """Send advertisements in as many messages as needed, at least one."""
    now = trio.current_time()
    heard = tuple(aged(entry, now) for entry in entries)
    for i in range(0, max(1, len(heard)), KNOWN_MAX):
        more = i + KNOWN_MAX < len(heard)
        await send(channel, Known(heard[i : i + KNOWN_MAX], more))


async def _learn(
    channel: Channel, view: SwarmView, told: RateLimits, first: Known | None = None
) -> None:
    """Take advertisements until the other side says that there are no more."""
    offences = 0
    for number in range(MESSAGES_MAX):
        known = first if first and number == 0 else await receive(channel, Known)
        if not told.spend(channel.remote, trio.current_time(), len(known.heard)):
            raise RemoteProtocolError(
                channel.remote, f"{channel.remote} sends too many advertisements"
            )
        for index, heard in enumerate(known.heard):
            if index % AT_ONCE_MAX == 0:
                await trio.lowlevel.checkpoint()
            offences += view.take(heard, trio.current_time()) is Taken.BAD
            if offences > OFFENCES_MAX:
                raise RemoteProtocolError(
                    channel.remote, f"{channel.remote} sends invalid advertisements"
                )
        if not known.more:
            return
    raise RemoteProtocolError(channel.remote, f"{channel.remote} never stops sending")
