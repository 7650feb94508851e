"""Questions to one holder of parts, queued and numbered."""

from collections.abc import Sequence
from typing import Protocol

import trio

from p2pinfer.core.ids import ChunkId, ModelId, PartHash, PeerId
from p2pinfer.core.messages import QUESTIONS_PER_CHANNEL_MAX, AskChunks, AskHeld
from peers.steps.messaging import send
from transports.base import Channel


class Holder(Protocol):
    """A peer that may hold parts, such as one that advertises layers of the model."""

    @property
    def peer(self) -> PeerId:
        """Its id."""
        ...

    @property
    def addresses(self) -> Sequence[str]:
        """Where it can be dialled."""
        ...


_Question = AskHeld | AskChunks


class HolderLink:
    """A connected holder: the open questions to it, and the chunks it claims to hold."""

    def __init__(self, holder: Holder) -> None:
        self.holder, self.peer = holder, holder.peer
        self.scope = trio.CancelScope()
        self.outbox, self.to_send = trio.open_memory_channel[_Question](QUESTIONS_PER_CHANNEL_MAX)
        self.open: dict[int, AskHeld | ChunkId] = {}
        """Questions without an answer yet, by the number that the answer will carry."""
        self.holds: dict[PartHash, set[int]] = {}
        self.told = trio.Event()
        """Set once it has reported what it holds."""
        self._number = 0  # of the next answer

    def ask_held(self, model: ModelId, parts: tuple[PartHash, ...]) -> None:
        """Queue a question about which chunks it holds."""
        question = AskHeld(self._number, model, parts)
        self.open[self._number] = question
        self._number += 1
        self.outbox.send_nowait(question)

    def ask_chunks(self, model: ModelId, part: PartHash, indices: tuple[int, ...]) -> None:
        """Queue a question for chunks."""
        question = AskChunks(self._number, model, part, indices)
        for index in indices:
            self.open[self._number] = ChunkId(part, index)
            self._number += 1
        self.outbox.send_nowait(question)

    async def send_all(self, channel: Channel) -> None:
        """Send the questions as they are queued."""
        async for question in self.to_send:
            await send(channel, question)
