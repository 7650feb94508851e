"""The door of a stage: sessions are admitted, held for a moment, or refused with a retry time."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio

from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.ids import SessionId
from scheduler.admission import (
    RETRY_MS_MIN,
    WAIT_S_MAX,
    Admission,
    AdmissionAnswer,
    AdmissionVerdict,
    Ask,
)


class Shut(P2pinferError):
    """There is no place; ``retry_ms`` says when one should be free, 0 means never."""

    def __init__(self, retry_ms: int) -> None:
        full = f"all sessions are taken; try again in {retry_ms / 1000:.1f} s"
        super().__init__(full if retry_ms else "the request exceeds this peer's capacity")
        self.retry_ms = retry_ms


class Door:
    """Admits sessions as ``scheduler.admission`` decides."""

    def __init__(self, sessions_max: int, cells_max: int, usual_cells: int = 0) -> None:
        self.admission = Admission(sessions_max, cells_max, usual_cells)
        self._answers: dict[SessionId, AdmissionAnswer] = {}
        self._knocking: dict[SessionId, trio.Event] = {}

    @asynccontextmanager
    async def admit(self, ask: Ask) -> AsyncIterator[None]:
        """Hold a session's place while the block lasts.

        Raises:
            Shut: there is none.
        """
        if ask.session in self._knocking:
            raise Shut(0)
        self._knocking[ask.session] = trio.Event()
        try:
            self._tell(self.admission.ask(ask))
            answer = await self._answer(ask.session)
            if answer.verdict is not AdmissionVerdict.ADMITTED:
                late = answer.verdict is AdmissionVerdict.WAITING
                raise Shut(RETRY_MS_MIN if late else answer.retry_ms)
            yield
        finally:
            del self._knocking[ask.session]
            self._answers.pop(ask.session, None)
            self._tell(self.admission.release(ask.session, trio.current_time()))

    async def _answer(self, session: SessionId) -> AdmissionAnswer:
        """Wait for the final answer."""
        with trio.move_on_after(WAIT_S_MAX):
            while (answer := self._answers[session]).verdict is AdmissionVerdict.WAITING:
                self._knocking[session] = trio.Event()
                await self._knocking[session].wait()
        if answer.verdict is AdmissionVerdict.WAITING:
            self._tell(self.admission.refuse_late(trio.current_time()))
            answer = self._answers[session]
        return answer

    def _tell(self, answers: Iterable[AdmissionAnswer]) -> None:
        for answer in answers:
            if answer.session in self._knocking:
                self._answers[answer.session] = answer
                self._knocking[answer.session].set()
