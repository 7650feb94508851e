"""One stage of a session, as its requester follows it: receipts received, questions asked."""

from typing import TypeVar

import trio

from p2pinfer.core.continuity import Vouched
from p2pinfer.core.errors import PeerError, PeerUnavailable, RemoteProtocolError
from p2pinfer.core.evidence import AskRows, Follow, Made, Opening, Settle, Settled
from p2pinfer.core.fraud import contradict
from p2pinfer.core.messages import Denied, Hop, Refusal
from p2pinfer.core.receipts import CHECKPOINT_POSITIONS, SIGNED_AS, BadReceipt, Receipt, Signed
from p2pinfer.core.regimes import Regime
from p2pinfer.core.witness import OpenedRows
from peers.receipts.signer import EVIDENCE
from peers.steps.messaging import RefusedError, receive, send
from transports.base import Channel, Transport
from transports.identity import verify

FOLLOW_S_MAX = 10.0
"""For a stage to be reached, and the session named to it."""

ANSWER_S_MAX = 10.0
"""For a stage to sign, or to open up to 48 rows."""

ASK_AGAIN_S = 0.25
"""How often a replacement is asked whether it has caught up."""

_Said = Made | Settled | Opening | Denied

M = TypeVar("M", Settled, Opening)


class StageReceipts:
    """One stage of a session: its receipts, and questions to it."""

    def __init__(self, hop: Hop, terms: bytes, context: int) -> None:
        self.hop = hop
        self._terms, self._context = terms, context
        self._kept: dict[int, tuple[Receipt, Signed]] = {}
        """The newest for each checkpoint; no more checkpoints than the session has."""
        self._final: tuple[Receipt, Signed] | None = None
        """The newest one that we asked for."""
        self.fault = ""
        """Something it did that no correct stage does: its receipts no longer count."""
        self.silence = ""
        """Why it did not sign when last asked; it may just be gone."""
        self.gone = ""
        """Why nothing more can be had from it; what it signed stands."""
        self.contradiction: tuple[Signed, ...] = ()
        """Two receipts that contradict each other: no honest peer signs both."""
        self._channel: Channel | None = None
        self._ready, self._answered = trio.Event(), trio.Event()
        self._answer: Settled | Opening | Denied | None = None
        self._asking = trio.Lock()
        self._scope = trio.CancelScope()
        self._numbers = 0

    async def run(self, transport: Transport, session: Follow) -> None:
        """Follow the stage until it is let go, or is at fault."""
        channel: Channel | None = None
        with self._scope:
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
            except RemoteProtocolError as error:
                self.fault = str(error)
            except PeerError as error:
                self.gone = f"its evidence ended: {error}"
            except trio.TooSlowError:
                self.gone = "it did not answer when asked for receipts"
            finally:
                if channel:
                    channel.abort()
                self.gone = self.gone or self.fault or "it was replaced"
                self._ready.set()
                self._answered.set()

    def let_go(self) -> None:
        """Stop following it."""
        self._scope.cancel()

    def signed(self, position: int) -> dict[int, Signed]:
        """Return its receipts for up to the first ``position`` rows, in order."""
        found = {at: signed for at, (_, signed) in sorted(self._kept.items()) if at <= position}
        if self._final and self._final[0].position == position:
            found[position] = self._final[1]
        return found

    def vouched(self, position: int) -> Vouched:
        """Return its receipts for the first ``position`` rows, with every signature checked."""
        receipts = {}
        for at, signed in self.signed(position).items():
            if not self._is_signed(signed):
                self.fault = self.fault or f"its receipt for {at} rows is not signed by it"
            receipts[at] = Receipt.parse(signed.body)
        fault = self.fault or self.silence
        return Vouched(self.hop.peer, self.hop.first, self.hop.end, receipts, fault)

    async def settle(self, position: int, recomputed_s: float = 0.0) -> None:
        """Get a receipt for exactly ``position`` rows, or record the fault or the silence.

        Args:
            position: how many rows.
            recomputed_s: how long it may answer that it has not computed them again yet.
        """
        try:
            signed = await self._ask_until(position, trio.current_time() + recomputed_s)
            receipt = self._parse(signed)
            if receipt.position != position:
                raise RemoteProtocolError(self.hop.peer, "its receipt is for another position")
            self._compare(receipt, signed)
            self._final, self.silence = (receipt, signed), ""
        except RemoteProtocolError as error:
            self.fault = self.fault or str(error)
        except PeerError as error:
            self.silence = str(error)

    async def _ask_until(self, position: int, give_up_at: float) -> Signed:
        while True:
            try:
                return (await self._ask(Settle(self._next_number(), position), Settled)).signed
            except RefusedError as no:
                is_behind = no.refused.code is Refusal.NOT_HELD
                if not is_behind or trio.current_time() >= give_up_at:
                    raise
            await trio.sleep(ASK_AGAIN_S)

    async def open(self, position: int, count: int) -> OpenedRows:
        """Return rows that it sent; the caller must check that they match its receipts.

        Raises:
            PeerError: it did not open them.
        """
        answer = await self._ask(AskRows(self._next_number(), position, count), Opening)
        if len(answer.regimes) != count or len(answer.rows) % count:
            raise RemoteProtocolError(self.hop.peer, "it opened other rows than requested")
        return OpenedRows(tuple(map(Regime, answer.regimes)), answer.rows)

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    async def _ask(self, question: Settle | AskRows, kind: type[M]) -> M:
        peer = self.hop.peer
        try:
            async with self._asking:
                with trio.fail_after(ANSWER_S_MAX):
                    await self._ready.wait()
                    self._answer, self._answered = None, trio.Event()
                    if self._channel and not self.gone:
                        await send(self._channel, question)
                    while not self._answer or self._answer.number != question.number:
                        if self.gone:
                            raise PeerUnavailable(peer, self.gone)
                        await self._answered.wait()
                        self._answered = trio.Event()
                    answer = self._answer
        except trio.TooSlowError:
            raise PeerUnavailable(peer, f"{peer} did not answer about its evidence") from None
        if isinstance(answer, Denied):
            raise RefusedError.of(peer, answer.code, "it has no evidence of that")
        if not isinstance(answer, kind):
            raise RemoteProtocolError(peer, "it answered another question")
        return answer

    def _take(self, message: Settled | Opening | Denied) -> None:
        if isinstance(message, Denied) and message.number == 0:
            raise RefusedError.of(self.hop.peer, message.code, "it keeps no record of the session")
        self._answer = message
        self._answered.set()

    def _keep(self, signed: Signed) -> None:
        """Keep a checkpoint's receipt; raises RemoteProtocolError."""
        receipt = self._parse(signed)
        if receipt.position % CHECKPOINT_POSITIONS or receipt.position > self._context:
            raise RemoteProtocolError(self.hop.peer, "its receipt is not at a checkpoint")
        self._compare(receipt, signed)
        self._kept[receipt.position] = receipt, signed

    def _compare(self, receipt: Receipt, signed: Signed) -> None:
        """Compare a receipt with earlier ones; raises RemoteProtocolError if they contradict."""
        for before, other in filter(None, (self._kept.get(receipt.position), self._final)):
            if contradict(before, receipt) and self._is_signed(other) and self._is_signed(signed):
                self.contradiction = other, signed
                raise RemoteProtocolError(self.hop.peer, "it signed two results for the same rows")

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
