"""The requester's side of evidence: receipts gathered from all stages, and whether they join up.

Nothing here holds up a token: rows are kept as they pass, and hashed and compared when an answer
is settled.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import trio
from attrs import evolve

from p2pinfer.core.certificate import Certificate, StageClaim, to_sign
from p2pinfer.core.continuity import Break, Vouched, find_break
from p2pinfer.core.errors import PeerError, PeerUnavailable, RemoteProtocolError
from p2pinfer.core.evidence import AskRows, Follow, Made, Opening, Settle, Settled
from p2pinfer.core.fraud import contradict
from p2pinfer.core.ledger import Entry, entry_of
from p2pinfer.core.messages import Denied, Hop, Open, Step
from p2pinfer.core.receipts import (
    CHECKPOINT_POSITIONS,
    SIGNED_AS,
    BadReceipt,
    Receipt,
    Signed,
    Terms,
    seal_of,
)
from p2pinfer.core.trust import Trust
from p2pinfer.core.witness import Opened, Witness, runs_of
from peers.notary import EVIDENCE, terms_of
from peers.talk import RefusedError, receive, send
from transports.base import Channel, Transport
from transports.identity import verify

_log = logging.getLogger("p2pinfer.evidence")

FOLLOW_S_MAX = 10.0
"""For a stage to be reached and told which session this is about."""

ANSWER_S_MAX = 10.0
"""For a stage to sign, or to open up to 48 rows."""

NONCE_BYTES = 32

_Said = Made | Settled | Opening | Denied

M = TypeVar("M", Settled, Opening)


class Following:
    """One stage of a session: its receipts as they come, and questions to it."""

    def __init__(self, hop: Hop, terms: bytes, context: int) -> None:
        self.hop = hop
        self._terms, self._context = terms, context
        self._kept: dict[int, tuple[Receipt, Signed]] = {}
        """The newest for each checkpoint; no more than the session has."""
        self._final: tuple[Receipt, Signed] | None = None
        """The newest that was asked for."""
        self.fault = ""
        """Why its word no longer counts."""
        self.contradiction: tuple[Signed, ...] = ()
        """Two receipts that no honest peer signs both."""
        self._channel: Channel | None = None
        self._ready, self._answered = trio.Event(), trio.Event()
        self._answer: Settled | Opening | Denied | None = None
        self._asking = trio.Lock()
        self._following = trio.CancelScope()
        self._numbers = 0

    async def run(self, transport: Transport, session: Follow) -> None:
        """Follow the stage until it is let go, or is at fault."""
        channel: Channel | None = None
        with self._following:
            try:
                with trio.fail_after(FOLLOW_S_MAX):
                    channel = await transport.open(self.hop.peer, EVIDENCE, self.hop.addresses)
                    await send(channel, session)
                self._channel = channel
                self._ready.set()
                while True:
                    message: _Said = await receive(channel, Made, Settled, Opening, Denied)
                    if isinstance(message, Made):
                        self._keep(message.signed)
                    else:
                        self._take(message)
            except PeerError as error:
                self._fail(f"its evidence ended: {error}")
            except trio.TooSlowError:
                self._fail("it did not answer when asked for receipts")
            finally:
                if channel:
                    channel.abort()

    def let_go(self) -> None:
        """Follow it no longer."""
        self._following.cancel()

    def signed(self, position: int) -> dict[int, Signed]:
        """Return its receipts for the first ``position`` rows and fewer, in order."""
        found = {at: signed for at, (_, signed) in sorted(self._kept.items()) if at <= position}
        if self._final and self._final[0].position == position:
            found[position] = self._final[1]
        return found

    def vouched(self, position: int) -> Vouched:
        """Return its word for the first ``position`` rows, every signature checked."""
        receipts = {}
        for at, signed in self.signed(position).items():
            if not self._is_signed(signed):
                self.fault = self.fault or f"its receipt for {at} rows is not signed by it"
            receipts[at] = Receipt.parse(signed.body)
        return Vouched(self.hop.peer, self.hop.first, self.hop.end, receipts, self.fault)

    async def settle(self, position: int) -> None:
        """Get a receipt for exactly so many rows, or note the fault."""
        try:
            answer = await self._ask(Settle(self._next_number(), position), Settled)
            receipt = self._parse(answer.signed)
            if receipt.position != position:
                raise RemoteProtocolError(self.hop.peer, "its receipt is for another position")
            self._compare(receipt, answer.signed)
            self._final = receipt, answer.signed
        except PeerError as error:
            self._fail(str(error))

    async def open(self, position: int, count: int) -> Opened:
        """Return rows that it sent; whether they are those that it signed for is to be checked.

        Raises:
            PeerError: it did not open them.
        """
        answer = await self._ask(AskRows(self._next_number(), position, count), Opening)
        if len(answer.regimes) != count or len(answer.rows) % count:
            raise RemoteProtocolError(self.hop.peer, "it opened other rows than it was asked for")
        return Opened(tuple(map(bool, answer.regimes)), answer.rows)

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    async def _ask(self, question: Settle | AskRows, kind: type[M]) -> M:
        peer = self.hop.peer
        try:
            async with self._asking:
                with trio.fail_after(ANSWER_S_MAX):
                    await self._ready.wait()
                    if self.fault or not self._channel:
                        raise PeerUnavailable(peer, self.fault)
                    self._answer, self._answered = None, trio.Event()
                    await send(self._channel, question)
                    while not self._answer or self._answer.number != question.number:
                        await self._answered.wait()
                        self._answered = trio.Event()
                        if self.fault:
                            raise PeerUnavailable(peer, self.fault)
                    answer = self._answer
        except trio.TooSlowError:
            raise PeerUnavailable(peer, f"{peer} did not answer for its evidence") from None
        if isinstance(answer, Denied):
            raise RefusedError.of(peer, answer.code, "it has no evidence of that")
        if not isinstance(answer, kind):
            raise RemoteProtocolError(peer, "it answered another question")
        return answer

    def _take(self, message: Settled | Opening | Denied) -> None:
        if isinstance(message, Denied) and message.number == 0:
            raise RefusedError.of(self.hop.peer, message.code, "it keeps no such record")
        self._answer = message
        self._answered.set()

    def _keep(self, signed: Signed) -> None:
        """Keep a checkpoint's receipt; raises RemoteProtocolError."""
        receipt = self._parse(signed)
        if receipt.position % CHECKPOINT_POSITIONS or receipt.position > self._context:
            raise RemoteProtocolError(self.hop.peer, "its receipt is for no checkpoint")
        self._compare(receipt, signed)
        self._kept[receipt.position] = receipt, signed

    def _compare(self, receipt: Receipt, signed: Signed) -> None:
        """Hold a receipt against those before; raises RemoteProtocolError."""
        for before, other in filter(None, (self._kept.get(receipt.position), self._final)):
            if contradict(before, receipt) and self._is_signed(other) and self._is_signed(signed):
                self.contradiction = other, signed
                raise RemoteProtocolError(self.hop.peer, "it signed two results of the same rows")

    def _is_signed(self, signed: Signed) -> bool:
        return verify(self.hop.peer, SIGNED_AS + signed.body, signed.signature)

    def _parse(self, signed: Signed) -> Receipt:
        """Read a receipt, which must be about this session and stage."""
        try:
            receipt = Receipt.parse(signed.body)
        except BadReceipt as error:
            raise RemoteProtocolError(self.hop.peer, str(error)) from error
        at = (receipt.terms, receipt.first, receipt.end)
        if at != (self._terms, self.hop.first, self.hop.end):
            raise RemoteProtocolError(self.hop.peer, "its receipt is about something else")
        return receipt

    def _fail(self, text: str) -> None:
        self.fault = self.fault or text
        self._ready.set()
        self._answered.set()


