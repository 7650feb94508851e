"""Sending a session's computed rows on, in the order of its steps."""

from collections import deque
from functools import partial

import numpy as np
import trio

from p2pinfer.core.errors import EngineError, PeerError, PeerUnavailable
from p2pinfer.core.ids import PeerId
from p2pinfer.core.limits import STEPS_IN_FLIGHT_MAX
from p2pinfer.core.messages import Dtype, Refusal, Step
from p2pinfer.core.wire import encode
from p2pinfer.engine.base import Decoded, Done
from peers.talk import RefusedError
from transports.base import Channel

NUMPY_TYPES = {Dtype.F32: "<f4", Dtype.F16: "<f2"}


class Onward:
    """Sends what the engine computed on to the next stage, or to the requester.

    A result goes out in the very call in which it comes from the engine, if the channel takes it
    at once: one pass of the scheduler less per boundary and token. Otherwise ``flush`` sends it.
    """

    def __init__(self, peer: PeerId, output: Channel, dtype: Dtype) -> None:
        self._peer, self._output, self._dtype = peer, output, dtype
        self._steps = 0  # given to the engine and not yet sent
        self._unsent: deque[bytes] = deque()  # no more than those
        self._failure: PeerError | None = None
        self._todo = trio.Event()
        self._room = trio.Event()

    def expect(self, step: Step) -> Done:
        """Count a step that the engine is given; return what is to be called when it is done."""
        self._steps += 1
        return partial(self._done, step)

    async def wait_room(self) -> None:
        """Wait while ``STEPS_IN_FLIGHT_MAX`` steps are under way."""
        while self._steps >= STEPS_IN_FLIGHT_MAX:
            self._room = trio.Event()
            await self._room.wait()

    def _done(self, step: Step, outcome: Decoded | EngineError) -> None:
        if isinstance(outcome, EngineError):
            self._fail(str(outcome))
            return
        rows = outcome.rows
        if self._dtype is Dtype.F16:
            with np.errstate(over="ignore"):
                halves = np.frombuffer(rows, "<f4").astype("<f2")
            if not np.isfinite(halves).all():  # else the next stage would blame this one
                self._fail("the rows are too large for float16")
                return
            rows = halves.tobytes()
        times = (*step.decoding_us, outcome.decoding_us)
        message = encode(Step(step.number, step.position, step.count, step.wide, rows, times))
        if not self._unsent and self._output.send_now(message):
            self._sent()
        else:
            self._unsent.append(message)
            self._todo.set()

    def _fail(self, text: str) -> None:
        self._failure = RefusedError.of(self._peer, Refusal.ENGINE_FAILED, text)
        self._todo.set()

    def _sent(self) -> None:
        self._steps -= 1
        self._room.set()

    async def flush(self) -> None:
        """Send what the channel did not take at once, for ever; raise what went wrong.

        Raises:
            RefusedError: the engine failed, or the next peer is lost.
        """
        while True:
            await self._todo.wait()
            self._todo = trio.Event()
            if self._failure:
                raise self._failure
            while self._unsent:
                try:
                    await self._output.send(self._unsent[0])
                except PeerUnavailable as error:
                    text = str(error)
                    raise RefusedError.of(self._output.remote, Refusal.PEER_LOST, text) from error
                self._unsent.popleft()
                self._sent()
