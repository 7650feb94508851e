"""What members have signed about the rounds that led to a model can be checked later."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.cli.model import _measured
from p2pinfer.core.ids import ModelId
from p2pinfer.core.learning import (
    Kind,
    Payload,
    RoundStatement,
    SignedBody,
    TaskId,
    digest_of,
    to_sign,
)
from p2pinfer.core.wire import encode
from p2pinfer.node.lineage import (
    FILE_BYTES_MAX,
    SIGNED_MAX,
    Ancestor,
    Gain,
    keep_lineage,
    lineage,
    lineage_file,
)
from p2pinfer.node.model_supply import open_store
from peers.learning.board import id_of
from peers.learning.work import RoundReport
from scheduler.round_table import Phase
from sim.signing import is_cheaply_signed
from tests.support.command_line import run
from tests.support.learners import TASK, Learner, learners, task, toy_work
from tests.support.parts_swarm import make_model
from transports.identity import Identity

IDENTITIES = [Identity(bytes([number + 1]) * 32) for number in range(4)]
MEMBERS = tuple(each.peer_id for each in IDENTITIES[:3])
THIS, CHILD = TaskId("a" * 64), ModelId("b" * 64)
SUM, OTHER_SUM = digest_of(b"sum"), digest_of(b"other sum")
NUMBERS = Payload(digest_of(b"numbers"), 8)
BEFORE = 2_000_000


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "home"))


def said(number: int, kind: Kind, **changes: Any) -> SignedBody:
    """Make what a member says of round 1."""
    identity = IDENTITIES[number]
    fields: dict[str, Any] = {"task": THIS, "round": 1, "attempt": 0, "on": digest_of(b"before")}
    body = encode(RoundStatement(identity.peer_id, kind=kind, **(fields | changes)))
    return SignedBody(body, identity.sign(to_sign(body)))


def judgement(number: int, *after: int) -> SignedBody:
    """Make a member's, of as many sums as there are losses."""
    return said(
        number,
        Kind.JUDGEMENT,
        listed=(SUM, OTHER_SUM)[: len(after)],
        losses=(BEFORE, *after),
    )


JUDGED = (judgement(0, 1_500_000), judgement(1, 1_900_000), judgement(2, 900_000))


def accepting(
    listing: SignedBody, members: Sequence[int] = (0, 1, 2), to: ModelId = CHILD
) -> tuple[SignedBody, ...]:
    """Make the acceptances of what follows from a list."""
    more = {"on": listing.digest, "payload": NUMBERS, "data": bytes.fromhex(to)}
    return tuple(said(each, Kind.ACCEPT, **more) for each in members)


def of_round(judged: Sequence[SignedBody] = JUDGED, to: ModelId = CHILD) -> tuple[SignedBody, ...]:
    """Make all that is kept of a round."""
    listing = said(0, Kind.CHILD, listed=tuple(each.digest for each in judged))
    return listing, *judged, *accepting(listing, to=to)


def shown(signed: tuple[SignedBody, ...]) -> Ancestor:
    """Keep a round, and return what is shown of it."""
    report = RoundReport(1, None, CHILD, MEMBERS, took_part=True, sums=1, taken=1, signed=signed)
    keep_lineage(THIS, TASK, report)
    (found,) = lineage(CHILD, pytest.fail)
    return found


def test_what_members_signed_is_shown() -> None:
    """Who signed, and the median gain with the least and the most."""
    found = shown(of_round())
    assert (found.signed, found.members, found.listed) == (3, MEMBERS, 3)
    assert [each.member for each in found.judged] == [*MEMBERS]
    assert found.judged[1].before == pytest.approx(2.0)
    assert found.judged[1].after == pytest.approx(1.9)
    assert _measured(found) == (
        "loss on their own lessons lower by 0.500 (median; 0.100 to 1.100), as 3 of them signed"
    )


