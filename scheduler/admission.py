"""Which sessions a stage takes, which wait, and when those that it refuses should come back.

KV cells are reserved before a session is accepted, so nobody is accepted and then fails for want of
room. Who does not fit waits for a moment in a bounded queue. A place that becomes free goes to the
requester who holds the fewest, where who has waited counts as holding ever fewer; so nobody waits
for ever. Who serves, too, has credit, and counts as holding fewer; but now and then a place goes by
the order without, so that credit crowds nobody out. The clock is an argument, in seconds.
"""

from collections import Counter
from enum import Enum
from math import ceil

from attrs import frozen

from p2pinfer.core.ids import PeerId, SessionId

WAITING_MAX = 16
"""Sessions that wait at once: more would not be served before they give up."""

WAIT_S_MAX = 3.0
"""A requester waits for a whole chain to open; behind this it is better told to look elsewhere."""

WAITED_S_PER_SESSION = 1.0
"""Waiting for so long counts as holding one session fewer."""

RETRY_MS_MIN = 250
RETRY_MS_MAX = 60_000
"""Beyond a minute, when a place will be free is a guess."""

WITHOUT_CREDIT_EVERY = 4
"""Of places that several wait for, one in so many goes to whom it would if nobody had credit."""

SESSION_S_DEFAULT = 20.0
"""How long a session holds its place, until some have ended: a few answers."""

NEWEST_WEIGHT = 0.2
"""Of the session that ended last in the smoothed duration."""


class AdmissionVerdict(Enum):
    """What becomes of a session that was asked for."""

    ADMITTED = "admitted"
    WAITING = "waiting"
    REFUSED = "refused"


@frozen
class AdmissionAnswer:
    """What to tell the one who asked."""

    session: SessionId
    verdict: AdmissionVerdict
    retry_ms: int = 0
    """When to come back, if refused; 0 says that it can never fit."""


@frozen
class Ask:
    """A session that somebody wants."""

    session: SessionId
    requester: PeerId
    """Or on whose account it asks."""
    cells: int
    """Positions to reserve."""
    at_s: float
    credit: int = 0
    """Counts as holding so many sessions fewer."""


class Admission:
    """Who holds the places of a stage, and who waits for one.

    What comes to a session is told in the answers that every call returns; the answers may be about
    other sessions than the one that the call is about.
    """

    def __init__(self, sessions_max: int, cells_max: int) -> None:
        self.sessions_max, self.cells_max = sessions_max, cells_max
        self._held: dict[SessionId, Ask] = {}
        self._since_s: dict[SessionId, float] = {}
        self._waiting: list[Ask] = []
        self._session_s = SESSION_S_DEFAULT
        self._contested = 0  # places given so far that several waited for

    @property
    def sessions_free(self) -> int:
        """Sessions that could be admitted now, if they were of an equal share of the cells each."""
        share = max(self.cells_max // max(self.sessions_max, 1), 1)
        return min(self.sessions_max - len(self._held), self.cells_free // share)

    @property
    def cells_free(self) -> int:
        """Positions that are not reserved."""
        return self.cells_max - sum(ask.cells for ask in self._held.values())

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def ask(self, ask: Ask) -> list[AdmissionAnswer]:
        """Admit a session, let it wait, or refuse it or one that waits and comes after it."""
        if ask.cells > self.cells_max or not self.sessions_max:
            return [AdmissionAnswer(ask.session, AdmissionVerdict.REFUSED)]
        if ask.session in self._held or any(ask.session == each.session for each in self._waiting):
            return [AdmissionAnswer(ask.session, AdmissionVerdict.REFUSED, RETRY_MS_MIN)]
        self._waiting.append(ask)
        answers = self._fill(ask.at_s)
        if len(self._waiting) > WAITING_MAX:
            first = min(self._waiting, key=self._order)
            last = max((each for each in self._waiting if each is not first), key=self._credited)
            retry_ms = self._retry_ms(WAITING_MAX)
            self._waiting.remove(last)
            answers.append(AdmissionAnswer(last.session, AdmissionVerdict.REFUSED, retry_ms))
        if ask in self._waiting:
            answers.append(AdmissionAnswer(ask.session, AdmissionVerdict.WAITING))
        return answers

    def release(self, session: SessionId, now_s: float) -> list[AdmissionAnswer]:
        """Free what a session held, or its place in the queue; unknown ones are nothing."""
        self._waiting = [ask for ask in self._waiting if ask.session != session]
        if self._held.pop(session, None):
            lasted_s = max(now_s - self._since_s.pop(session), 0.0)
            self._session_s += NEWEST_WEIGHT * (lasted_s - self._session_s)
        return self._fill(now_s)

    def refuse_late(self, now_s: float) -> list[AdmissionAnswer]:
        """Refuse those who have waited for too long."""
        late = [ask for ask in self._waiting if now_s - ask.at_s >= WAIT_S_MAX]
        answers = [
            AdmissionAnswer(
                ask.session, AdmissionVerdict.REFUSED, self._retry_ms(self._waiting.index(ask))
            )
            for ask in late
        ]
        self._waiting = [ask for ask in self._waiting if ask not in late]
        return answers + self._fill(now_s)

    def _fill(self, now_s: float) -> list[AdmissionAnswer]:
        """Admit those who wait, in their order, until the next one does not fit."""
        answers = []
        while self._waiting:
            is_without = self._contested % WITHOUT_CREDIT_EVERY == WITHOUT_CREDIT_EVERY - 1
            ask = min(self._waiting, key=self._order if is_without else self._credited)
            if len(self._held) >= self.sessions_max or ask.cells > self.cells_free:
                break  # a smaller one behind it does not pass: else the large ones never fit
            self._contested += len(self._waiting) > 1
            self._waiting.remove(ask)
            self._held[ask.session] = ask
            self._since_s[ask.session] = now_s
            answers.append(AdmissionAnswer(ask.session, AdmissionVerdict.ADMITTED))
        return answers

    def _credited(self, ask: Ask) -> tuple[float, float]:
        """Return what decides who is next; the smallest is."""
        counts, at_s = self._order(ask)
        return counts - ask.credit, at_s

    def _order(self, ask: Ask) -> tuple[float, float]:
        """Return what would decide it if nobody had credit."""
        holds = Counter(each.requester for each in self._held.values())[ask.requester]
        return holds + ask.at_s / WAITED_S_PER_SESSION, ask.at_s

    def _retry_ms(self, before: int) -> int:
        """Return when a place should be free for one with so many before it."""
        free_s = self._session_s * (before + 1) / self.sessions_max
        return min(max(ceil(1000 * free_s), RETRY_MS_MIN), RETRY_MS_MAX)
