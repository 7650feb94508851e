"""The workload: which questions are asked when, and their outcomes."""

from collections.abc import Collection, Container, Iterator, Sequence
from contextlib import aclosing

import trio

from p2pinfer.core.errors import EngineError, NobodyServes, PeerError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Refusal
from p2pinfer.core.sampling import Sampling
from p2pinfer.core.trust import Audited, AuditVerdict
from peers.asking.session import Session
from peers.steps.messaging import RefusedError
from sim.machines import VirtualRequester
from sim.record import AskedQuestion
from sim.scenario import Scenario
from sim.world import World

GREEDY = Sampling(temperature=0.0)

LAST_PROMPT, LAST_ANSWER = 12, 4
"""Tokens of the questions that every requester must get answered once nothing is wrong any more."""

LAST_REQUESTERS_MAX = 20

BUSY_AGAIN_S = 1.0
"""Before a question is asked again that no peer had room for."""


def arrivals(world: World) -> list[float]:
    """Return when questions are asked, in seconds after the settling."""
    table, chance = world.scenario.requests, world.chance("arrivals")
    times = [at for at in table.burst_at_s for _ in range(table.burst)]
    at = 0.0
    while table.per_minute:
        at += chance.expovariate(table.per_minute / 60)
        if at >= world.scenario.duration_s:
            break
        times.append(at)
    return sorted(times)


async def ask_all(world: World) -> None:
    """Ask at the scenario's moments, and wait until the last answer is over."""
    chance, scenario = world.chance("questions"), world.scenario
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number, at in enumerate(arrivals(world)):
            await trio.sleep_until(start + at)
            requester = chance.choice(world.requesters)
            prompt, answer = _lengths(scenario, world.chance(f"question {number}"))
            question = AskedQuestion(number, requester.number, trio.current_time(), prompt, answer)
            world.record.questions.append(question)
            nursery.start_soon(ask, world, requester, question)


