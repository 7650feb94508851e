"""Fraud proofs among peers: only peers that can check them act on them and pass them on."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.double_statement import DoubleStatement
from p2pinfer.core.errors import PeerUnavailable
from p2pinfer.core.evidence import Case as Told
from p2pinfer.core.evidence import Cases, ProofIs, WantProof
from p2pinfer.core.fraud import FraudProof, to_sign
from p2pinfer.core.ids import PeerId
from p2pinfer.core.receipts import SIGNED_AS, Receipt, Signed
from p2pinfer.core.statement import Statement
from p2pinfer.core.witness import runs_of
from peers.audits import frauds as module
from peers.audits.frauds import FRAUDS, Frauds, Judges, judge
from peers.audits.replay import OpenReplay, by_engine
from peers.parts.protocol import in_place
from peers.steps.messaging import receive, send
from tests.support.audits import BOUNDS, FIRST, OWN, SECOND, THIRD, Case, at_70, case, cheat
from tests.support.directories import OTHER, advertisement, identity
from tests.support.fake_engines import FakeStage
from tests.support.swarm import CONTEXT, KEYS, PROMPT, answer
from transports.base import Transport
from transports.blocklist import GuardedTransport
from transports.identity import Identity

ACCUSED = KEYS[2]
LAYERS = BOUNDS[1], BOUNDS[2]


@dataclass
class Node:
    """A peer that compares cases."""

    transport: Transport
    frauds: Frauds
    discredited: list[PeerId] = field(default_factory=list)


def by_own_layers(_: Told) -> Sequence[OpenReplay]:
    """Judge as a holder of the layers that all cases here are about."""
    return [by_engine(FakeStage(*LAYERS, context=CONTEXT), LAYERS[1])]


def by_nobody(_: Told) -> Sequence[OpenReplay]:
    """Judge as a peer that holds no layers, and knows no holder."""
    return []


def offers(*keys: Identity) -> list[Advertisement]:
    """Return some peers' advertisements."""
    return [advertisement(key, layers=(LAYERS[0], LAYERS[1])) for key in keys]


@asynccontextmanager
async def node(
    found: Case, key: Identity, judges: Judges, *known: Identity, tells: bool = True
) -> AsyncIterator[Node]:
    """Run a peer that knows some others, in the network of a chain."""
    async with AsyncExitStack() as stack:
        transport: Transport = found.made.me
        if key.peer_id != transport.peer_id:
            transport = await stack.enter_async_context(found.made.network.join(key.peer_id))
        discredited: list[PeerId] = []
        frauds = Frauds(
            transport,
            offers(ACCUSED)[0].model,
            key.sign,
            lambda: offers(ACCUSED, *known),
            judges,
            Random(1),
            lambda *_: None,
            discredited.append,
            in_place,
            tells=tells,
        )
        frauds.listen()
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(frauds.run)
        yield Node(transport, frauds, discredited)
        nursery.cancel_scope.cancel()


async def proof_of(found: Case, monkeypatch: pytest.MonkeyPatch) -> FraudProof:
    """Have the middle stage cheat, and return the proof from the requester's audit."""
    cheat(found.made.engines[1], at_70, monkeypatch)
    await found.examine()
    (proof,) = found.proofs
    assert proof.accused == ACCUSED.peer_id
    return proof


async def honest_proof(found: Case) -> FraudProof:
    """Return an honest stage's receipt with its own rows: well-formed, and false."""
    async with found.made.open() as session:
        await answer(session, PROMPT)
        evidence = session.evidence
        assert evidence
        assert await evidence.settle(len(session.tokens)) is None
        signed = evidence.stages[1].signed(32)[32]
        opened = await evidence.inputs(1, 0, 32)
        regimes = runs_of(opened.regimes)
        return FraudProof(
            evidence.terms, ACCUSED.peer_id, LAYERS[1], (signed,), regimes, opened.rows
        )


A, B, C = (identity(number) for number in (101, 102, 103))


