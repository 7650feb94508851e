"""Fraud proofs among peers: each checks a proof itself before it acts, and passes on what held.

What shows a false step of a row is judged by all who hold that layer, or a proof key of it. What
shows two statements under one number needs no judge, and no model.

Now and then two peers tell each other which cases they have seen proven; either may ask for one
proof that it lacks and can judge. It runs the rows again, with its own layers where it holds them,
otherwise by three other holders of its own choice that must agree. A proof it cannot judge it
ignores and does not pass on. So a false proof reaches only the peers its author sends it to, and an
author judges its own proof before sending it: its auditors may have lied together.
"""

import logging
from collections.abc import Callable, Sequence
from random import Random

import trio
from attrs import evolve

from p2pinfer.core import double_statement, fraud
from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.audit import THIS_MACHINE
from p2pinfer.core.double_statement import NO_MODEL, DoubleStatement
from p2pinfer.core.errors import P2pinferError, PeerError
from p2pinfer.core.evidence import CASES_MAX, Case, Cases, ProofIs, WantProof
from p2pinfer.core.fraud import BY_STEPS, FraudProof, to_sign
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.sections import BadFile
from p2pinfer.core.witness import Rows
from peers.audits.replay import OpenReplay, PeerReplays, Replay, by_engine, cut
from peers.audits.steps import StepsJudge
from peers.parts.protocol import Run, in_thread
from peers.serving.server import Server
from peers.steps.messaging import receive, send
from transports.base import Channel, Transport
from transports.identity import verify

_log = logging.getLogger("p2pinfer.frauds")

FRAUDS = "frauds"

COMPARE_S = 60.0
"""How often cases are compared with one other peer: usually two empty lists. At half this rate, in
two of three simulated swarms of 200, a fifth of them cheats, honest peers were convicted, or routes
led over cheats that a stage had shut out; at this rate in one of eight."""

SPREAD = 4
"""Peers told at once of a new proof."""

EXCHANGE_S_MAX = 60.0
"""For 6 MiB at 1 Mbit/s."""

EXCHANGES_MAX = 4
"""Answered at once; a peer that calls beyond that gets no answer, and calls again."""

WAITING_MAX = 2
"""Proofs waiting to be checked, of 6 MiB at most; one more is dropped, and offered again."""

CHECK_EVERY_S = 10.0
"""Between the starts of two checks that run layers: each is as much work as an audit."""

AGREEING = 3
"""Other holders that must find the same bits: two may have colluded."""

JUDGES_MAX = 5
"""Asked at most: some may be gone, or lie."""

UNDECIDED_S = 300.0
"""Before a proof that could not be judged is checked again."""

JUDGED_MAX = 1024
"""Cases remembered by their digests."""

KEPT_BYTES_MAX = 32 << 20
"""Of proofs kept to pass on; the oldest are dropped first, but their cases stay known."""

Proof = FraudProof | DoubleStatement

Judges = Callable[[Case], Sequence[OpenReplay]]
"""Returns replays of a case's layers in its class, best first; by none of the peers involved."""


