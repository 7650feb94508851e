"""Admission: no place is promised twice, all are answered once, and none waits for ever."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pinfer.core.ids import PeerId, SessionId
from scheduler.admission import (
    RETRY_MS_MAX,
    RETRY_MS_MIN,
    WAIT_S_MAX,
    WAITED_S_PER_SESSION,
    WAITING_MAX,
    WITHOUT_CREDIT_EVERY,
    Admission,
    AdmissionAnswer,
    AdmissionVerdict,
    Ask,
)
from tests.support.adverts import peer_id

SESSIONS, CELLS = 4, 100


class Stage(RuleBasedStateMachine):
    """A stage whose sessions come and go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(SESSIONS, CELLS)
        self.now_s = 0.0
        self.asks: dict[SessionId, Ask] = {}
        self.held: set[SessionId] = set()
        self.waiting: set[SessionId] = set()

    def take(self, answers: list[AdmissionAnswer]) -> None:
        """Check the answers: each session waits, then is admitted or refused."""
        for answer in answers:
            known = answer.session in self.waiting
            assert answer.session not in self.held
            self.waiting.discard(answer.session)
            if answer.verdict is AdmissionVerdict.ADMITTED:
                self.held.add(answer.session)
            elif answer.verdict is AdmissionVerdict.WAITING:
                assert not known
                self.waiting.add(answer.session)
            elif self.asks[answer.session].cells > CELLS:
                assert answer.retry_ms == 0
            else:
                assert RETRY_MS_MIN <= answer.retry_ms <= RETRY_MS_MAX

    @rule(who=st.sampled_from("abc"), cells=st.integers(1, CELLS + 10), credit=st.integers(0, 2))
    def ask(self, who: str, cells: int, credit: int) -> None:
        """A requester wants a session, and is answered."""
        session = SessionId(len(self.asks).to_bytes(16, "big"))
        self.asks[session] = Ask(session, peer_id(who), cells, self.now_s, credit)
        answers = self.admission.ask(self.asks[session])
        assert session in {answer.session for answer in answers}
        self.take(answers)

    @rule(after_s=st.floats(0, WAIT_S_MAX))
    def wait(self, after_s: float) -> None:
        """Time passes, and no session waits longer than it should."""
        self.now_s += after_s
        self.take(self.admission.refuse_late(self.now_s))
        assert all(self.now_s - self.asks[one].at_s < WAIT_S_MAX for one in self.waiting)

    @precondition(lambda self: self.held or self.waiting)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """A session ends, or gives up waiting."""
        session = data.draw(st.sampled_from(sorted(self.held | self.waiting)))
        self.held.discard(session)
        self.waiting.discard(session)
        self.take(self.admission.release(session, self.now_s))

    @invariant()
    def nothing_is_promised_twice(self) -> None:
        """Admitted sessions fit, and the queue is bounded."""
        cells = sum(self.asks[session].cells for session in self.held)
        assert len(self.held) <= SESSIONS
        assert cells == CELLS - self.admission.cells_free
        assert 0 <= self.admission.sessions_free <= SESSIONS - len(self.held)
        assert self.admission.waiting == len(self.waiting) <= WAITING_MAX

    @invariant()
    def no_session_waits_beside_a_free_place(self) -> None:
        """If some wait, then the first of them does not fit."""
        if self.waiting and len(self.held) < SESSIONS:
            assert max(self.asks[one].cells for one in self.waiting) > self.admission.cells_free


TestStage = Stage.TestCase
TestStage.settings = settings(max_examples=60, stateful_step_count=40)


def ask(n: int, who: str, at_s: float = 0.0, credit: int = 0) -> Ask:
    """Shorten."""
    return Ask(SessionId(n.to_bytes(16, "big")), PeerId(who), 1, at_s, credit)


def admitted(answers: list[AdmissionAnswer]) -> list[int]:
    """Return which were admitted."""
    found = [a.session for a in answers if a.verdict is AdmissionVerdict.ADMITTED]
    return [int.from_bytes(session, "big") for session in found]


def test_a_greedy_requester_does_not_crowd_out_others() -> None:
    """The requester with fewer sessions is next, however early the other asked."""
    stage = Admission(4, 4)
    for n in range(12):
        stage.ask(ask(n, "greedy", at_s=n / 100))
    stage.ask(ask(20, "modest", at_s=0.2))
    assert admitted(stage.release(ask(0, "greedy").session, 0.3)) == [20]
    assert admitted(stage.release(ask(1, "greedy").session, 0.3)) == [4]