async def test_a_proof_reaches_every_peer_that_can_check_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the author to a holder of the layers and on to another, past a peer that holds none."""
    async with (
        case(OWN) as found,
        node(found, A, by_own_layers) as holder,
        node(found, B, by_nobody, A) as bystander,
        node(found, C, by_own_layers, A) as far,
    ):
        proof = await proof_of(found, monkeypatch)
        assert proof.receipt.position == 96  # the first checkpoint after the row that differs
        async with node(found, KEYS[0], by_own_layers, A, B) as author:
            author.frauds.accuse(proof)
            await author.frauds.finish()
            assert author.frauds.proven == [ACCUSED.peer_id]
        await trio.sleep(2 * module.COMPARE_S)
        assert holder.frauds.proven == far.frauds.proven == [ACCUSED.peer_id]
        assert bystander.frauds.proven == []
        assert not [each.discredited for each in (holder, far, bystander) if each.discredited]


async def test_who_does_not_tell_hears_all_the_same(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it proved itself stays with it, also at its end; what others say of cheats it learns."""
    async with case(OWN) as found, node(found, A, by_own_layers) as holder:
        proof = await proof_of(found, monkeypatch)
        async with node(found, KEYS[0], by_own_layers, A, tells=False) as hidden:
            hidden.frauds.accuse(proof)
            await trio.sleep(3 * module.COMPARE_S)
            await hidden.frauds.finish()
            assert hidden.frauds.proven == [ACCUSED.peer_id]
            assert [*hidden.frauds.accused_here] == [ACCUSED.peer_id]
        await trio.sleep(3 * module.COMPARE_S)
        assert holder.frauds.proven == []
        async with node(found, KEYS[0], by_own_layers, A) as author:
            author.frauds.accuse(proof)
            await author.frauds.finish()
        async with node(found, B, by_own_layers, A, tells=False) as hidden:
            await trio.sleep(3 * module.COMPARE_S)
            assert hidden.frauds.proven == [ACCUSED.peer_id]
            assert not hidden.frauds.accused_here


