"""What comes in is judged once: forged, mangled and misplaced statements are no use to anybody."""

import random
from typing import Any

import msgpack
import pytest
import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pinfer.core.learning import (
    AskPayload,
    AskSaid,
    Digest,
    Kind,
    LearningTask,
    Payload,
    RoundStatement,
    SignedBody,
    digest_of,
    to_sign,
)
from p2pinfer.core.wire import BadMessage, decode, encode
from peers.learning.board import Board, KnownTasks, Reception, id_of, read_task, signed_task
from peers.learning.courier import LEARNING
from tests.support.learners import KEYS, TASK, learners, task
from transports.identity import Identity, verify

IDENTITIES = [Identity(bytes([number + 1]) * 32) for number in range(3)]
SAID = signed_task(IDENTITIES[0], evolve(TASK, proposer=IDENTITIES[0].peer_id))
HEAD = digest_of(b"head")


def board() -> Board:
    """Make a member's board."""
    found = read_task(SAID, verify)
    assert found
    return Board(IDENTITIES[0], found, id_of(SAID), verify)


def said_by(number: int, kind: Kind = Kind.JOIN, **changes: Any) -> SignedBody:
    """Make what a member says."""
    identity = IDENTITIES[number]
    statement = RoundStatement(
        identity.peer_id, id_of(SAID), 1, 0, Kind.JOIN, HEAD, data=bytes([number]) * 32
    )
    body = encode(evolve(statement, kind=kind, **changes))
    return SignedBody(body, identity.sign(to_sign(body)))


def test_what_is_signed_and_in_place_is_kept() -> None:
    """And told to others; nobody is heard before it has joined."""
    mine = board()
    reveal = said_by(1, Kind.REVEAL)
    assert mine.hear(reveal) is Reception.USELESS
    assert mine.hear(said_by(1)) is Reception.NEW
    assert mine.hear(said_by(1)) is Reception.KNOWN
    assert mine.hear(reveal) is Reception.NEW
    assert mine.lacking((), 10) == [said_by(1), reveal]
    assert mine.lacking(mine.known(), 10) == []


def test_what_another_signed_is_blamed() -> None:
    """On the neighbour that passed it on."""
    forged = SignedBody(said_by(1).body, IDENTITIES[2].sign(to_sign(said_by(1).body)))
    assert board().hear(forged) is Reception.BAD
    for_another_purpose = SignedBody(said_by(1).body, IDENTITIES[1].sign(said_by(1).body))
    assert board().hear(for_another_purpose) is Reception.BAD


def test_what_is_no_statement_of_this_task_is_blamed() -> None:
    """Also what decodes to one, and is not how it is written."""
    good, identity = said_by(1), IDENTITIES[1]
    other = said_by(1, task="cd" * 32).body
    for body in (b"rubbish", other, msgpack.packb([*msgpack.unpackb(good.body), []])):
        assert board().hear(SignedBody(body, identity.sign(to_sign(body)))) is Reception.BAD


def test_far_rounds_are_of_no_use_unless_asked_for() -> None:
    """Else anybody could fill a member's memory with them."""
    far = said_by(1, round=500)
    assert board().hear(far) is Reception.USELESS
    assert board().hear(far, asked=True) is Reception.NEW


def test_two_words_in_one_place_are_both_passed_on() -> None:
    """The pair is the proof; its author is heard no more."""
    mine = board()
    first, second = said_by(1), said_by(1, data=b"x" * 32)
    assert (mine.hear(first), mine.hear(second)) == (Reception.NEW, Reception.NEW)
    assert mine.convicted == {IDENTITIES[1].peer_id: (first, second)}
    assert list(mine.statements(1, 0)) == []
    assert set(mine.lacking((), 10)) >= {first, second}
    assert mine.hear(said_by(1, Kind.REVEAL)) is Reception.USELESS


def test_attempts_do_not_pile_up_what_they_gave() -> None:
    """What the last one gave, sums and the model are kept; earlier updates are not."""
    mine = board()
    for attempt in range(3):
        assert mine.hear(said_by(1, attempt=attempt)) is Reception.NEW
        for kind in (Kind.UPDATE, Kind.RESULT):
            data = f"{kind} {attempt}".encode()
            payload = Payload(mine.hold(data), len(data))
            said = said_by(1, kind, attempt=attempt, data=b"", payload=payload)
            assert mine.hear(said) is Reception.NEW
    head = mine.hold(b"model")
    mine.hold(b"nobody's")
    mine.begin(1, 2, [head])
    kept = {b"update 1", b"update 2", b"result 0", b"result 1", b"result 2", b"model"}
    assert {*mine.payloads.values()} == kept