def test_of_several_sums_the_mean_of_those_taken_counts() -> None:
    """By the rule of the round: a sum that helps far less than the best, or does harm, is not."""
    both = tuple(judgement(number, 1_000_000, 1_400_000) for number in range(3))
    found = shown(of_round(both))
    assert (found.taken, found.sums) == (2, 2)
    assert found.gain
    assert found.gain.median == pytest.approx(0.8)
    assert _measured(found).endswith("as 3 of them signed; 2 sums, each tried alone")
    found = shown(of_round(tuple(judgement(number, 1_000_000, 1_990_000) for number in range(3))))
    assert (found.taken, found.gain) == (1, Gain(3, 1.0, 1.0, 1.0))
    found = shown(of_round(tuple(judgement(number, 3_000_000) for number in range(3))))
    assert (found.taken, found.gain) == (0, None)
    assert _measured(found) == "no sum was taken over"


def mangled(said: SignedBody) -> SignedBody:
    """Change a bit of a signature."""
    return SignedBody(said.body, bytes([said.signature[0] ^ 1]) + said.signature[1:])


def forged(said: SignedBody) -> SignedBody:
    """Sign as somebody else."""
    return SignedBody(said.body, IDENTITIES[3].sign(to_sign(said.body)))


@pytest.mark.parametrize("change", [mangled, forged])
def test_a_changed_signature_counts_for_nothing(change: Callable[[SignedBody], SignedBody]) -> None:
    """Of a judgement, of the list, of an acceptance: each is noticed, and nothing is ended."""
    listing, *judged = of_round()[:4]
    accepts = of_round()[4:]
    found = shown((listing, change(judged[0]), *judged[1:], *accepts))
    assert (found.signed, found.listed, len(found.judged), found.gain) == (3, 3, 2, None)
    assert "1 of 3 judgements are not here as they were signed" in _measured(found)
    found = shown((change(listing), *judged, *accepts))
    assert (found.signed, found.listed, found.judged, found.gain) == (3, 0, (), None)
    assert "no list of judgements" in _measured(found)
    found = shown((listing, *judged, change(accepts[0]), *accepts[1:]))
    assert (found.signed, found.gain is not None) == (2, True)


def test_another_judgement_in_place_of_one_is_noticed() -> None:
    """Its own signature holds, but those who signed for the child did not build on it."""
    listing, _, *others = of_round()
    found = shown((listing, judgement(0, 1), *others))
    assert (len(found.judged), found.gain) == (2, None)


def test_another_list_is_noticed() -> None:
    """Somebody who signs a list of better judgements has no acceptance of it by a member."""
    listing, *_ = of_round()
    better = (judgement(0, 1), judgement(1, 1), judgement(2, 1))
    other = said(3, Kind.CHILD, listed=tuple(each.digest for each in better))
    strangers = accepting(other, [3])
    found = shown((other, *better, *accepting(listing), *strangers))
    assert (found.signed, found.listed) == (3, 0)


def test_who_signs_twice_counts_once() -> None:
    """And what a stranger signs, or for another round, task or child, counts not at all."""
    listing, *judged = of_round()[:4]
    more = {"on": listing.digest, "payload": NUMBERS, "data": bytes.fromhex(CHILD)}
    one = said(0, Kind.ACCEPT, **more)
    again = said(0, Kind.ACCEPT, **more | {"payload": Payload(SUM, 8)})
    elsewhere = (
        said(3, Kind.ACCEPT, **more),
        said(1, Kind.ACCEPT, **more | {"round": 2}),
        said(1, Kind.ACCEPT, **more | {"task": "c" * 64}),
        said(1, Kind.ACCEPT, **more | {"data": bytes(32)}),
    )
    assert shown((listing, *judged, one, again, *elsewhere)).signed == 1


def test_a_round_of_an_earlier_release_is_shown() -> None:
    """It kept the list and the acceptances alone."""
    listing, *_ = of_round()
    found = shown((listing, *accepting(listing)))
    assert (found.signed, found.listed, found.judged, found.gain) == (3, 3, (), None)
    assert _measured(found).endswith(
        "3 of 3 judgements are not here as they were signed; releases before kept none"
    )


