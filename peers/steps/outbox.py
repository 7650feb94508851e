"""Sending a session's rows on; they are kept, so that a replacement peer can have them too."""

import trio

from p2pinfer.core.errors import PeerUnavailable
from p2pinfer.core.messages import Step
from p2pinfer.core.wire import encode
from peers.steps.history import History
from transports.base import Channel


class Outbox:
    """Sends a session's steps to the next stage, which may be replaced.

    A step goes out in the same call in which it comes, if the channel takes it at once: that saves
    one pass of the scheduler per boundary and token. Otherwise ``run`` sends it, from the history.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.channel: Channel | None = None
        """Where steps are sent now."""
        self._sent = 0  # the number of the last step that this channel took, or does not need
        self._known = 0
        self._is_level = False  # the channel has taken all
        self._todo, self._moved = trio.Event(), trio.Event()

    @property
    def unsent(self) -> int:
        """How many steps wait to be sent."""
        return 0 if self._is_level else self.history.count_after(self._sent)

    def put(self, step: Step) -> None:
        """Send a step if there is a channel to send it to, and keep it: in this order, to be fast.

        One that was sent before is kept alone: a replacement before us computes everything again.
        """
        if self._is_level and step.number > self._sent:
            assert self.channel
            self._is_level = self.channel.send_now(encode(step))
            if self._is_level:
                self._sent = step.number
        self.history.add(
            step.number, step.position, step.count, step.regime, step.decoding_us, step.rows
        )
        if not self._is_level:
            self._todo.set()

    def can_begin(self, sent: int) -> bool:
        """Whether everything after the step of that number is still kept."""
        return sent >= self.history.forgotten

    def link(self, channel: Channel, sent: int, known: int) -> None:
        """Send to this channel from now on, beginning after the step numbered ``sent``.

        Steps up to ``known`` may be joined: their answers are not awaited.
        """
        self.unlink()
        self.channel, self._sent, self._known = channel, sent, known
        self._todo.set()

    def unlink(self) -> None:
        """Stop sending for now."""
        if self.channel:
            self.channel.abort()
        self.channel, self._is_level = None, False

    async def wait_moved(self) -> None:
        """Wait until fewer steps are unsent."""
        self._moved = trio.Event()
        await self._moved.wait()

    def wake(self) -> None:
        """Let ``wait_moved`` return: something else has changed."""
        self._moved.set()

    async def run(self) -> None:
        """Send what a channel did not take at once, and resend to a new channel what it lacks.

        After a failure nothing more is sent to a channel; the task that watches it reports it.
        """
        while True:
            await self._todo.wait()
            self._todo = trio.Event()
            channel = self.channel
            try:
                while channel and channel is self.channel and not self._is_level:
                    await self._send_next(channel)
            except PeerUnavailable:
                if channel is self.channel:
                    self.unlink()

    async def _send_next(self, channel: Channel) -> None:
        kept = self.history.following(self._sent, self._known)
        if kept is None:
            self._is_level = True
            self.wake()
            return
        number, position, count, regime, times, rows = kept
        assert rows is not None
        await channel.send(encode(Step(number, position, count, regime, rows, times)))
        if channel is self.channel:
            self._sent = number
            self.wake()