class Frauds:
    """What a peer knows about proven cheats.

    Args:
        transport: to others.
        model: whose proofs it can judge.
        sign: as this peer, where it is the author.
        others: returns the advertisements of the peers that cases are compared with.
        judges: finds peers that can judge.
        chance: picks the peers to compare with.
        on_proven: called with each proof that held, and its file.
        on_false: called with peers that made or sent an invalid proof.
        run: runs slow work, so that nothing else waits for it.
        steps: judges openings.
        tells: whether others are told what is proven here; else this peer only hears of it.
    """

    def __init__(
        self,
        transport: Transport,
        model: ModelId,
        sign: Callable[[bytes], bytes],
        others: Callable[[], Sequence[Advertisement]],
        judges: Judges,
        chance: Random,
        on_proven: Callable[[Proof, bytes], None],
        on_false: Callable[[PeerId], None] = lambda _: None,
        run: Run = in_thread,
        steps: StepsJudge | None = None,
        *,
        tells: bool = True,
    ) -> None:
        self._run, self._steps, self._tells = run, steps, tells
        self._transport, self._model, self._sign = transport, model, sign
        self._others, self._judges, self._chance = others, judges, chance
        self._on_proven, self._on_false = on_proven, on_false
        self._proven: dict[PeerId, Case] = {}
        self._kept: dict[bytes, bytes] = {}
        self.accused_here: dict[PeerId, PeerId] = {}
        """Peers that this one has accused itself, the newest last, and under which name."""
        self._judged: dict[bytes, float] = {}
        """Digests of proofs that were checked, and when they may be checked again."""
        self._send, self._receive = trio.open_memory_channel[tuple[PeerId, bytes]](WAITING_MAX)
        self._checked_at = -CHECK_EVERY_S
        self._answering, self._telling = 0, trio.Lock()
        self._is_untold = False
        self._news, self._idle = trio.Event(), trio.Event()
        self._idle.set()

    @property
    def proven(self) -> list[PeerId]:
        """Proven cheats, the newest last."""
        return list(self._proven)

    def listen(self) -> None:
        """Answer other peers from now on."""
        self._transport.handle(FRAUDS, self._answer)

    def accuse(self, proof: FraudProof, sign: Callable[[bytes], bytes] | None = None) -> None:
        """Sign a proof that this peer made, and queue it for checking like another peer's.

        Requires that ``run`` is running; see also ``finish``.

        Args:
            proof: its author is who asked in that session.
            sign: as its author, where that is another name of this peer's.
        """
        receipt = proof.receipt
        for offer in self._others():
            if offer.peer == proof.accused and offer.numerics_class == receipt.numerics.hex():
                proof = evolve(proof, slice_end=max(receipt.end, offer.end))
        self.accused_here[proof.accused] = proof.author
        if len(self.accused_here) > JUDGED_MAX:
            del self.accused_here[next(iter(self.accused_here))]
        body = proof.body()
        self._line_up(self._transport.peer_id, body + (sign or self._sign)(to_sign(body)))

    def report(self, proof: DoubleStatement) -> None:
        """Queue the proof that a peer contradicted itself towards this one; see ``accuse``."""
        self._line_up(self._transport.peer_id, proof.encode())

    def add(self, proof: Proof, data: bytes, *, tells: bool = True) -> None:
        """Record a proof that holds, with its file; ``tells`` says whether it is passed on."""
        if proof.accused in self._proven:
            return
        case = proof.case()
        self._judged[case.digest] = float("inf")
        self._proven[proof.accused] = case
        if len(self._proven) > JUDGED_MAX:
            del self._proven[next(iter(self._proven))]
        _log.info("%s is proven to have cheated, by %s", case.accused, case.author)
        self._on_proven(proof, data)
        if tells and self._tells:
            self._pass_on(case, data)

    def _pass_on(self, case: Case, data: bytes) -> None:
        self._kept[case.digest] = data
        while sum(map(len, self._kept.values())) > KEPT_BYTES_MAX:
            del self._kept[next(iter(self._kept))]
        self._is_untold = True
        self._news.set()

    async def run(self) -> None:
        """Compare cases with other peers and check their proofs, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._check_for_ever)
            while True:
                await self.tell(SPREAD if self._news.is_set() else 1)
                with trio.move_on_after(COMPARE_S * self._chance.uniform(0.7, 1.0)):
                    await self._news.wait()

    async def tell(self, count: int) -> int:
        """Compare cases with ``count`` other peers; return with how many that was done."""
        self._news = trio.Event()
        offers = [offer for offer in self._others() if offer.addresses]
        done = list[bool]()

        async def ask(offer: Advertisement) -> None:
            done.append(await self._ask(offer))

        async with self._telling, trio.open_nursery() as nursery:
            for offer in self._chance.sample(offers, min(count, len(offers))):
                nursery.start_soon(ask, offer)
        self._is_untold = self._is_untold and count < SPREAD
        return sum(done)

    async def finish(self) -> None:
        """Check queued proofs, and tell other peers what is still untold."""
        await self._idle.wait()
        if self._is_untold:
            await self.tell(SPREAD)

    def _line_up(self, sender: PeerId, data: bytes) -> None:
        try:
            self._send.send_nowait((sender, data))
            if self._idle.is_set():  # else a task may be waiting on the current event
                self._idle = trio.Event()
        except trio.WouldBlock:
            _log.info("too many proofs wait to be checked")

    async def _ask(self, offer: Advertisement) -> bool:
        """Compare cases with a peer; return whether it was there until the end."""
        try:
            with trio.move_on_after(EXCHANGE_S_MAX):
                channel = await self._transport.open(offer.peer, FRAUDS, offer.addresses)
                try:
                    ours = self._cases()
                    await send(channel, ours)
                    theirs = await receive(channel, Cases)
                    if ours.cases or theirs.cases:
                        await self._fetch(channel, theirs)
                        await self._give(channel)
                    return True
                finally:
                    await channel.close()
        except PeerError as error:
            _log.info("cases were not compared: %s", error)
        return False

    async def _answer(self, channel: Channel) -> None:
        if self._answering >= EXCHANGES_MAX:
            return
        self._answering += 1
        try:
            with trio.move_on_after(EXCHANGE_S_MAX):
                theirs, ours = await receive(channel, Cases), self._cases()
                await send(channel, ours)
                if ours.cases or theirs.cases:
                    await self._give(channel)
                    await self._fetch(channel, theirs)
        except PeerError as error:
            _log.info("cases were not compared: %s", error)
        finally:
            self._answering -= 1

    def _cases(self) -> Cases:
        kept = [case for case in self._proven.values() if case.digest in self._kept]
        return Cases(tuple(kept[-CASES_MAX:]))

    async def _fetch(self, channel: Channel, theirs: Cases) -> None:
        """Ask for one missing proof, and queue it for checking."""
        wanted = next((case.digest for case in theirs.cases if self._wants(case)), b"")
        await send(channel, WantProof(wanted))
        if wanted:
            self._line_up(channel.remote, (await receive(channel, ProofIs)).data)

    async def _give(self, channel: Channel) -> None:
        wanted = (await receive(channel, WantProof)).digest
        if wanted:
            await send(channel, ProofIs(self._kept.get(wanted, b"")))

    def _wants(self, case: Case) -> bool:
        """Whether a case is new, concerns a peer that is present, and can be judged here."""
        me, now = self._transport.peer_id, trio.current_time()
        if case.model not in (self._model, NO_MODEL):
            return False
        if case.accused in self._proven or case.accused == me:
            return False
        if now < self._judged.get(case.digest, 0.0):
            return False
        if all(offer.peer != case.accused for offer in self._others()):
            return False  # it would change nothing
        if case.numerics == BY_STEPS:
            return self._steps is not None and self._steps.covers(range(case.first, case.end))
        return case.rows == 0 or bool(self._judges(case))

    async def _check_for_ever(self) -> None:
        try:
            async for sender, data in self._receive:
                if sender != self._transport.peer_id:
                    await trio.sleep_until(self._checked_at + CHECK_EVERY_S)
                try:
                    await self._check(data)
                except BadFile as error:
                    _log.warning("%s sent an invalid fraud proof: %s", sender, error)
                    if sender != self._transport.peer_id:
                        self._on_false(sender)
                if not self._receive.statistics().current_buffer_used:
                    self._idle.set()
        finally:
            self._idle.set()

    async def _check(self, data: bytes) -> None:
        """Judge a proof and act upon it.

        Raises:
            BadFile: it is not a valid proof, which its sender should have noticed.
        """
        if not data:
            return
        proof: Proof = await self._run(read, data)
        case = proof.case()
        if not self._wants(case):
            return
        if case.rows:
            self._checked_at = trio.current_time()
        verdict: bool | None
        if isinstance(proof, DoubleStatement):
            verdict = True
        elif proof.opening:
            verdict = await self._steps.convicts(proof) if self._steps else None
        else:
            verdict = await judge(proof, self._judges(case))
        again_s = trio.current_time() + UNDECIDED_S
        self._judged[case.digest] = again_s if verdict is None else float("inf")
        if len(self._judged) > JUDGED_MAX:
            del self._judged[next(iter(self._judged))]
        if verdict:
            self.add(proof, data)
        elif verdict is None:
            _log.info("whether %s cheated cannot be judged here", case.accused)
        elif case.author == self.accused_here.get(case.accused):
            _log.warning("the auditors that said %s cheated have lied", case.accused)
        else:
            _log.warning("%s falsely accuses %s", case.author, case.accused)
            self._on_false(case.author)


def read(data: bytes) -> Proof:
    """Read a proof's file, and check all that can be checked without layers; raises BadFile."""
    if data.startswith(double_statement.MAGIC):
        return double_statement.parse(data, verify)
    return fraud.parse(data, verify)