def test_waiting_counts_as_holding_fewer() -> None:
    """A requester with a place goes before one with none, if it has waited for long enough."""
    for newcomer_at_s, order in [(0.9, [3, 2]), (1.1, [2, 3])]:
        stage = Admission(2, 2)
        stage.ask(ask(0, "holder"))
        stage.ask(ask(1, "x"))
        stage.ask(ask(2, "holder", at_s=0.0))
        stage.ask(ask(3, "newcomer", at_s=newcomer_at_s * WAITED_S_PER_SESSION))
        found = admitted(stage.release(ask(1, "x").session, 2.0))
        found += admitted(stage.release(ask(found[0], "").session, 2.0))
        assert found == order


def test_a_requester_with_credit_goes_first() -> None:
    """As if it held that many fewer, or had asked that much earlier."""
    for credit, order in [(0, [1, 2]), (1, [1, 2]), (2, [2, 1])]:
        stage = Admission(1, 1)
        for asked in (ask(0, "x"), ask(1, "y", at_s=0.1), ask(2, "z", at_s=1.5, credit=credit)):
            stage.ask(asked)
        found = admitted(stage.release(ask(0, "x").session, 2.0))
        found += admitted(stage.release(ask(found[0], "").session, 2.0))
        assert found == order


@given(st.lists(st.tuples(st.floats(0, 0.2), st.integers(0, 5)), min_size=9, max_size=9))
def test_credit_does_not_crowd_others_out(crowd: list[tuple[float, int]]) -> None:
    """However many with credit keep coming, the first without gets one of the next few places."""
    stage, now_s, held = Admission(1, 1), 0.0, 0
    stage.ask(ask(0, "holder"))
    stage.ask(ask(1, "modest"))
    places = 0
    for number, (wait_s, count) in enumerate(crowd, start=1):
        now_s += wait_s
        for other in range(count):
            n = 100 * number + other
            answers = stage.ask(ask(n, f"rich {n}", at_s=now_s, credit=2))
            assert not any(a.session == ask(1, "").session for a in answers)  # nor is it sent away
        (held,) = admitted(stage.release(ask(held, "").session, now_s))
        places += 1
        if held == 1:
            break
    assert places <= WITHOUT_CREDIT_EVERY


def test_a_queue_that_is_full_refuses_the_last() -> None:
    """The last in it gives way to a better one; each refusal says when to come back."""
    stage = Admission(1, 1)
    for n in range(1 + WAITING_MAX):
        stage.ask(ask(n, "x"))
    (refused,) = stage.ask(ask(50, "x", at_s=0.1))
    assert (refused.verdict, refused.retry_ms) == (AdmissionVerdict.REFUSED, RETRY_MS_MAX)
    verdicts = Counter(a.verdict for a in stage.ask(ask(51, "y", at_s=0.1)))
    assert verdicts == {AdmissionVerdict.REFUSED: 1, AdmissionVerdict.WAITING: 1}


def test_refusals_follow_how_long_sessions_last() -> None:
    """Where sessions are short, the next place is soon free."""
    stage = Admission(1, 1)
    for n in range(40):
        stage.ask(ask(n, "x", at_s=float(n)))
        stage.release(ask(n, "x").session, n + 0.5)
    stage.ask(ask(100, "x", at_s=50.0))
    stage.ask(ask(101, "y", at_s=50.0))
    (late,) = stage.refuse_late(50.0 + WAIT_S_MAX)
    assert 400 < late.retry_ms < 1000


def test_usual_sessions_take_none_of_the_shared_cells() -> None:
    """They come in while a long one waits for cells, and it comes in once those are free."""
    stage = Admission(3, 100, usual_cells=10)

    def verdicts(number: int, cells: int) -> list[AdmissionVerdict]:
        session = SessionId(number.to_bytes(16, "big"))
        return [a.verdict for a in stage.ask(Ask(session, peer_id("a"), cells, float(number)))]

    assert verdicts(0, 101) == [AdmissionVerdict.REFUSED]
    assert verdicts(1, 60) == [AdmissionVerdict.ADMITTED]
    assert stage.sessions_free == 2
    assert verdicts(2, 60) == [AdmissionVerdict.WAITING]
    assert verdicts(3, 10) == [AdmissionVerdict.ADMITTED]
    assert (stage.cells_free, stage.waiting, stage.sessions_free) == (40, 1, 1)
    (freed,) = stage.release(SessionId((1).to_bytes(16, "big")), 4.0)
    assert freed.verdict is AdmissionVerdict.ADMITTED
    assert stage.cells_free == 40
