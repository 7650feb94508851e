"""How a model came to be: the rounds that led to it, and what members have signed about each.

data/lineage/CHILD.json holds a round's list of judgements, these, and the acceptances of what
follows, as their authors signed them; so anybody who has the file can check it alone.
What stands there unsigned is this machine's own notes. Releases before kept no judgements.

A judgement says a member's mean loss on its own lessons before the round, and with each sum alone.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, median
from typing import Final

from attrs import evolve, field, frozen

from p2pinfer.core.checks import HASH, line, many, whole
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.learning import (
    BODY_BYTES_MAX,
    CHANGES_MAX,
    MEMBERS_MAX,
    ROUNDS_MAX,
    Digest,
    Kind,
    LearningTask,
    RoundStatement,
    SignedBody,
    TaskId,
    is_signed,
)
from p2pinfer.core.manifest import NAME_CHARS_MAX
from p2pinfer.core.receipts import SIGNATURE_BYTES
from p2pinfer.core.wire import BadMessage, decode
from p2pinfer.node.atomic_file import replace_text
from p2pinfer.places import data_dir
from peers.discovery.view import Verify
from peers.learning.member import LOSS_UNIT
from peers.learning.work import RoundReport
from scheduler.judging import accepted
from transports.identity import verify as is_by

SIGNED_MAX: Final = 1 + 2 * MEMBERS_MAX
"""Statements in a file: the list, and a judgement and an acceptance of each member."""

FILE_BYTES_MAX: Final = SIGNED_MAX * 2 * (BODY_BYTES_MAX + SIGNATURE_BYTES) + (64 << 10)
"""Some 3 MiB, in hexadecimal digits and with the notes: a larger file is none of ours."""


@frozen
class Judged:
    """What a member has signed about a round."""

    member: PeerId
    before: float
    """Mean loss on lessons of its own, in nats a token."""
    after: float | None
    """The same with a sum that was taken; of several the mean, each tried alone. None where it
    tried none, or where a judgement is lacking, so that nobody can say what was taken."""


@frozen
class Gain:
    """By how much the loss fell, in nats a token, as members signed it."""

    members: int
    median: float
    least: float
    most: float


@frozen
class Ancestor:
    """How a child came to be."""

    child: ModelId = field(validator=HASH)
    parent: ModelId = field(validator=HASH)
    task: str = field(validator=line(NAME_CHARS_MAX, 1))
    round: int = field(validator=whole(1, ROUNDS_MAX))
    members: tuple[PeerId, ...] = field(validator=many(str, MEMBERS_MAX))
    signed: int
    """Members whose signatures under it hold."""
    sums: int = field(validator=whole(0, MEMBERS_MAX))
    taken: int = field(validator=whole(0, CHANGES_MAX))
    listed: int = 0
    """Judgements that counted; none if their list is lacking, or nobody signed what follows."""
    judged: tuple[Judged, ...] = ()
    """Those of them that are here as they were signed."""
    gain: Gain | None = None


def keep_lineage(task_id: TaskId, task: LearningTask, report: RoundReport) -> None:
    """Write down how a child came to be, if the disk takes it."""
    said = {
        "task": task_id,
        "name": task.name,
        "base": task.base,
        "round": report.number,
        "parent": report.parent or task.base,
        "members": report.members,
        "sums": report.sums,
        "taken": report.taken,
        "signed": [[each.body.hex(), each.signature.hex()] for each in report.signed[:SIGNED_MAX]],
    }
    with suppress(OSError):  # it is only for showing
        lineage_file(report.child).parent.mkdir(parents=True, exist_ok=True)
        replace_text(lineage_file(report.child), json.dumps(said))


def lineage_file(child: ModelId) -> Path:
    """Return where it is written down how a model came to be."""
    return data_dir() / "lineage" / f"{child}.json"


def lineage(
    model: ModelId, tell: Callable[[str], None] = lambda _: None, verify: Verify = is_by
) -> list[Ancestor]:
    """Return how a model came to be, the latest round first, as far as this machine saw it.

    Args:
        model: the child.
        tell: called with a sentence about what cannot be read.
        verify: checks signatures.
    """
    found: list[Ancestor] = []
    seen = {model}
    while lineage_file(model).is_file():
        try:
            found.append(_ancestor(model, verify))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            tell(f"{lineage_file(model)} is damaged: what it says of a round is not shown")
            break
        model = found[-1].parent
        if model in seen:
            break  # a file that somebody has changed
        seen.add(model)
    return found


def _ancestor(child: ModelId, verify: Verify) -> Ancestor:
    if lineage_file(child).stat().st_size > FILE_BYTES_MAX:
        raise ValueError("too long")
    notes = json.loads(lineage_file(child).read_text())
    task, number = TaskId(notes["task"]), notes["round"]
    members = tuple(notes["members"])
    signed = {
        digest: said
        for digest, said in _signed(notes["signed"][:SIGNED_MAX], verify)
        if (said.task, said.round) == (task, number)
    }
    accepts = {
        (said.author, said.on)
        for said in signed.values()
        if said.kind is Kind.ACCEPT and said.data.hex() == child and said.author in members
    }
    counts = Counter(on for _, on in sorted(accepts))
    on, count = counts.most_common(1)[0] if counts else (Digest(b""), 0)
    found = Ancestor(
        child, notes["parent"], notes["name"], number, members, count, notes["sums"], notes["taken"]
    )
    listing = signed.get(on)
    if listing is None or listing.kind is not Kind.CHILD:
        return found
    return _with_judgements(found, listing, signed)


def _signed(
    kept: Iterable[Sequence[str]], verify: Verify
) -> Iterator[tuple[Digest, RoundStatement]]:
    """Yield the statements whose signatures hold."""
    for body, signature in kept:
        try:
            said = SignedBody(bytes.fromhex(body), bytes.fromhex(signature))
            statement = decode(said.body, RoundStatement)
        except (BadMessage, ValueError):
            continue
        if is_signed(said, statement.author, verify):
            yield said.digest, statement


def _with_judgements(
    found: Ancestor, listing: RoundStatement, signed: Mapping[Digest, RoundStatement]
) -> Ancestor:
    """Add what was measured.

    Args:
        found: the rest.
        listing: the list that those who signed for the child build on.
        signed: statements of the round whose signatures hold.
    """
    here = [signed[each] for each in listing.listed if each in signed]
    judgements = [each for each in here if each.kind is Kind.JUDGEMENT]
    is_whole = len(judgements) == len(listing.listed)
    # Follows from all judgements together, by the rule that each member went by
    take = accepted(judgements) if is_whole else []
    judged = tuple({each.author: _judged(each, take) for each in judgements}.values())
    gains = [each.before - each.after for each in judged if each.after is not None]
    gain = Gain(len(gains), median(gains), min(gains), max(gains)) if gains else None
    found = evolve(found, listed=len(listing.listed), judged=judged, gain=gain)
    if not is_whole:
        return found
    tried = {digest for each in judgements for digest in each.listed}
    return evolve(found, sums=max(found.sums, len(tried)), taken=len(take))


def _judged(said: RoundStatement, take: Sequence[Digest]) -> Judged:
    before, *after = (each * LOSS_UNIT for each in said.losses)
    tried = dict(zip(said.listed, after, strict=True))
    of_taken = [tried[each] for each in take if each in tried]
    return Judged(said.author, before, fmean(of_taken) if of_taken else None)