def judges_beside(server: Server, replays: PeerReplays, case: Case) -> Sequence[OpenReplay]:
    """Return a serving peer's own engine if it can judge a case, otherwise other peers."""
    held = server.held
    if held:
        engine = held.engine
        is_same = engine.numerics_class == case.numerics.hex()
        if is_same and engine.first == case.first and engine.first < case.end <= engine.end:
            return [by_engine(engine, case.end)]
    return replays.judges(case)


async def judge(proof: FraudProof, judges: Sequence[OpenReplay]) -> bool | None:
    """Whether a parsed proof holds; None if it cannot be decided."""
    if len(proof.receipts) > 1:
        return True
    receipt = proof.receipt
    found: list[bytes] = []
    for opening in judges[:JUDGES_MAX]:
        try:
            async with opening(receipt.position) as replay:
                if replay.numerics != receipt.numerics:
                    continue
                sent = await run_again(proof, replay)
                is_own = replay.name == THIS_MACHINE
        except P2pinferError as error:
            _log.info("a judge is gone: %s", error)
            continue
        root = sent.tree.root(receipt.position)
        found.append(root)
        if is_own or found.count(root) == AGREEING:
            return root != receipt.sent
    return None


async def run_again(proof: FraudProof, replay: Replay) -> Rows:
    """Return a replay's output for a proof's rows, each in its regime; raises as the replay."""
    sent, inputs = Rows(keep=False), proof.inputs
    size = len(inputs.rows) // len(inputs.regimes)
    for position, rows, regime in cut(inputs, 0):
        count = len(rows) // size
        made = await replay.run(position, count, rows, regime=regime)
        sent.put(position, count, made, regime=regime)
    return sent