def _lengths(scenario: Scenario, chance: object) -> tuple[int, int]:
    """Draw the lengths of a question and its answer; both fit into the context."""
    table, context = scenario.requests, scenario.model.context
    prompt = max(1, round(table.prompt.draw(chance)))  # type: ignore[arg-type]
    answer = max(1, round(table.answer.draw(chance)))  # type: ignore[arg-type]
    prompt = min(prompt, context // 2)
    return prompt, min(answer, context - prompt)


async def ask_last(world: World) -> list[AskedQuestion]:
    """Have every requester ask one short question after all faults, one after another.

    Return those during which every layer was served by peers that the asker had not blamed.
    """
    fair = []
    for requester in world.requesters[:LAST_REQUESTERS_MAX]:
        number, at = len(world.record.questions), trio.current_time()
        question = AskedQuestion(
            number, requester.number, at, LAST_PROMPT, LAST_ANSWER, is_last=True
        )
        world.record.questions.append(question)
        was_covered = world.is_covered(requester.blamed)
        await ask(world, requester, question)
        if was_covered and world.is_covered(requester.blamed):
            fair.append(question)
    return fair


async def ask(world: World, requester: VirtualRequester, question: AskedQuestion) -> None:
    """Ask, retrying while nothing came, and record the outcome."""
    chance = world.chance(f"prompt {question.number}")
    prompt = [chance.randrange(1, world.model.vocabulary) for _ in range(question.prompt)]
    table, again = world.scenario.requests, True
    while again:
        question.attempts += 1
        again = question.attempts < table.attempts
        try:
            await _attempt(world, requester, question, prompt)
            break
        except NobodyServes as error:
            question.outcome, question.why = "nobody", str(error)
            break
        except (PeerError, EngineError) as error:
            question.outcome = "broken" if question.tokens else "refused"
            question.why = str(error)
            if question.tokens:
                break
            if is_busy(error) and trio.current_time() - question.at_s < table.patience_s:
                again = True
                await trio.sleep(BUSY_AGAIN_S)
    world.record.event(trio.current_time(), question.outcome, question.number, question.tokens)


def is_busy(error: Exception) -> bool:
    """Whether a peer refused only for lack of room."""
    return isinstance(error, RefusedError) and error.refused.code is Refusal.BUSY


async def _attempt(
    world: World, requester: VirtualRequester, question: AskedQuestion, prompt: Sequence[int]
) -> None:
    route = await requester.client.find_route(lambda _: None)
    peers = [hop.peer for hop in route]
    if requester.blamed.intersection(peers):
        text = f"requester {requester.number} asks a peer again that it has caught cheating"
        world.record.violation("trusted", trio.current_time(), text)
    question.stages = len(route)
    since_s, is_open, took_part = trio.current_time(), False, set(peers)
    try:
        async with requester.client.open_session(route) as session:
            is_open = True
            try:
                await _listen(world, session, question, prompt, took_part)
            finally:
                question.drafts_kept = session.drafts.kept
                question.drafts_dropped = session.drafts.dropped
            await _examine(world, requester, session, since_s, took_part)
    except PeerError as error:
        if is_open and world.is_settled_since(peers, since_s):
            text = f"question {question.number} broke off though its peers were there: {error}"
            world.record.violation("lost", trio.current_time(), text)
        raise


async def _listen(
    world: World,
    session: Session,
    question: AskedQuestion,
    prompt: Sequence[int],
    took_part: set[PeerId],
) -> None:
    """Take an answer token by token, check each against the right one; note the peers involved."""
    right: Iterator[int] = world.model.answer(prompt)
    last_s = trio.current_time()
    async with aclosing(session.generate(prompt, GREEDY, question.wanted)) as tokens:
        async for token in tokens:
            now = trio.current_time()
            question.tokens += 1
            if question.first_s is None:
                question.first_s = now - question.at_s
            else:
                question.longest_gap_s = max(question.longest_gap_s, now - last_s)
            last_s = now
            world.record.event(now, "token", question.number, token.id)
            took_part |= {hop.peer for hop in session.route}  # including replacements
            if token.id != next(right):
                question.outcome = "wrong"
                _judge_wrong(world, question, took_part)
                return
    question.done_s = trio.current_time() - question.at_s
    question.outcome = "answered"


def _judge_wrong(world: World, question: AskedQuestion, peers: Collection[PeerId]) -> None:
    """A wrong token is a violation unless a peer on the route lies."""
    if not any(peer in world.liars for peer in peers):
        text = f"token {question.tokens} of question {question.number} is not the model's"
        world.record.violation("tokens", trio.current_time(), text)


async def _examine(
    world: World,
    requester: VirtualRequester,
    session: Session,
    since_s: float,
    took_part: Collection[PeerId],
) -> None:
    """Check that receipts join up, have stages audited, and check the audits.

    Rows of a cheat that has left break the receipts of the honest peers on either side of it.
    """
    if session.evidence is None or not session.tokens:
        return
    record = world.record
    peers = [stage.hop.peer for stage in session.evidence.stages]  # including replacements
    trust = await requester.auditor.examine(session.evidence, len(session.tokens))
    world.used += session.evidence.work(len(session.tokens))
    requester.client.learn(trust)
    now = trio.current_time()
    record.event(now, "settled", trust.broken is None)
    if trust.broken is not None:
        record.events["breaks"] += 1
        is_strict = not world.is_mixed and world.is_settled_since(peers, since_s)
        suspects = {*peers, *took_part, *trust.broken.peers}
        if is_strict and not any(peer in world.liars for peer in suspects):
            text = f"the receipts of honest peers do not join up: {trust.broken}"
            record.violation("continuity", now, text)
    for audited in trust.audits:
        record.event(now, f"audit: {audited.verdict}", audited.first)
        record.events["audits"] += 1
        judge_audit(world, requester, audited, now)


def _is_framed(audited: Audited, liars: Container[PeerId]) -> bool:
    """Whether most peers that replayed the layers are cheats, not counting a blamed auditor."""
    lies = [peer in liars for peer in audited.by if peer != audited.blamed]
    return 2 * sum(lies) > len(lies)


def judge_audit(world: World, requester: VirtualRequester, audited: Audited, now: float) -> None:
    """No honest peer is blamed; one that always lies is caught wherever an honest peer looks."""
    liars, blamed = world.liars, audited.blamed
    if blamed is not None and audited.verdict is AuditVerdict.CHEATED:
        requester.blamed.add(blamed)
    if blamed in liars:
        world.record.events["caught"] += 1
        world.record.caught_s.append(now)
    elif blamed is not None and _is_framed(audited, liars):
        world.record.events["framed"] += 1  # two identical lies outvote one: a known limit
    elif blamed is not None:
        world.record.violation("blamed", now, f"an honest peer is blamed: {audited.line()}")
    is_fair = bool(audited.by) and not any(peer in liars for peer in audited.by)
    world.record.events["proved"] += audited.verdict is AuditVerdict.PROVED
    world.record.events["caught by rows"] += audited.is_by_steps
    is_passed = audited.verdict in (AuditVerdict.SAME, AuditVerdict.PROVED)
    if audited.peer in liars and is_fair and is_passed:
        world.record.events["overlooked"] += 1
        if world.always_lies(audited.peer):
            text = f"honest peers ran a cheat's layers again and saw nothing: {audited.line()}"
            world.record.violation("overlooked", now, text)
