"""Serving parts: any chunks this peer holds, to any peer that asks.

A channel has one task that takes questions in and two that answer them, so that the disk reads the
chunks for one question while those for another are being sent. So a channel never holds more than
two questions' chunks in memory, however much is asked; and the muxer lets the small messages of
sessions pass between their frames.
"""

import logging
from collections import Counter

import trio

from p2pinfer.core.errors import ChannelClosed, RemoteProtocolError, UserError, lone_errors
from p2pinfer.core.ids import ModelId, PartHash, PeerId
from p2pinfer.core.manifest import Manifest, Part
from p2pinfer.core.messages import (
    QUESTIONS_PER_CHANNEL_MAX,
    AskChunks,
    AskHashes,
    AskHeld,
    AskManifest,
    Chunk,
    Denied,
    HashesAre,
    Held,
    ManifestIs,
    Refusal,
)
from p2pinfer.core.wire import encode
from p2pinfer.engine.store.damage import DamagedPart, MissingChunk
from p2pinfer.engine.store.store import Store
from peers.parts.protocol import PARTS, Moved, Run, in_thread, pack_bits
from peers.steps.messaging import RefusedError, receive, refuse
from transports.base import Channel, Transport

_log = logging.getLogger("p2pinfer.parts")

CHANNELS_MAX = 32
"""From all peers; with four chunks and a copy being sent in each, 160 MB at the very worst."""

CHANNELS_PER_PEER_MAX = 2
"""A fetcher needs one, and a second one while the end of the first has not been noticed."""

ANSWERS_PER_CHANNEL = 2
"""Worked on at once: one is read while one is sent."""

ANSWER_S_MAX = 60.0
"""For a peer to take an answer: a chunk at 17 KB/s."""

IDLE_S_MAX = 60.0
"""Between two questions; after that the channel is freed for others."""

MANIFESTS_MAX = 4
"""Kept in memory; a peer rarely serves more than one model."""

DENIAL_BYTES_MAX = 64
"""An answer of more holds a chunk, or the last bytes of a part, which count for nothing."""

_Question = AskManifest | AskHashes | AskHeld | AskChunks
_QUESTIONS = (AskManifest, AskHashes, AskHeld, AskChunks)


