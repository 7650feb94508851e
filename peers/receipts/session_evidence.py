"""The requester's side of evidence: receipts from all stages, and whether they are consistent.

Nothing here delays a token: rows are kept as they pass, and hashed and compared when an answer is
settled.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import trio
from attrs import evolve

from p2pinfer.core.certificate import Certificate, StageClaim, to_sign
from p2pinfer.core.continuity import Break, find_break
from p2pinfer.core.evidence import Follow
from p2pinfer.core.ledger import LedgerEntry, entry_of
from p2pinfer.core.messages import Hop, Open, Step
from p2pinfer.core.receipts import Terms, seal_of
from p2pinfer.core.sponsor import Sponsor
from p2pinfer.core.trust import Trust
from p2pinfer.core.witness import OpenedRows, Witness, runs_of
from peers.receipts.signer import terms_of
from peers.receipts.stage_receipts import StageReceipts
from transports.base import Transport

REPLACED_S_MAX = 20.0
"""For a lost stage to be replaced: to notice the loss, find a replacement, and open there."""

RECOMPUTED_S_MAX = 60.0
"""For a replacement to compute the rows before it joined: 6,000 rows at a slow laptop's 100/s."""

SETTLE_S_MAX = 120.0
"""For an answer to be settled, however often its stages change meanwhile."""

NONCE_BYTES = 32