class Evidence:
    """What a requester knows of one session: rows in and out, and every stage's receipts."""

    def __init__(
        self, opened: Open, terms: Terms, nonce: bytes, follow: Callable[[Hop], Following]
    ) -> None:
        self.opened, self.terms, self.nonce = opened, terms, nonce
        self.witness = Witness(keep=True)
        """Of the chain as a whole: what went in, and what came out of it."""
        self._follow = follow
        self.stages: list[Following] = []
        """Of the route that made what is being examined; it may change while that is."""
        self._now = self.stages  # of the route that the next step takes
        self._on_way: dict[int, bytes] = {}
        self.rows = 0
        """Sent so far, dropped ones too."""

    def follow(self, route: Sequence[Hop]) -> None:
        """Follow the stages of a route from now on; those that were followed before stay so."""
        before = self._now
        known = {each.hop: each for each in before if not each.fault}
        self._now = [known.get(hop) or self._follow(hop) for hop in route]
        for other in before:
            if other not in self._now:
                other.let_go()

    def goes_in(self, number: int, count: int, rows: bytes) -> None:
        """Remember rows that are sent to the first stage."""
        self.stages = self._now
        self._on_way[number] = rows
        self.rows += count

    def comes_out(self, step: Step, *, is_awaited: bool) -> None:
        """Remember what the last stage sent for them, unless nobody waits for it any more."""
        rows = self._on_way.pop(step.number, None)
        fits = step.position <= self.witness.length and len(step.rows) >= step.count
        if rows and is_awaited and fits:
            self.witness.add(step.position, step.count, rows, step.rows, wide=step.wide)

    def close(self) -> None:
        """Follow nobody any longer."""
        for stage in self._now:
            stage.let_go()

    async def settle(self, position: int) -> Break | None:
        """Have all stages sign for the first ``position`` rows; return where it does not join up.

        Raises nothing that a stage can cause: silence and refusals are breaks.
        """
        self.stages = self._now
        async with trio.open_nursery() as nursery:
            for stage in self.stages:
                nursery.start_soon(stage.settle, position)
        stages = [stage.vouched(position) for stage in self.stages]
        witness = self.witness
        return find_break(stages, witness.received.tree.root, witness.sent.tree.root, position)

    def work(self, position: int) -> list[Entry]:
        """Return what the stages did, by the receipts with which they settled."""
        found = []
        for stage in self.stages:
            vouched = stage.vouched(position)
            if position in vouched.receipts and not vouched.fault:
                receipt = vouched.receipts[position]
                found.append(entry_of(self.terms, vouched.peer, receipt, self.rows))
        return found

    def certify(
        self, tokens: Sequence[int], answer: str, trust: Trust, sign: Callable[[bytes], bytes]
    ) -> bytes:
        """Return a certificate's file; the session must have been settled for just these tokens."""
        count = len(tokens)
        stages = tuple(
            StageClaim(
                each.hop.peer, each.hop.first, each.hop.end, tuple(each.signed(count).values())
            )
            for each in self.stages
        )
        regimes = runs_of(self.witness.received.regimes(count))
        body = Certificate(
            self.terms, self.nonce, trust.rate, tuple(tokens), regimes, answer, stages, trust.audits
        ).body()
        return body + sign(to_sign(body))

    async def inputs(self, index: int, position: int, count: int) -> Opened:
        """Return what a stage received: own rows, or those that the stage before it opens.

        Raises:
            PeerError: that stage did not open them.
        """
        if index == 0:
            return self.witness.received.open(position, count)
        return await self.stages[index - 1].open(position, count)

    async def outputs(self, index: int, position: int, count: int) -> Opened:
        """Return what a stage sent, likewise."""
        if index == len(self.stages) - 1:
            return self.witness.sent.open(position, count)
        return await self.stages[index].open(position, count)


class Gatherer:
    """Begins the evidence of sessions, whose tasks run in a nursery that outlives them.

    Args:
        nursery: for the tasks.
        transport: reaches the stages.
        draw: returns so many random bytes that nobody can foresee.
    """

    def __init__(
        self, nursery: trio.Nursery, transport: Transport, draw: Callable[[int], bytes]
    ) -> None:
        self._nursery, self._transport, self._draw = nursery, transport, draw

    def begin(self, opened: Open) -> Evidence:
        """Return the evidence of a session that is about to be opened, sealed, so."""
        nonce = self._draw(NONCE_BYTES)
        sealed = evolve(opened, seal=seal_of(nonce))
        terms = terms_of(sealed)

        def follow(hop: Hop) -> Following:
            following = Following(hop, terms.digest(), opened.context)
            self._nursery.start_soon(following.run, self._transport, Follow(opened.session))
            return following

        return Evidence(sealed, terms, nonce, follow)
