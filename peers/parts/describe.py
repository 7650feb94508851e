"""Asking for what describes a model: its manifest, and the lists of its parts' chunks."""

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from p2pinfer.core.errors import PeerError, PeerUnavailable, RemoteProtocolError
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.manifest import Manifest, Part, WrongList, WrongManifest
from p2pinfer.core.messages import AskHashes, AskManifest, Denied, HashesAre, ManifestIs
from p2pinfer.engine.store.store import Store
from peers.parts.link import Holder
from peers.parts.progress import Progress
from peers.parts.protocol import PARTS, Run, in_thread
from peers.steps.messaging import receive, send
from transports.base import Channel, Transport

_log = logging.getLogger("p2pinfer.parts")

T = TypeVar("T")

LOOK_S = 2.0
"""How often to look for other holders of the model, and for what a holder has fetched since."""

DESCRIPTION_S_MAX = 60.0
"""For a manifest of 4 MiB, or for the lists of some parts; what came until then stays."""

Holders = Callable[[], Iterable[Holder]]
"""Called repeatedly; returns the peers that may hold parts of the model right now."""

Tell = Callable[[Progress], None]
Blame = Callable[[PeerError], None]
"""Called with the error of a holder that gave a wrong answer: a RemoteProtocolError if the holder
is not asked any more, any other error if it reports itself that its disk is damaged."""


def log_blame(error: PeerError) -> None:
    """Warn about a peer that gave wrong data, or whose disk is damaged."""
    _log.warning("%s", error)


async def fetch_manifest(
    transport: Transport,
    holders: Holders,
    store: Store,
    model: ModelId,
    tell: Tell = lambda _: None,
    *,
    blame: Blame = log_blame,
    run: Run = in_thread,
) -> Manifest:
    """Return a model's manifest, from the store or else from any holder that has it.

    Waits while no peer online has it, and reports that to ``tell``. ``blame`` gets the error of
    each holder that lied.

    Raises:
        BadManifest: it hashes to the model's id, but its format is unknown here.
        UserError: the disk is full.
    """
    if manifest := await run(store.manifest, model):
        return manifest

    async def ask(channel: Channel) -> Manifest | None:
        await send(channel, AskManifest(0, model))
        answer = await receive(channel, ManifestIs, Denied)
        if isinstance(answer, Denied):
            return None
        try:
            return await run(store.add_manifest, answer.data, model)
        except WrongManifest as error:
            text = f"{channel.remote} gave another manifest: {error}"
            raise RemoteProtocolError(channel.remote, text) from error

    waiting = f"no peer online has the manifest of {model[:12]}…; waiting"
    return await _ask_around(transport, holders, ask, lambda: tell(_waiting(waiting)), blame)


async def fetch_lists(
    transport: Transport,
    holders: Holders,
    store: Store,
    model: ModelId,
    parts: Iterable[Part],
    tell: Tell = lambda _: None,
    *,
    blame: Blame = log_blame,
    run: Run = in_thread,
) -> list[Part]:
    """Return the parts with their chunks' hashes, which are fetched where a manifest lacks them.

    Waits while no peer online has them, as ``fetch_manifest`` does; raises UserError as it does.
    """
    found: list[Part] = []
    lacking: list[Part] = []
    for part in parts:
        listed = await run(store.listed, part)
        (lacking if listed is None else found).append(listed or part)

    async def ask(channel: Channel) -> bool | None:
        for number, part in enumerate(list(lacking)):
            await send(channel, AskHashes(number, model, part.hash))
            answer = await receive(channel, HashesAre, Denied)
            if isinstance(answer, Denied):
                continue
            try:
                found.append(await run(store.add_list, part, answer.data))
            except WrongList as error:
                raise RemoteProtocolError(channel.remote, f"{channel.remote}: {error}") from error
            lacking.remove(part)
        return None if lacking else True

    def wait() -> None:
        tell(_waiting(f"no peer online lists the chunks of {lacking[0].name}; waiting"))

    if lacking:
        await _ask_around(transport, holders, ask, wait, blame)
    return found


def _waiting(text: str) -> Progress:
    return Progress(0, 0, 0.0, 0, text)


async def _ask_around(
    transport: Transport,
    holders: Holders,
    ask: Callable[[Channel], Awaitable[T | None]],
    wait: Callable[[], None],
    blame: Blame,
) -> T:
    """Ask one holder after another, until one has the answer; each that lies is asked but once."""
    liars: set[PeerId] = set()
    while True:
        for holder in list(holders()):
            if holder.peer in liars or holder.peer == transport.peer_id:
                continue
            try:
                if (answer := await _ask_one(transport, holder, ask)) is not None:
                    return answer
            except RemoteProtocolError as error:
                liars.add(holder.peer)
                blame(error)
            except PeerError as error:
                _log.info("no description of a model from %s: %s", holder.peer, error)
        wait()
        await trio.sleep(LOOK_S)


async def _ask_one(
    transport: Transport, holder: Holder, ask: Callable[[Channel], Awaitable[T | None]]
) -> T | None:
    try:
        with trio.fail_after(DESCRIPTION_S_MAX):
            channel = await transport.open(holder.peer, PARTS, holder.addresses)
            try:
                return await ask(channel)
            finally:
                await channel.close()
    except trio.TooSlowError:
        raise PeerUnavailable(holder.peer, f"{holder.peer} did not answer in time") from None