class Evidence:
    """What a requester knows about one session: rows in and out, and every stage's receipts."""

    def __init__(
        self, opened: Open, terms: Terms, nonce: bytes, follow: Callable[[Hop], StageReceipts]
    ) -> None:
        self.opened, self.terms, self.nonce = opened, terms, nonce
        self.witness = Witness(keep=True)
        """Rows that went into the chain as a whole, and rows that came out."""
        self._follow = follow
        self.stages: list[StageReceipts] = []
        """Stages of the route that made the rows being examined; it may change meanwhile."""
        self._now = self.stages  # of the route that the next step takes
        self._first: list[StageReceipts] = []  # of the route that the session began with
        self._changed, self._is_over = trio.Event(), False
        self._on_way: dict[int, bytes] = {}
        self.rows = 0
        """Sent so far, including dropped ones."""
        self.in_need: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered while all stages are needed, although no step is under way; the chain sets it."""
        self.openings: list[bytes] = []
        """What stages opened when the answer was examined last, and was found true."""
        self.cut_openings: list[bytes] = []
        """The same, where not all layers are shown."""

    def follow(self, route: Sequence[Hop]) -> None:
        """Follow the stages of a route from now on; those already followed are kept."""
        before = self._now
        known = {each.hop: each for each in before if each.fault or not each.gone}
        self._now = [known.get(hop) or self._follow(hop) for hop in route]
        self._first = self._first or self._now
        for other in before:
            if other not in self._now:
                other.let_go()
        self._tell_changed()

    def goes_in(self, number: int, count: int, rows: bytes) -> None:
        """Remember rows that are sent to the first stage."""
        self.stages = self._now
        self._on_way[number] = rows
        self.rows += count

    def comes_out(self, step: Step, *, is_awaited: bool) -> None:
        """Remember the last stage's answer to them, unless it is no longer awaited."""
        while self._on_way and next(iter(self._on_way)) < step.number:
            del self._on_way[next(iter(self._on_way))]  # overwritten before they were sent on
        rows = self._on_way.pop(step.number, None)
        fits = step.position <= self.witness.length and len(step.rows) >= step.count
        if rows and is_awaited and fits:
            self.witness.add(step.position, step.count, rows, step.rows, regime=step.regime)

    def close(self) -> None:
        """Stop following all stages: the session is over, and there are no more replacements."""
        self._is_over = True
        for stage in self._now:
            stage.let_go()
        self._tell_changed()

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def settle(self, position: int) -> Break | None:
        """Have all stages sign for the first ``position`` rows; return the first inconsistency.

        A stage that dies before signing is no break if it is replaced: the replacement signs once
        it has computed the rows again. Raises nothing that a stage can cause: lasting silence and
        refusals are breaks.
        """
        with self.in_need():
            return await self._settle(position)

    async def _settle(self, position: int) -> Break | None:
        give_up_at = trio.current_time() + SETTLE_S_MAX
        signed: list[StageReceipts] = []
        while True:
            self.stages = self._now
            async with trio.open_nursery() as nursery:
                for stage in self.stages:
                    if stage not in signed:
                        behind_s = 0.0 if stage in self._first else RECOMPUTED_S_MAX
                        nursery.start_soon(stage.settle, position, behind_s)
            signed = [stage for stage in self.stages if not stage.silence]
            vouched = [stage.vouched(position) for stage in self.stages]
            went_in, came_out = self.witness.received.tree, self.witness.sent.tree
            broken = find_break(vouched, went_in.root, came_out.root, position)
            if broken is None or trio.current_time() >= give_up_at:
                return broken
            is_missing = len(signed) < len(self.stages)
            if not await self.wait_changed(REPLACED_S_MAX if is_missing else 0.0):
                return broken

    async def wait_changed(self, timeout_s: float) -> bool:
        """Wait for the route to differ from the one being settled; return whether it does."""
        with trio.move_on_after(timeout_s):
            while self._now is self.stages and not self._is_over:
                await self._changed.wait()
        return self._now is not self.stages

    def work(self, position: int) -> list[LedgerEntry]:
        """Return the stages' work as ledger entries, by their settling receipts."""
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
        """Return a certificate file; the session must be settled for exactly these tokens."""
        count = len(tokens)
        stages = tuple(
            StageClaim(
                each.hop.peer, each.hop.first, each.hop.end, tuple(each.signed(count).values())
            )
            for each in self.stages
        )
        regimes = runs_of(self.witness.received.regimes(count))
        body = Certificate(
            self.terms,
            self.nonce,
            trust.rate,
            tuple(tokens),
            regimes,
            answer,
            stages,
            trust.audits,
            tuple(self.openings),
            tuple(self.cut_openings),
        ).body()
        return body + sign(to_sign(body))

    async def inputs(self, index: int, position: int, count: int) -> OpenedRows:
        """Return rows that a stage received: our own, or those that the stage before it opens.

        Raises:
            PeerError: that stage did not open them.
        """
        if index == 0:
            return self.witness.received.open(position, count)
        return await self.stages[index - 1].open(position, count)

    async def outputs(self, index: int, position: int, count: int) -> OpenedRows:
        """Return rows that a stage sent: our own, or those that it opens; raises as ``inputs``."""
        if index == len(self.stages) - 1:
            return self.witness.sent.open(position, count)
        return await self.stages[index].open(position, count)


class Gatherer:
    """Begins the evidence of sessions, whose tasks run in a nursery that outlives them.

    Args:
        nursery: for the tasks.
        transport: reaches the stages.
        draw: returns that many unpredictable bytes.
        sponsor: returns the sponsor of sessions, if any; of audits too, as they must look alike.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        transport: Transport,
        draw: Callable[[int], bytes],
        sponsor: Callable[[], Sponsor | None] = lambda: None,
    ) -> None:
        self._nursery, self._transport, self._draw = nursery, transport, draw
        self._sponsor = sponsor

    def begin(self, opened: Open) -> Evidence:
        """Return evidence for a session about to be opened; its ``opened`` carries the seal."""
        nonce = self._draw(NONCE_BYTES)
        sealed = evolve(opened, seal=seal_of(nonce), sponsor=self._sponsor())
        terms = terms_of(sealed)

        def follow(hop: Hop) -> StageReceipts:
            receipts = StageReceipts(hop, terms.digest(), opened.context)
            self._nursery.start_soon(receipts.run, self._transport, Follow(opened.session))
            return receipts

        return Evidence(sealed, terms, nonce, follow)
