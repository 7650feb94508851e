"""The protocol "keep": telling others how a model is kept here, and its storage plan."""

import logging
from collections.abc import Callable

import trio

from p2pinfer.core.errors import ChannelClosed, RemoteProtocolError
from p2pinfer.core.ids import ModelId
from p2pinfer.core.manifest import Manifest
from p2pinfer.core.messages import Denied, Refusal
from p2pinfer.core.storage import NO_PLAN, AskKept, AskPlan, KeptIs, PlanIs
from p2pinfer.core.stripes import StoragePlan
from p2pinfer.engine.store.store import Store
from peers.parts.protocol import Run, in_thread
from peers.parts.server import MANIFESTS_MAX
from peers.steps.messaging import RefusedError, receive, refuse, send
from transports.base import Channel, Transport

_log = logging.getLogger("p2pinfer.parts")

KEEP = "keep"

CHANNELS_MAX = 16
"""From all peers; the rest are told to come back."""

QUESTION_S_MAX = 30.0
"""For the next question to come, and an answer to be taken."""


class KeepServer:
    """Answers how a store's models are kept."""

    def __init__(self, transport: Transport, store: Store, run: Run = in_thread) -> None:
        self._transport, self._store, self._run = transport, store, run
        self._channels = 0
        self._manifests: dict[ModelId, Manifest] = {}
        self.lent: Callable[[ModelId], int] = lambda _: 0
        """Returns the bytes that this peer lends to a model; `peers.parts.keeper` sets it."""

    def listen(self) -> None:
        """Answer others from now on."""
        self._transport.handle(KEEP, self._serve)

    async def _serve(self, channel: Channel) -> None:
        if self._channels >= CHANNELS_MAX:
            await self._refuse(channel, Refusal.BUSY, "too many peers ask at once")
            return
        self._channels += 1
        try:
            with trio.fail_after(QUESTION_S_MAX) as patience:
                while True:
                    question: AskKept | AskPlan = await receive(channel, AskKept, AskPlan)
                    await self._answer(channel, question)
                    patience.deadline = trio.current_time() + QUESTION_S_MAX
        except ChannelClosed:
            pass  # it knows enough
        except RemoteProtocolError as error:
            _log.info("%s", error)
            await self._refuse(channel, Refusal.BAD_REQUEST, str(error))
        except trio.TooSlowError:
            await self._refuse(channel, Refusal.TOO_SLOW, "no question asked for too long")
        finally:
            self._channels -= 1

    async def _answer(self, channel: Channel, question: AskKept | AskPlan) -> None:
        plan = await self._run(self._plan, question.model)
        if isinstance(question, AskKept):
            lent = self.lent(question.model)
            await send(channel, KeptIs(question.number, plan.id if plan else NO_PLAN, lent))
        elif plan is None:
            await send(channel, Denied(question.number, Refusal.NOT_HELD))
        else:
            await send(channel, PlanIs(question.number, plan.encode()))

    def _plan(self, model: ModelId) -> StoragePlan | None:
        manifest = self._manifests.get(model) or self._store.manifest(model)
        if manifest is None:
            return None
        self._manifests[model] = manifest
        if len(self._manifests) > MANIFESTS_MAX:
            self._manifests = {model: manifest}
        return self._store.plan(manifest)

    async def _refuse(self, channel: Channel, code: Refusal, text: str) -> None:
        await refuse(channel, RefusedError.of(self._transport.peer_id, code, text))