class PartsServer:
    """Answers questions about a store's parts."""

    def __init__(
        self,
        transport: Transport,
        store: Store,
        run: Run = in_thread,
        on_sent: Moved = lambda *_: None,
    ) -> None:
        """Prepare to answer; ``on_sent`` is called with each fetcher and the bytes it took."""
        self._transport, self._store, self._run = transport, store, run
        self._on_sent = on_sent
        self._channels: Counter[PeerId] = Counter()
        self._manifests: dict[ModelId, tuple[Manifest, dict[PartHash, Part]]] = {}
        self.chunks = 0
        """Chunks given so far."""

    def listen(self) -> None:
        """Serve parts from now on."""
        self._transport.handle(PARTS, self._serve)

    async def _serve(self, channel: Channel) -> None:
        """Serve one inbound channel until its peer leaves, misbehaves or falls silent."""
        peer = channel.remote
        if self._channels.total() >= CHANNELS_MAX or self._channels[peer] >= CHANNELS_PER_PEER_MAX:
            await self._refuse(channel, Refusal.BUSY, "too many peers are fetching parts from here")
            return
        self._channels[peer] += 1
        try:
            with lone_errors():
                await self._converse(channel)
        except ChannelClosed:
            pass  # the fetcher has left
        except RemoteProtocolError as error:
            _log.info("%s", error)
            await self._refuse(channel, Refusal.BAD_REQUEST, str(error))
        except trio.TooSlowError:
            await self._refuse(
                channel, Refusal.TOO_SLOW, "no question asked, or no answer taken, for too long"
            )
        finally:
            self._channels[peer] -= 1
            if not self._channels[peer]:
                del self._channels[peer]

    async def _converse(self, channel: Channel) -> None:
        into, questions = trio.open_memory_channel[_Question](QUESTIONS_PER_CHANNEL_MAX)
        async with trio.open_nursery() as nursery:
            for _ in range(ANSWERS_PER_CHANNEL):
                nursery.start_soon(self._answer_all, channel, questions.clone())
            while True:
                with trio.fail_after(IDLE_S_MAX):
                    question: _Question = await receive(channel, *_QUESTIONS)
                try:
                    into.send_nowait(question)
                except trio.WouldBlock:
                    text = f"asked more than {QUESTIONS_PER_CHANNEL_MAX} questions at once"
                    raise RemoteProtocolError(channel.remote, text) from None

    async def _answer_all(
        self, channel: Channel, questions: trio.MemoryReceiveChannel[_Question]
    ) -> None:
        async for question in questions:
            for answer in await self._answers(question):
                with trio.fail_after(ANSWER_S_MAX):
                    await channel.send(answer)
                if isinstance(question, AskChunks) and len(answer) > DENIAL_BYTES_MAX:
                    self._on_sent(channel.remote, len(answer))

    async def _answers(self, question: _Question) -> list[bytes]:
        """Return the answers, encoded; a damaged disk here is not blamed on the fetcher."""
        number = question.number
        found = await self._find(question)
        if isinstance(question, AskHeld):
            parts = found[1] if found else {}
            held = [parts.get(part) for part in question.parts]
            return [encode(Held(number, await self._run(self._bitmaps, held)))]
        if isinstance(question, AskManifest):
            if found is None:
                return [encode(Denied(number, Refusal.NOT_HELD))]
            return [encode(ManifestIs(number, await self._run(found[0].encode)))]
        part = found[1].get(question.part) if found else None
        if isinstance(question, AskHashes):
            listed = await self._run(self._store.listed, part) if part else None
            if listed is None:
                return [encode(Denied(number, Refusal.NOT_HELD))]
            return [encode(HashesAre(number, b"".join(listed.chunks)))]
        return await self._run(self._chunks, part, question)

    def _chunks(self, part: Part | None, question: AskChunks) -> list[bytes]:
        """Read chunks, and encode the answers."""
        answers: list[Chunk | Denied] = []
        for number, index in enumerate(question.indices, question.number):
            if part is None or index >= part.chunk_count:
                answers.append(Denied(number, Refusal.NOT_HELD))
                continue
            try:
                answers.append(Chunk(number, self._store.read_chunk(part, index)))
                self.chunks += 1
            except DamagedPart as error:
                _log.warning("%s; it is no longer given to others", error)
                answers.append(Denied(number, Refusal.DAMAGED))
            except MissingChunk:
                answers.append(Denied(number, Refusal.NOT_HELD))
            except UserError as error:
                _log.warning("cannot give a chunk: %s", error)
                answers.append(Denied(number, Refusal.NOT_HELD))
        return [encode(answer) for answer in answers]

    def _bitmaps(self, parts: list[Part | None]) -> tuple[bytes, ...]:
        return tuple(pack_bits(self._store.chunks_held(part)) if part else b"" for part in parts)

    async def _find(self, question: _Question) -> tuple[Manifest, dict[PartHash, Part]] | None:
        """Return a model's manifest and its parts by their hashes, if the store has them.

        Its parity, if a storage plan names any, counts among them.
        """
        model = question.model
        if model not in self._manifests:
            manifest = await self._run(self._store.manifest, model)
            if manifest is None:
                return None
            self._manifests[model] = manifest, {part.hash: part for part in manifest.parts}
            if len(self._manifests) > MANIFESTS_MAX:
                del self._manifests[next(iter(self._manifests))]
        manifest, parts = self._manifests[model]
        if not set(_named(question)) <= parts.keys():
            plan = await self._run(self._store.plan, manifest)
            if plan:
                parts |= {part.hash: part for part in plan.parts}
        return manifest, parts

    async def _refuse(self, channel: Channel, code: Refusal, text: str) -> None:
        """Tell the peer why the channel ends, if it still listens."""
        await refuse(channel, RefusedError.of(self._transport.peer_id, code, text))


def _named(question: _Question) -> tuple[PartHash, ...]:
    """Return the parts that a question names."""
    match question:
        case AskHeld():
            return question.parts
        case AskHashes() | AskChunks():
            return (question.part,)
        case AskManifest():
            return ()