def test_model_show_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a person, and as JSON with what each member signed; of what is damaged, that it is."""
    model = make_model()
    open_store().add_manifest(model.manifest.encode(), model.id)
    first = ModelId("c" * 64)
    keep_lineage(THIS, TASK, RoundReport(1, None, first, MEMBERS, True, signed=of_round(to=first)))
    signed = of_round(to=model.id)
    keep_lineage(THIS, TASK, RoundReport(1, first, model.id, MEMBERS, True, signed=signed))
    assert run(monkeypatch, "model", "show", model.id, "--lineage") == 0
    out, err = capsys.readouterr()
    assert (
        out.count("3 of 3 members signed\n            loss on their own lessons lower by 0.5") == 2
    )
    assert not err
    lineage_file(first).write_text("{")
    assert run(monkeypatch, "model", "show", model.id, "--lineage", "--json") == 0
    out, err = capsys.readouterr()
    (found,) = json.loads(out)["lineage"]
    assert found["gain"] == pytest.approx({"members": 3, "median": 0.5, "least": 0.1, "most": 1.1})
    assert found["judged"][0] == pytest.approx({"member": MEMBERS[0], "before": 2.0, "after": 1.5})
    assert "is damaged" in err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"signed": [["00"]]}',
        json.dumps({"task": "a" * 64, "round": 1, "members": [], "signed": [], "parent": "x"}),
        " " * (FILE_BYTES_MAX + 1),
    ],
    ids=["empty", "list", "deep", "entry", "parent", "large"],
)
def test_a_damaged_file_ends_nothing(text: str) -> None:
    """The rounds after it are shown, and it is said which file it is."""
    first, told = ModelId("c" * 64), list[str]()
    keep_lineage(THIS, TASK, RoundReport(1, None, first, MEMBERS, took_part=True))
    keep_lineage(THIS, TASK, RoundReport(2, first, CHILD, MEMBERS, took_part=True))
    assert [each.round for each in lineage(CHILD, told.append)] == [2, 1]
    lineage_file(first).write_text(text)
    assert [each.round for each in lineage(CHILD, told.append)] == [2]
    (one,) = told
    assert str(lineage_file(first)) in one


def test_rounds_that_name_each_other_end() -> None:
    """Somebody has changed them."""
    keep_lineage(THIS, TASK, RoundReport(1, CHILD, CHILD, MEMBERS, took_part=True))
    assert len(lineage(CHILD, pytest.fail)) == 1


def test_what_is_kept_is_bounded() -> None:
    """A round of as many members as there can be fits, and nothing is read of a longer one."""
    keep_lineage(
        THIS,
        TASK,
        RoundReport(1, None, CHILD, MEMBERS, took_part=True, signed=(JUDGED[0],) * 1000),
    )
    kept = json.loads(lineage_file(CHILD).read_text())
    assert len(kept["signed"]) == SIGNED_MAX


async def test_members_keep_what_all_of_them_measured(autojump_clock: MockClock) -> None:
    """Through whole rounds; one that comes late keeps what it hears of the round before, too."""
    what, late_one = task(rounds=5, members=2), trio.Event()

    def on_phase(_: Learner, number: int, phase: Phase) -> None:
        if (number, phase) == (3, Phase.TRAIN):
            late_one.set()

    with trio.fail_after(3000):
        async with learners(what) as them:
            for number in range(2):
                await them.add(number, toy_work(number, train_s=5.0), on_phase=on_phase)
            await late_one.wait()
            late = await them.add(2)
            await them.finish()
    assert not late.reports[0].took_part
    for learner in them.members.values():
        for report in learner.reports:
            lineage_file(report.child).unlink(missing_ok=True)
            keep_lineage(id_of(them.said), what, report)
        rounds = lineage(learner.reports[-1].child, pytest.fail, is_cheaply_signed)
        assert [each.round for each in rounds[: len(learner.reports)]] == [
            each.number for each in reversed(learner.reports)
        ]
        for each, report in zip(rounds, reversed(learner.reports), strict=False):
            assert each.listed == len(each.judged) >= 2
            assert each.taken == 1
            mine = [said for said in each.judged if said.member == learner.peer]
            assert bool(mine) == report.took_part
            if mine:
                assert mine[0].before == pytest.approx(report.loss_before, abs=2e-6)
                assert mine[0].after == pytest.approx(report.loss_after, abs=2e-6)
            assert each.gain
            assert each.gain.least <= each.gain.median <= each.gain.most
