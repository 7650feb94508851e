"""Moving chunks here: from several holders at once, each checked before it is kept.

`scheduler.fetching` decides which chunk to ask of which holder; this module carries it out. One
task per holder talks to it; other tasks hash and write the chunks received, so that the next one
need not wait for the disk. Memory is bounded by the chunks in flight.
"""

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import replace

import trio

from p2pinfer.core.errors import PeerError, RemoteProtocolError, lone_errors
from p2pinfer.core.ids import ChunkId, ModelId, PartHash, PeerId
from p2pinfer.core.manifest import Part
from p2pinfer.core.messages import (
    CHUNKS_PER_QUESTION_MAX,
    PARTS_PER_QUESTION_MAX,
    AskHeld,
    Chunk,
    Denied,
    Held,
    Refusal,
)
from peers.parts.describe import LOOK_S, Blame, Holders, Tell
from peers.parts.keep import Arrived, Sink, keep_all, store_all
from peers.parts.link import HolderLink
from peers.parts.progress import TICK_S, Meter, Progress
from peers.parts.protocol import PARTS, Moved, Run, unpack_bits
from peers.steps.messaging import RefusedError, receive
from scheduler.fetching import IN_FLIGHT_MAX, Fetching
from transports.base import Transport

_log = logging.getLogger("p2pinfer.parts")

GREET_S_MAX = 15.0
"""For a holder to be reached and to report what it holds."""

NAMED_MAX = 3
"""Parts named in the message when no peer holds them."""

MEND_AFTER_S = 3 * LOOK_S
"""For a holder to turn up before a chunk is rebuilt from others, which brings k times as much."""

MEND_AGAIN_S = 10.0
"""Until it is tried again where too few shares could be had."""

Mend = Callable[[Collection[ChunkId], Collection[PeerId]], Awaitable[set[ChunkId]]]
"""Gets the chunks, and the peers whose claims are worth nothing; returns what it stored."""


