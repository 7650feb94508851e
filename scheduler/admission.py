"""Which sessions a stage takes, which wait, and when those that it refuses should come back.

KV cells are reserved before a session is accepted, so no accepted session fails for want of
room. A session that does not fit waits for a moment in a bounded queue. A place that becomes free
goes to the requester with the fewest, where one that has waited counts as having ever fewer; so
none waits for ever. A requester that also serves has credit, and counts as having fewer; but every
few places one is given without regard to credit, so that credit cannot crowd others out. For those
places all the time counts since a requester asked first, however often it was refused since. The
clock is an argument, in seconds.
"""

from collections import Counter
from enum import Enum
from math import ceil

from attrs import frozen

from p2pinfer.core.ids import PeerId, SessionId

WAITING_MAX = 16
"""Sessions that wait at once: more would not be served before they give up."""

WAIT_S_MAX = 3.0
"""A requester waits for a whole chain to open; after this long it had better look elsewhere."""

WAITED_S_PER_SESSION = 1.0
"""Waiting this long counts as holding one session fewer."""

RETRY_MS_MIN = 250
RETRY_MS_MAX = 60_000
"""Beyond a minute, when a place will be free is a guess."""

WITHOUT_CREDIT_EVERY = 4
"""Of contested places, one in this many goes to the requester that is next without credit."""

REFUSED_MAX = 1024
"""Requesters whose first ask is remembered although they were refused; of more, those that came
last start afresh each time."""

FORGOTTEN_S = 2 * RETRY_MS_MAX / 1000
"""Who does not come back for so long has gone elsewhere."""

SESSION_S_DEFAULT = 20.0
"""How long a session holds its place, assumed until some have ended: a few answers."""

NEWEST_WEIGHT = 0.2
"""Weight of the session that ended last in the smoothed duration."""


class AdmissionVerdict(Enum):
    """What to do with a requested session."""

    ADMITTED = "admitted"
    WAITING = "waiting"
    REFUSED = "refused"


@frozen
class AdmissionAnswer:
    """What to answer the requester."""

    session: SessionId
    verdict: AdmissionVerdict
    retry_ms: int = 0
    """When to come back, if refused; 0 means that it can never fit."""


@frozen
class Ask:
    """A requested session."""

    session: SessionId
    requester: PeerId
    """Or the peer on whose account it asks."""
    cells: int
    """Positions to reserve."""
    at_s: float
    credit: int = 0
    """Counts as holding this many sessions fewer."""


class Admission:
    """The sessions that hold a stage's places, and those that wait for one.

    Every call returns decisions as answers; they may concern other sessions than the one that the
    call is about.
    """

    def __init__(self, sessions_max: int, cells_max: int, usual_cells: int = 0) -> None:
        """Admit some sessions at once.

        Args:
            sessions_max: how many.
            cells_max: positions that they share.
            usual_cells: a session of no more has its own, and takes none of these.
        """
        self.sessions_max, self.cells_max = sessions_max, cells_max
        self._usual_cells = usual_cells
        self._held: dict[SessionId, Ask] = {}
        self._since_s: dict[SessionId, float] = {}
        self._waiting: list[Ask] = []
        self._refused: dict[PeerId, tuple[float, float]] = {}
        """When each requester without a place asked first, and when it did last."""
        self._session_s = SESSION_S_DEFAULT
        self._contested = 0  # places given so far that several sessions waited for

    @property
    def sessions_free(self) -> int:
        """Sessions that could be admitted now, if each took what is usual, or an equal share."""
        if self._usual_cells:
            return self.sessions_max - len(self._held)
        share = max(self.cells_max // max(self.sessions_max, 1), 1)
        return min(self.sessions_max - len(self._held), self.cells_free // share)

    @property
    def cells_free(self) -> int:
        """Positions that are not reserved."""
        return self.cells_max - sum(map(self._shared, self._held.values()))

    @property
    def waiting(self) -> int:
        """How many sessions wait."""
        return len(self._waiting)

    def ask(self, ask: Ask) -> list[AdmissionAnswer]:
        """Admit a session, queue it, or refuse it or a queued one that ranks after it."""
        if self._shared(ask) > self.cells_max or not self.sessions_max:
            return [AdmissionAnswer(ask.session, AdmissionVerdict.REFUSED)]
        if ask.session in self._held or any(ask.session == each.session for each in self._waiting):
            return [AdmissionAnswer(ask.session, AdmissionVerdict.REFUSED, RETRY_MS_MIN)]
        self._remember(ask)
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
        """Free a session's place, or its place in the queue; unknown sessions are ignored."""
        self._waiting = [ask for ask in self._waiting if ask.session != session]
        if self._held.pop(session, None):
            lasted_s = max(now_s - self._since_s.pop(session), 0.0)
            self._session_s += NEWEST_WEIGHT * (lasted_s - self._session_s)
        return self._fill(now_s)

    def refuse_late(self, now_s: float) -> list[AdmissionAnswer]:
        """Refuse sessions that have waited for too long."""
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
        """Admit waiting sessions, in their order, until the next one does not fit."""
        answers = []
        while self._waiting:
            is_without = self._contested % WITHOUT_CREDIT_EVERY == WITHOUT_CREDIT_EVERY - 1
            if len(self._held) >= self.sessions_max:
                break
            key = self._order if is_without else self._credited
            ask = min(self._waiting, key=key)
            if self._shared(ask) > self.cells_free:
                # No smaller one may overtake it, else large ones would never fit; but one that
                # takes none of the shared cells does not delay it.
                usual = [each for each in self._waiting if not self._shared(each)]
                if not usual:
                    break
                ask = min(usual, key=key)
            self._contested += len(self._waiting) > 1
            self._waiting.remove(ask)
            self._held[ask.session] = ask
            self._refused.pop(ask.requester, None)
            self._since_s[ask.session] = now_s
            answers.append(AdmissionAnswer(ask.session, AdmissionVerdict.ADMITTED))
        return answers

    def _shared(self, ask: Ask) -> int:
        """Return how many of the shared cells a session takes."""
        return ask.cells if ask.cells > self._usual_cells else 0

    def _remember(self, ask: Ask) -> None:
        """Note since when a requester asks."""
        first_s, last_s = self._refused.pop(ask.requester, (ask.at_s, ask.at_s))
        if ask.at_s - last_s >= FORGOTTEN_S:
            first_s = ask.at_s
        while self._refused:  # in the order of the last asks
            oldest, (_, asked_s) = next(iter(self._refused.items()))
            if ask.at_s - asked_s < FORGOTTEN_S:
                break
            del self._refused[oldest]
        if len(self._refused) < REFUSED_MAX:
            self._refused[ask.requester] = first_s, ask.at_s

    def _credited(self, ask: Ask) -> tuple[float, float]:
        """Return the sort key that decides which is next; the smallest is."""
        return self._holds(ask) + ask.at_s / WAITED_S_PER_SESSION - ask.credit, ask.at_s

    def _order(self, ask: Ask) -> tuple[float, float]:
        """Return the sort key without credit."""
        first_s, _ = self._refused.get(ask.requester, (ask.at_s, ask.at_s))
        return self._holds(ask) + first_s / WAITED_S_PER_SESSION, ask.at_s

    def _holds(self, ask: Ask) -> int:
        return Counter(each.requester for each in self._held.values())[ask.requester]

    def _retry_ms(self, before: int) -> int:
        """Return when a place should be free for a session with ``before`` others ahead of it."""
        free_s = self._session_s * (before + 1) / self.sessions_max
        return min(max(ceil(1000 * free_s), RETRY_MS_MIN), RETRY_MS_MAX)