def test_tasks_are_heard_from_their_proposers_alone() -> None:
    """A task that somebody changed is another one's, and nobody signed it."""
    tasks = KnownTasks(verify)
    assert (tasks.hear(SAID), tasks.hear(SAID)) == (Reception.NEW, Reception.KNOWN)
    changed = encode(evolve(decode(SAID.body, LearningTask), rounds=7))
    assert tasks.hear(SignedBody(changed, SAID.signature)) is Reception.BAD


@given(st.data())
def test_mangled_bytes_are_bad_and_nothing_else(data: st.DataObject) -> None:
    """Whatever is changed, a statement is refused, and nothing is raised."""
    good = said_by(1)
    at = data.draw(st.integers(0, len(good.body) - 1))
    other = data.draw(st.binary(min_size=0, max_size=4))
    body = good.body[:at] + other + good.body[at + data.draw(st.integers(0, 4)) :]
    mine = board()
    assert mine.hear(SignedBody(body, good.signature)) in (
        (Reception.NEW,) if body == good.body else (Reception.BAD, Reception.USELESS)
    )
    assert len(mine.known()) == (body == good.body)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Kind.JOIN, {"data": b"short"}),
        (Kind.ROSTER, {"data": b""}),
        (Kind.ROSTER, {"data": b"", "listed": (HEAD, HEAD)}),
        (Kind.UPDATE, {"data": b""}),
        (Kind.JUDGEMENT, {"data": b"", "listed": (HEAD,), "losses": (1,)}),
        (Kind.REVEAL, {"addresses": ("/memory/1/p2p/x",)}),
        (Kind.JOIN, {"payload": Payload(HEAD, 3)}),
        (Kind.JOIN, {"round": 0}),
        (Kind.JOIN, {"attempt": 99}),
    ],
)
def test_a_statement_has_what_its_kind_has(kind: Kind, changes: dict[str, object]) -> None:
    """Neither more nor less, so that what follows need not look."""
    with pytest.raises(ValueError):  # noqa: PT011 -- any sentence
        said_by(1, kind, **changes)


async def test_a_hostile_peer_ends_nobody(autojump_clock: MockClock) -> None:
    """It gossips rubbish, asks nonsense and answers nothing; the members end their task."""
    chance = random.Random(1)
    with trio.fail_after(3000):
        async with learners(task(rounds=1)) as them:
            hostile = KEYS[9].peer_id
            async with them.network.join(hostile) as transport:

                async def mute(channel: object) -> None:
                    await trio.sleep_forever()

                transport.handle(LEARNING, mute)
                topic = f"{LEARNING}-{id_of(them.said)[:32]}"
                async with transport.join_topic(topic, lambda _, __: None) as gossip:  # type: ignore[arg-type, return-value]
                    for number in range(3):
                        await them.add(number)
                    peer = KEYS[0].peer_id
                    for _ in range(50):
                        gossip.publish(chance.randbytes(chance.randint(0, 300)))
                        gossip.publish(
                            encode(SignedBody(chance.randbytes(40), chance.randbytes(64)))
                        )
                    for rubbish in (chance.randbytes(50), encode(AskSaid(id_of(them.said), ()))):
                        channel = await transport.open(peer, LEARNING)
                        await channel.send(rubbish)
                    asks = await transport.open(peer, LEARNING)
                    await asks.send(encode(AskPayload(Digest(bytes(32)), 1 << 27)))
                    heads = await them.finish()
    assert len({each.child for each in heads}) == 1
    assert len(heads) == 3


def test_what_members_ask_is_bounded() -> None:
    """No question names more than its limit."""
    with pytest.raises(BadMessage):
        decode(encode(AskSaid(id_of(SAID), ())) + b"x", AskSaid)
    with pytest.raises(ValueError):  # noqa: PT011 -- any sentence
        AskPayload(Digest(bytes(32)), 1 << 40)