class Transfer:
    """Carries out a plan's decisions.

    Args:
        transport: reaches holders.
        store: where chunks are put.
        model: whose chunks they are.
        parts: the parts that they belong to, with their chunks' hashes.
        plan: which chunks are wanted.
        run: runs what waits for a disk.
        blame: called with the error of each holder that lied.
        whole: parts that are whole once their chunks here are stored.
        mend: rebuilds chunks that nobody holds, if there is a way; returns those that it stored.
        had: called with each holder that gave right chunks, and how many bytes.
    """

    def __init__(
        self,
        transport: Transport,
        store: Sink,
        model: ModelId,
        parts: Iterable[Part],
        plan: Fetching,
        run: Run,
        blame: Blame,
        *,
        whole: Iterable[PartHash] = (),
        mend: Mend | None = None,
        had: Moved = lambda *_: None,
    ) -> None:
        self._transport, self._store, self._model = transport, store, model
        self._parts = {part.hash: part for part in parts}
        self._plan, self._run, self._blame, self._mend = plan, run, blame, mend
        self._had = had
        self._unheld_since = math.inf
        self._is_mending, self._mend_at = False, -math.inf
        self._chunks_left = Counter(chunk.part for chunk in plan.missing)
        self._whole = set(whole)
        self._links: dict[PeerId, HolderLink] = {}
        self._damaged: set[PeerId] = set()
        self._finished = trio.Event()
        self._arriving, self._arrived = trio.open_memory_channel[Arrived](IN_FLIGHT_MAX)

    async def run(self, holders: Holders, meter: Meter, tell: Tell) -> None:
        """Fetch from holders until everything is stored."""
        looked = -LOOK_S
        async with trio.open_nursery() as links:
            links.start_soon(keep_all, self._arrived, self._more, self._keep)
            async with trio.open_nursery() as self._finishing:
                while not self._plan.done:
                    now = trio.current_time()
                    if now - looked >= LOOK_S:
                        looked = now
                        self._look(holders, links, now)
                    self._drop(self._plan.slow(now), "slow")
                    self._ask()
                    self._look_for_lost(now)
                    tell(self._progress(meter, now))
                    with trio.move_on_after(TICK_S):
                        await self._finished.wait()
            links.cancel_scope.cancel()
        tell(self._progress(meter, trio.current_time()))

    def _progress(self, meter: Meter, now: float) -> Progress:
        progress = meter.read(now, self._plan, self._names)
        if self._is_mending and progress.waiting:
            waiting = progress.waiting.replace("; waiting", "; rebuilding it from other shares")
            return replace(progress, waiting=waiting)
        return progress

    def _look_for_lost(self, now: float) -> None:
        """Begin to rebuild what no holder has had for a while."""
        lost = self._plan.unheld() if self._mend else []
        if not lost:
            self._unheld_since = math.inf
            return
        self._unheld_since = min(self._unheld_since, now)
        if now - self._unheld_since >= MEND_AFTER_S and now >= self._mend_at:
            self._is_mending, self._mend_at = True, math.inf
            self._finishing.start_soon(self._mend_lost, lost)

    async def _mend_lost(self, lost: list[ChunkId]) -> None:
        assert self._mend
        try:
            made = await self._mend(lost, self._plan.doubted)
            for chunk in made:
                if self._plan.made(chunk):
                    self._count(self._parts[chunk.part])
        finally:
            self._is_mending, self._unheld_since = False, math.inf
        self._mend_at = trio.current_time() + (0.0 if made else MEND_AGAIN_S)

    def _look(self, holders: Holders, links: trio.Nursery, now: float) -> None:
        """Connect to new holders, in place of holders that have nothing useful."""
        known = {holder.peer: holder for holder in holders()}
        known.pop(self._transport.peer_id, None)
        if known.keys() - self._links.keys():
            self._drop(self._plan.useless(), "of no use now")
        for peer in self._plan.link(known, now):
            self._links[peer] = HolderLink(known[peer])
            links.start_soon(self._talk, self._links[peer])

    def _drop(self, peers: Iterable[PeerId], why: str) -> None:
        for peer in peers:
            _log.info("%s is %s; asking others", peer, why)
            self._links[peer].scope.cancel()

    def _ask(self) -> None:
        """Send the questions that the plan wants asked now."""
        asked: dict[tuple[PeerId, PartHash], list[int]] = {}
        for peer, (part, number) in self._plan.ask(trio.current_time()):
            asked.setdefault((peer, part), []).append(number)
        for (peer, part), numbers in asked.items():
            for at in range(0, len(numbers), CHUNKS_PER_QUESTION_MAX):
                some = tuple(numbers[at : at + CHUNKS_PER_QUESTION_MAX])
                self._links[peer].ask_chunks(self._model, part, some)

    async def _talk(self, link: HolderLink) -> None:
        """Talk to one holder until it fails, lies, or is dropped."""
        try:
            with link.scope, lone_errors():
                await self._converse(link)
        except RemoteProtocolError as error:
            self._plan.ban(link.peer)
            self._blame(error)
        except PeerError as error:
            _log.info("lost a holder: %s", error)
        except trio.TooSlowError:
            _log.info("%s did not report in time what it holds", link.peer)
        finally:
            del self._links[link.peer]
            self._plan.lost(link.peer, trio.current_time())
            self._ask()

    async def _converse(self, link: HolderLink) -> None:
        with trio.fail_after(GREET_S_MAX):
            channel = await self._transport.open(link.peer, PARTS, link.holder.addresses)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.send_all, channel)
                nursery.start_soon(self._keep_up, link)
                while True:
                    answer: Chunk | Held | Denied = await receive(channel, Chunk, Held, Denied)
                    self._take(link, answer)
        finally:
            channel.abort()

    async def _keep_up(self, link: HolderLink) -> None:
        """Ask a holder repeatedly what it holds, until it holds everything that is missing."""
        while True:
            if not self._plan.claims_all(link.peer):
                link.told = trio.Event()
                hashes = tuple(self._parts)
                for at in range(0, len(hashes), PARTS_PER_QUESTION_MAX):
                    some = hashes[at : at + PARTS_PER_QUESTION_MAX]
                    link.ask_held(self._model, some)
                with trio.fail_after(math.inf if link.holds else GREET_S_MAX):
                    await link.told.wait()
            await trio.sleep(LOOK_S)

    def _take(self, link: HolderLink, answer: Chunk | Held | Denied) -> None:
        """Check an answer, and act on it."""
        question = link.open.pop(answer.number, None)
        match question, answer:
            case ChunkId(part, number), Chunk():
                self._plan.arrived(link.peer, question, trio.current_time())
                arrived = Arrived(link.peer, self._parts[part], number, answer.data)
                self._arriving.send_nowait(arrived)
            case ChunkId(), Denied(code=Refusal.NOT_HELD):
                self._plan.denied(link.peer, question)
            case ChunkId(part, number), Denied(code=Refusal.DAMAGED):
                self._plan.denied(link.peer, question)
                self._note_damage(link.peer, f"chunk {number} of {self._parts[part].name}")
            case AskHeld(), Held() if len(answer.bitmaps) == len(question.parts):
                self._note(link, question, answer)
            case ((ChunkId() | AskHeld()), Denied()):
                raise RefusedError.of(link.peer, answer.code, "it answers no questions now")
            case _:
                raise RemoteProtocolError(link.peer, f"{link.peer} answered a question never asked")
        self._ask()

    def _note(self, link: HolderLink, question: AskHeld, answer: Held) -> None:
        """Tell the plan what a holder holds."""
        for part, bitmap in zip(question.parts, answer.bitmaps, strict=True):
            try:
                link.holds[part] = unpack_bits(bitmap, self._parts[part].chunk_count)
            except ValueError as error:
                raise RemoteProtocolError(link.peer, f"{link.peer} sent {error}") from error
        if not any(isinstance(other, AskHeld) for other in link.open.values()):
            claimed = (ChunkId(part, n) for part, held in link.holds.items() for n in held)
            self._plan.claim(link.peer, claimed)
            link.told.set()

    def _note_damage(self, peer: PeerId, what: str) -> None:
        """Report a holder whose disk is damaged, only once: it may repeat the claim endlessly."""
        if peer not in self._damaged:
            self._damaged.add(peer)
            text = f"{peer} reports that its disk damaged {what}; asking other peers for it"
            self._blame(PeerError(peer, text))

    def _more(self) -> bool:
        """Whether chunks are on their way."""
        return self._plan.asked > 0

    async def _keep(self, batch: list[Arrived]) -> None:
        """Check and store chunks; the last one of a part completes it."""
        for chunk, right in zip(batch, await self._run(store_all, self._store, batch), strict=True):
            place = ChunkId(chunk.part.hash, chunk.number)
            if not right:
                self._plan.spoilt(chunk.peer, place)
                what = f"chunk {chunk.number} of {chunk.part.name}"
                text = f"{chunk.peer} gave wrong bytes for {what}; it is not asked again"
                self._blame(RemoteProtocolError(chunk.peer, text))
                if chunk.peer in self._links:
                    self._drop([chunk.peer], "a liar")
                continue
            self._plan.stored(chunk.peer, place)
            self._had(chunk.peer, len(chunk.data))
            self._count(chunk.part)
        self._ask()

    def _count(self, part: Part) -> None:
        """Note that a chunk of a part is stored."""
        self._chunks_left[part.hash] -= 1
        if not self._chunks_left[part.hash] and part.hash in self._whole:
            self._finishing.start_soon(self._run, self._store.finish, part)
        if self._plan.done:
            self._finished.set()

    def _names(self, parts: Collection[PartHash]) -> str:
        """Name some parts, in the model's order."""
        names = [part.name for part in self._parts.values() if part.hash in parts]
        more = len(names) - NAMED_MAX
        return ", ".join(names[:NAMED_MAX]) + (f" and {more} more parts" if more > 0 else "")
