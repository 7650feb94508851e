"""Serving parts: whatever chunks this peer holds, to whoever asks.

A channel has one task that takes questions in and two that answer them, so that the disk reads one
chunk while another is on its way. So a channel never holds more than two chunks in memory, however
much is asked; and the muxer lets the small messages of sessions pass between their frames.
"""

import logging
from collections import Counter

import trio

from p2pinfer.core.errors import ChannelClosed, RemoteProtocolError, lone_errors
from p2pinfer.core.ids import ModelId, PartHash, PeerId
from p2pinfer.core.manifest import Manifest, Part
from p2pinfer.core.messages import (
    QUESTIONS_PER_CHANNEL_MAX,
    AskChunk,
    AskHeld,
    AskManifest,
    Chunk,
    Denied,
    Held,
    ManifestIs,
    Refusal,
)
from p2pinfer.core.wire import encode
from p2pinfer.engine.store import DamagedPart, MissingChunk, Store
from peers.parts import PARTS, Run, in_thread, pack_bits
from peers.talk import RefusedError, receive, send
from transports.base import Channel, Transport

_log = logging.getLogger("p2pinfer.parts")

CHANNELS_MAX = 32
"""Of all peers; with two chunks and their copies on the way each, some 200 MB at the very worst."""

CHANNELS_PER_PEER_MAX = 2
"""A fetcher needs one; a second one while the end of the first has not been noticed."""

ANSWERS_PER_CHANNEL = 2
"""Worked on at once: one is read while one is sent."""

ANSWER_S_MAX = 60.0
"""For a peer to take an answer: a chunk at 17 KB/s."""

IDLE_S_MAX = 60.0
"""Between two questions; then the channel is for others."""

GOODBYE_S_MAX = 1.0
"""How long to try to tell a peer why its channel ends."""

MANIFESTS_MAX = 4
"""Kept in memory; a peer rarely serves more than one model."""

_Question = AskManifest | AskHeld | AskChunk
_Answer = ManifestIs | Held | Chunk | Denied


class PartsServer:
    """Answers questions about what a store holds."""

    def __init__(self, transport: Transport, store: Store, run: Run = in_thread) -> None:
        self._transport, self._store, self._run = transport, store, run
        self._channels: Counter[PeerId] = Counter()
        self._manifests: dict[ModelId, tuple[Manifest, dict[PartHash, Part]]] = {}
        self.chunks = 0
        """Given away so far."""

    def listen(self) -> None:
        """Serve parts from now on."""
        self._transport.handle(PARTS, self._serve)

    async def _serve(self, channel: Channel) -> None:
        """Serve one inbound channel until its peer leaves, errs or falls silent."""
        peer = channel.remote
        if self._channels.total() >= CHANNELS_MAX or self._channels[peer] >= CHANNELS_PER_PEER_MAX:
            await self._refuse(channel, Refusal.BUSY, "too many are fetching parts from here")
            return
        self._channels[peer] += 1
        try:
            with lone_errors():
                await self._converse(channel)
        except ChannelClosed:
            pass  # whoever asked has left
        except RemoteProtocolError as error:
            _log.warning("%s", error)
            await self._refuse(channel, Refusal.BAD_REQUEST, str(error))
        except trio.TooSlowError:
            await self._refuse(
                channel, Refusal.TOO_SLOW, "nothing was asked, or taken, for too long"
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
                    question: _Question = await receive(channel, AskManifest, AskHeld, AskChunk)
                try:
                    into.send_nowait(question)
                except trio.WouldBlock:
                    text = f"asked more than {QUESTIONS_PER_CHANNEL_MAX} questions at once"
                    raise RemoteProtocolError(channel.remote, text) from None

    async def _answer_all(
        self, channel: Channel, questions: trio.MemoryReceiveChannel[_Question]
    ) -> None:
        async for question in questions:
            answer = encode(await self._answer(question))
            with trio.fail_after(ANSWER_S_MAX):
                await channel.send(answer)

    async def _answer(self, question: _Question) -> _Answer:
        """Find an answer; a damaged disk is nobody's fault who asks."""
        number = question.number
        found = await self._find(question.model)
        if isinstance(question, AskHeld):
            parts = found[1] if found else {}
            held = [parts.get(part) for part in question.parts]
            return Held(number, await self._run(self._bitmaps, held))
        if found is None:
            return Denied(number, Refusal.NOT_HELD)
        manifest, parts = found
        if isinstance(question, AskManifest):
            return ManifestIs(number, await self._run(manifest.encode))
        part = parts.get(question.part)
        if part is None or question.index >= len(part.chunks):
            return Denied(number, Refusal.NOT_HELD)
        try:
            data = await self._run(self._store.read_chunk, part, question.index)
        except (DamagedPart, MissingChunk, OSError) as error:
            _log.warning("cannot give a chunk: %s", error)
            return Denied(number, Refusal.NOT_HELD)
        self.chunks += 1
        return Chunk(number, data)

    def _bitmaps(self, parts: list[Part | None]) -> tuple[bytes, ...]:
        return tuple(pack_bits(self._store.chunks_held(part)) if part else b"" for part in parts)

    async def _find(self, model: ModelId) -> tuple[Manifest, dict[PartHash, Part]] | None:
        """Return a model's manifest and its parts by their hashes, if the store has them."""
        if model not in self._manifests:
            manifest = await self._run(self._store.manifest, model)
            if manifest is None:
                return None
            self._manifests[model] = manifest, {part.hash: part for part in manifest.parts}
            if len(self._manifests) > MANIFESTS_MAX:
                del self._manifests[next(iter(self._manifests))]
        return self._manifests[model]

    async def _refuse(self, channel: Channel, code: Refusal, text: str) -> None:
        """Say why the channel ends, if the peer still listens."""
        refusal = RefusedError.of(self._transport.peer_id, code, text)
        with trio.move_on_after(GOODBYE_S_MAX):
            try:
                await send(channel, refusal.refused)
            except ChannelClosed:
                return
            await channel.close()