async def test_a_proof_is_signed_by_the_name_that_asked(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has a name for each session signs as that; by another name it is no proof."""
    async with case(OWN) as found:
        proof = await proof_of(found, monkeypatch)
        for sign, holds in ((None, False), (KEYS[0].sign, True)):
            async with node(found, B, by_own_layers) as hidden:
                hidden.frauds.accuse(proof, sign)
                await hidden.frauds.finish()
                assert hidden.frauds.proven == [ACCUSED.peer_id] * holds
                assert hidden.frauds.accused_here == {ACCUSED.peer_id: KEYS[0].peer_id}
                assert not hidden.discredited


def double_statement() -> DoubleStatement:
    """Return two sums that the middle stage signed under one number."""
    made = [Statement(ACCUSED.peer_id, KEYS[0].peer_id, 7, work) for work in (5, 6)]
    one, two = (evolve(each, signature=ACCUSED.sign(each.to_sign())) for each in made)
    return DoubleStatement(one, two)


async def test_a_double_statement_reaches_everybody(autojump_clock: MockClock) -> None:
    """Holders of no layers, too: the two signatures are the proof."""
    async with (
        case(OWN) as found,
        node(found, A, by_nobody) as near,
        node(found, B, by_nobody, A) as far,
    ):
        async with node(found, KEYS[0], by_nobody, A) as author:
            author.frauds.report(double_statement())
            await author.frauds.finish()
        await trio.sleep(2 * module.COMPARE_S)
        assert near.frauds.proven == far.frauds.proven == [ACCUSED.peer_id]
        assert not near.discredited
        assert not far.discredited


async def test_a_forged_double_statement_costs_its_sender(autojump_clock: MockClock) -> None:
    """Nobody is convicted by sums that it did not sign."""
    proof = double_statement()
    forged = evolve(proof, other=evolve(proof.other, work=9))
    async with case(OWN) as found, node(found, A, by_nobody) as victim:
        me = found.made.me
        channel = await me.open(A.peer_id, FRAUDS)
        await send(channel, Cases((forged.case(),)))
        await receive(channel, Cases)
        await send(channel, WantProof(b""))
        await receive(channel, WantProof)
        await send(channel, ProofIs(forged.encode()))
        await trio.sleep(2 * module.CHECK_EVERY_S)
        assert victim.frauds.proven == []
        assert victim.discredited == [me.peer_id]


async def test_finish_returns_when_all_checks_are_done(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if another proof comes while the first one is checked."""
    checking = trio.Event()

    async def run(function: Callable[..., FraudProof], /, *args: object) -> FraudProof:
        await checking.wait()
        return function(*args)

    async with case(OWN) as found:
        proof = await proof_of(found, monkeypatch)
        async with node(found, KEYS[0], by_own_layers) as author, trio.open_nursery() as nursery:
            monkeypatch.setattr(author.frauds, "_run", run)
            author.frauds.accuse(proof)
            nursery.start_soon(author.frauds.finish)
            await wait_all_tasks_blocked()
            author.frauds.accuse(proof)
            checking.set()
            nursery.cancel_scope.deadline = trio.current_time() + 5
        assert not nursery.cancel_scope.cancelled_caught
        assert author.frauds.proven == [ACCUSED.peer_id]


async def test_a_false_proof_discredits_its_author_and_is_not_passed_on(
    autojump_clock: MockClock,
) -> None:
    """Well-formed, signed, and false: the first peer that checks it notices."""
    async with (
        case(OWN) as found,
        node(found, A, by_own_layers) as holder,
        node(found, C, by_own_layers, A) as far,
    ):
        body = (proof := await honest_proof(found)).body()
        async with node(found, KEYS[0], by_nobody, A) as author:
            author.frauds.add(proof, body + KEYS[0].sign(to_sign(body)))
            await author.frauds.finish()
        await trio.sleep(2 * module.COMPARE_S)
        assert holder.frauds.proven == far.frauds.proven == []
        assert holder.discredited == [KEYS[0].peer_id]
        assert far.discredited == []


@pytest.mark.parametrize("judges", [by_own_layers, by_nobody])
async def test_an_author_judges_its_own_first(judges: Judges, autojump_clock: MockClock) -> None:
    """Its auditors may have lied together; a proof it cannot judge is not passed on either."""
    async with case(OWN) as found, node(found, A, by_own_layers) as holder:
        proof = await honest_proof(found)
        async with node(found, KEYS[0], judges, A) as author:
            author.frauds.accuse(proof)
            await author.frauds.finish()
            assert author.frauds.proven == []
        await trio.sleep(2 * module.COMPARE_S)
        assert (holder.frauds.proven, holder.discredited) == ([], [])


async def test_two_results_of_the_same_rows_need_no_layers(autojump_clock: MockClock) -> None:
    """Any peer sees from the signatures that one of them is false."""
    async with case(OWN) as found, node(found, B, by_nobody) as bystander:
        proof = await honest_proof(found)
        body = evolve(proof.receipt, sent=bytes(32)).body()
        other = Signed(body, ACCUSED.sign(SIGNED_AS + body))
        two = FraudProof(proof.terms, proof.accused, LAYERS[1], (*proof.receipts, other))
        async with node(found, KEYS[0], by_nobody, B) as author:
            author.frauds.accuse(two)
            await author.frauds.finish()
        await trio.sleep(1.0)
        assert bystander.frauds.proven == [ACCUSED.peer_id]


async def test_a_peer_that_passes_on_an_invalid_proof_is_blamed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot have checked it; the accused peer suffers no harm."""
    async with case(OWN) as found, node(found, A, by_own_layers) as holder:
        proof = await proof_of(found, monkeypatch)
        body = proof.body()
        forged = body + A.sign(to_sign(body))
        channel = await found.made.me.open(A.peer_id, FRAUDS)
        await send(channel, Cases((proof.case(),)))
        await receive(channel, Cases)
        await send(channel, WantProof(b""))
        assert (await receive(channel, WantProof)).digest == proof.case().digest
        await send(channel, ProofIs(forged))
        await trio.sleep(1.0)
        assert holder.frauds.proven == []
        assert holder.discredited == [KEYS[0].peer_id]


async def test_useless_proofs_are_not_asked_for(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of another model, or about a stranger or the peer itself."""
    async with case(OWN) as found, node(found, A, by_own_layers) as holder:
        told = (await proof_of(found, monkeypatch)).case()
        others = [
            evolve(told, model=OTHER),
            evolve(told, accused=B.peer_id),
            evolve(told, accused=A.peer_id),
        ]
        for cases, wanted in ((others, b""), ([*others, told], told.digest)):
            channel = await found.made.me.open(A.peer_id, FRAUDS)
            await send(channel, Cases(tuple(cases)))
            await receive(channel, Cases)
            await send(channel, WantProof(b""))
            assert (await receive(channel, WantProof)).digest == wanted
            if wanted:
                await send(channel, ProofIs(b""))  # gone meanwhile
            await channel.close()
        await trio.sleep(1.0)
        assert (holder.frauds.proven, holder.discredited) == ([], [])


@pytest.mark.parametrize(
    ("judges", "verdict"),
    [
        ((OWN,), True),
        ((FIRST, SECOND, THIRD), True),
        ((FIRST, SECOND), None),
        ((), None),
    ],
)
async def test_two_holders_are_not_believed(
    judges: tuple[str, ...],
    verdict: bool | None,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A peer's own layers are; of other holders, three must agree."""
    async with case(OWN) as found:
        proof = await proof_of(found, monkeypatch)
        by = Case(found.made, found.holders, list(judges))
        assert await judge(proof, by.find(LAYERS[0], LAYERS[1], ACCUSED.peer_id)) is verdict


async def test_holders_that_disagree_settle_nothing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them lies, and it may be any of them."""
    async with case(FIRST, SECOND, THIRD) as found:
        proof = await honest_proof(found)
        cheat(found.holders[0], lambda _, rows: bytes(len(rows)), monkeypatch)
        assert await judge(proof, found.find(LAYERS[0], LAYERS[1], ACCUSED.peer_id)) is None


async def test_another_class_does_not_judge(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows differ from an honest peer's too."""
    async with case(OWN) as found:
        proof = await proof_of(found, monkeypatch)
        engine = FakeStage(*LAYERS, context=CONTEXT)
        monkeypatch.setattr(engine, "numerics_class", "ab" * 16)
        assert await judge(proof, [by_engine(engine, LAYERS[1])]) is None


async def test_two_receipts_of_one_stage_are_noticed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is enough that the requester gets two results for one position."""
    async with case(OWN) as found, found.made.open() as session:
        await answer(session, PROMPT)
        assert session.evidence
        await session.evidence.settle(96)
        stage = session.evidence.stages[1]
        body = evolve(Receipt.parse(stage.signed(96)[96].body), sent=bytes(32)).body()
        kept = Receipt.parse(body), Signed(body, ACCUSED.sign(SIGNED_AS + body))
        monkeypatch.setitem(stage._kept, 96, kept)
        monkeypatch.setattr(stage, "_final", None)
        broken = await session.evidence.settle(96)
        assert broken
        assert broken.peers == (ACCUSED.peer_id,)
        assert len(stage.contradiction) == 2


async def test_a_peer_that_is_shut_out_is_neither_served_nor_asked(
    autojump_clock: MockClock,
) -> None:
    """No channel opens in either direction any more."""
    async with case(OWN) as found, found.made.network.join(A.peer_id) as inner:
        guarded = GuardedTransport(inner)
        served: list[PeerId] = []

        async def serve(channel: object) -> None:
            served.append(channel.remote)  # type: ignore[attr-defined]

        guarded.handle("test", serve)
        me = found.made.me
        await me.open(A.peer_id, "test")
        await trio.sleep(1.0)
        guarded.shut_out(me.peer_id)
        channel = await me.open(A.peer_id, "test")
        with pytest.raises(PeerUnavailable):
            await channel.receive()
        with pytest.raises(PeerUnavailable):
            await guarded.open(me.peer_id, "test")
        with pytest.raises(PeerUnavailable):
            await guarded.connect(me.addresses[0])
        assert served == [me.peer_id]
