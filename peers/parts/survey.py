"""Asking many peers what they hold of a model, by which plan they keep it, and for that plan."""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import trio

from p2pinfer.core.errors import (
    PeerError,
    PeerUnavailable,
    RemoteProtocolError,
    lone_errors,
)
from p2pinfer.core.ids import ChunkId, ModelId, PeerId, PlanId
from p2pinfer.core.manifest import Manifest, Part
from p2pinfer.core.messages import PARTS_PER_QUESTION_MAX, AskHeld, Denied, Held
from p2pinfer.core.storage import AskKept, AskPlan, KeptIs, PlanIs
from p2pinfer.core.stripes import BadPlan, StoragePlan, parse_plan
from peers.parts.describe import Blame
from peers.parts.keep_server import KEEP
from peers.parts.link import Holder
from peers.parts.protocol import PARTS, unpack_bits
from peers.steps.messaging import RefusedError, receive, send
from transports.base import Channel, Transport

_log = logging.getLogger("p2pinfer.parts")

T = TypeVar("T")

SURVEYED_MAX = 512
"""Peers asked in one survey: twice as many as are needed for all shares of a large model."""

AT_ONCE_MAX = 8
"""Peers asked at the same time."""

ANSWER_S_MAX = 15.0
"""For a peer to be reached and to answer all; it counts as away otherwise."""

PLANS_TRIED_MAX = 8
"""Different plans of one model that are looked at, those with the most supporters first: each wrong
one costs the peers behind it their standing here, and this peer a few chunks."""


async def ask_all(
    holders: Iterable[Holder], ask: Callable[[Holder], Awaitable[T]], blame: Blame
) -> dict[PeerId, T]:
    """Ask some peers at once, and return what those answer that do so in time."""
    answers: dict[PeerId, T] = {}
    left = list(holders)[:SURVEYED_MAX]
    left.reverse()

    async def work() -> None:
        while left:
            holder = left.pop()
            try:
                with trio.fail_after(ANSWER_S_MAX):
                    answers[holder.peer] = await ask(holder)
            except (PeerUnavailable, RefusedError, trio.TooSlowError) as error:
                _log.info("%s does not say how it keeps a model: %s", holder.peer, error)
            except PeerError as error:
                blame(error)

    with lone_errors():
        async with trio.open_nursery() as nursery:
            for _ in range(min(AT_ONCE_MAX, len(left))):
                nursery.start_soon(work)
    return answers


async def ask_held(
    transport: Transport, holder: Holder, model: ModelId, parts: Sequence[Part]
) -> set[ChunkId]:
    """Return which chunks of these parts a peer says it holds; raises PeerError."""
    found: set[ChunkId] = set()

    async def ask(channel: Channel) -> set[ChunkId]:
        for number, at in enumerate(range(0, len(parts), PARTS_PER_QUESTION_MAX)):
            some = parts[at : at + PARTS_PER_QUESTION_MAX]
            await send(channel, AskHeld(number, model, tuple(part.hash for part in some)))
            answer = await receive(channel, Held)
            if len(answer.bitmaps) != len(some):
                raise RemoteProtocolError(holder.peer, f"{holder.peer} sent too few bitmaps")
            for part, bits in zip(some, answer.bitmaps, strict=True):
                try:
                    held = unpack_bits(bits, part.chunk_count)
                except ValueError as error:
                    text = f"{holder.peer} sent {error}"
                    raise RemoteProtocolError(holder.peer, text) from error
                found.update(ChunkId(part.hash, index) for index in held)
        return found

    return await _talk(transport, holder, PARTS, ask)


async def survey(
    transport: Transport,
    holders: Iterable[Holder],
    model: ModelId,
    parts: Sequence[Part],
    blame: Blame,
) -> dict[PeerId, set[ChunkId]]:
    """Return which chunks of these parts each peer says it holds."""
    others = [holder for holder in holders if holder.peer != transport.peer_id]

    async def ask(holder: Holder) -> set[ChunkId]:
        return await ask_held(transport, holder, model, parts)

    return await ask_all(others, ask, blame)


async def ask_kept(transport: Transport, holder: Holder, model: ModelId) -> KeptIs:
    """Return how a peer keeps a model; raises PeerError, also where it is of an older version."""

    async def ask(channel: Channel) -> KeptIs:
        await send(channel, AskKept(0, model))
        return await receive(channel, KeptIs)

    return await _talk(transport, holder, KEEP, ask)


async def ask_plan(transport: Transport, holder: Holder, manifest: Manifest) -> StoragePlan | None:
    """Return a peer's plan of a model, if it has one; raises PeerError."""

    async def ask(channel: Channel) -> StoragePlan | None:
        await send(channel, AskPlan(0, manifest.id))
        answer = await receive(channel, PlanIs, Denied)
        if isinstance(answer, Denied):
            return None
        try:
            return parse_plan(answer.data, manifest)
        except BadPlan as error:
            raise RemoteProtocolError(holder.peer, f"{holder.peer}: {error}") from error

    return await _talk(transport, holder, KEEP, ask)


async def find_plans(
    transport: Transport, holders: Iterable[Holder], manifest: Manifest, blame: Blame
) -> list[tuple[StoragePlan, list[PeerId]]]:
    """Return the plans that peers go by, with those peers, the most of them first."""
    known = {each.peer: each for each in holders if each.peer != transport.peer_id}

    async def ask(holder: Holder) -> KeptIs:
        return await ask_kept(transport, holder, manifest.id)

    said = await ask_all(known.values(), ask, blame)
    return await plans_of(
        transport, known, manifest, {peer: kept.plan for peer, kept in said.items()}, blame
    )


async def plans_of(
    transport: Transport,
    known: Mapping[PeerId, Holder],
    manifest: Manifest,
    said: Mapping[PeerId, PlanId],
    blame: Blame,
) -> list[tuple[StoragePlan, list[PeerId]]]:
    """Return the plans that peers said they go by, as the first that gives it has it."""
    supporters: dict[PlanId, list[PeerId]] = {}
    for peer, each in sorted(said.items()):
        if each:
            supporters.setdefault(each, []).append(peer)
    ranked = sorted(supporters, key=lambda each: (-len(supporters[each]), each))
    found: list[tuple[StoragePlan, list[PeerId]]] = []
    for wanted in ranked[:PLANS_TRIED_MAX]:
        plan = await _first_given(
            transport, [known[peer] for peer in supporters[wanted]], manifest, wanted, blame
        )
        if plan:
            found.append((plan, supporters[wanted]))
    return found


async def _first_given(
    transport: Transport,
    holders: Collection[Holder],
    manifest: Manifest,
    plan_id: PlanId,
    blame: Blame,
) -> StoragePlan | None:
    for holder in holders:
        try:
            with trio.fail_after(ANSWER_S_MAX):
                plan = await ask_plan(transport, holder, manifest)
            if plan and plan.id == plan_id:
                return plan
        except (PeerUnavailable, RefusedError, trio.TooSlowError) as error:
            _log.info("%s gives no plan: %s", holder.peer, error)
        except PeerError as error:
            blame(error)
    return None


async def _talk(
    transport: Transport,
    holder: Holder,
    protocol: str,
    ask: Callable[[Channel], Awaitable[T]],
) -> T:
    channel = await transport.open(holder.peer, protocol, holder.addresses)
    try:
        return await ask(channel)
    finally:
        channel.abort()
