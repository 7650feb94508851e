"""The rows of one answer that are under way: the one that is awaited, and drafts behind it."""

from collections.abc import Callable, Sequence

import trio

from p2pinfer.core.errors import lone_errors
from p2pinfer.core.messages import Step
from p2pinfer.core.regimes import Regime
from p2pinfer.engine.base import EndsSession, NextToken
from peers.asking.chain import Chain
from peers.asking.draft_model import ModelDrafter
from peers.asking.drafts import (
    MATCH_BEFORE_MODEL_TOKENS,
    MATCH_TOKENS,
    TEXT_TOKENS_MAX,
    DraftCount,
    TextDrafter,
)
from peers.asking.governor import LOOK_TOKENS, Governor

TOLD_S_MAX = 10.0
"""How long stages may advertise rows that they have run: they tell their load every 5 s."""


class Ahead:
    """Sends an answer's rows, and drafts ahead of them if there is a drafter.

    Args:
        chain: where rows go.
        cells: the requester's own layers, which embed drafts.
        row_bytes: of one row.
        governor: says how far ahead.
        prompt_rows: that were sent just before.
        drafter: what drafts out of the text; None sends no drafts.
        model: what drafts besides.
        rows_of_others: returns how many rows wait at a stage besides as many of this session.
    """

    def __init__(
        self,
        chain: Chain,
        cells: EndsSession,
        row_bytes: int,
        governor: Governor,
        prompt_rows: int,
        drafter: TextDrafter | None = None,
        model: ModelDrafter | None = None,
        rows_of_others: Callable[[int], float] = lambda _: 0.0,
    ) -> None:
        self._chain, self._cells, self._row_bytes = chain, cells, row_bytes
        self._drafter, self._model = drafter, model
        self._governor, self._rows_of_others = governor, rows_of_others
        self._prompt_rows, self._prompt_until = prompt_rows, trio.current_time() + TOLD_S_MAX
        self._under_way = 1  # rows, at most, since the answer began
        self._alone_at: float | None = None  # when the awaited row set out, unless as a draft
        self._sent: list[int] = []  # tokens whose rows are under way
        self._received, self._received_at = 0, trio.current_time()
        self.count = DraftCount()
        """What became of the drafts."""

    @property
    def drafted(self) -> int | None:
        """The token whose row follows the one that came back last, if it is under way."""
        return self._sent[0] if self._sent else None

    def send(self, position: int, following: NextToken) -> None:
        """Send the row of a token that was drawn, unless it is under way as a draft."""
        if not self._sent:
            self._send_row(position, following.token, following.rows)
            self._alone_at = trio.current_time()

    async def receive(self, held: Sequence[int], most: int) -> Step:
        """Return the answer to the row that is awaited; up to ``most`` rows are under way then.

        Args:
            held: the tokens that all caches hold.
            most: as many as the answer, and the session, have room for.
        """
        position = len(held)
        if self._drafter is None:
            step = await self._chain.receive(position, 1, self._row_bytes)
        else:
            if not self._received % LOOK_TOKENS:
                self._look()
            self._received += 1
            most = min(1 + self._governor.depth, most)
            self._under_way = max(self._under_way, most)
            self._drafter.add(self._sent[0])
            if tokens := self._drafter.draft(self._sent[1:], most - len(self._sent)):
                await self._send_drafts(position, tokens)
            step = await self._receive_along(held, most)
            now = trio.current_time()
            drafting = len(self._sent) > 1 or self._alone_at is None
            if self._alone_at is not None:
                self._governor.went(now - self._alone_at, max(step.decoding_us, default=0) / 1e6)
                self._alone_at = None
            self._governor.took(now - self._received_at, drafting=drafting)
            self._received_at = now
        del self._sent[0]
        return step

    def _look(self) -> None:
        """See how many rows wait at the stages besides our own."""
        is_told = trio.current_time() < self._prompt_until
        own = max(self._under_way, self._prompt_rows if is_told else 0)
        self._governor.waiting = self._rows_of_others(own)

    def drew(self, token: int) -> None:
        """Go on with the drafts under way if the first of them is the token that was drawn."""
        if not self._sent:
            return
        if token == self._sent[0]:
            self._governor.kept()
            self.count.kept += 1
            return
        self._governor.dropped()
        self.count.wrong += 1
        self.count.dropped += len(self._sent)
        self._chain.forget()  # what comes back for them; the next row overwrites theirs
        self._sent.clear()

    async def _receive_along(self, held: Sequence[int], most: int) -> Step:
        """Let the draft model draft until the answer is here."""
        model, position = self._model, len(held)
        if model is None or model.is_lost or most <= len(self._sent):
            return await self._chain.receive(position, 1, self._row_bytes)
        with lone_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._draft_along, model, held, most)
                step = await self._chain.receive(position, 1, self._row_bytes)
                nursery.cancel_scope.cancel()
        return step

    async def _draft_along(self, model: ModelDrafter, held: Sequence[int], most: int) -> None:
        """Send the draft model's tokens as it makes them."""
        model.follow([*held, *self._sent], most - len(self._sent))
        while len(self._sent) < most and not model.is_lost:
            if tokens := model.drafts()[: most - len(self._sent)]:
                await self._send_drafts(len(held), tokens)
                model.follow([*held, *self._sent], most - len(self._sent))
            else:
                await model.wait_moved()

    async def _send_drafts(self, position: int, tokens: list[int]) -> None:
        at, size = position + len(self._sent), self._row_bytes
        embedded = await self._cells.embed(at, tokens, regime=Regime.NARROW)
        for number, token in enumerate(tokens):
            row = embedded.rows[number * size : (number + 1) * size]
            self._send_row(at + number, token, row)

    def _send_row(self, position: int, token: int, row: bytes) -> None:
        self._chain.send(position, row, 1, regime=Regime.NARROW)
        self._sent.append(token)


def text_drafter(prompt: Sequence[int], model: ModelDrafter | None) -> TextDrafter:
    """Return what drafts out of the text, which is read more strictly beside a draft model."""
    end = prompt[-TEXT_TOKENS_MAX:]
    return TextDrafter(end, MATCH_BEFORE_MODEL_TOKENS if model else MATCH_TOKENS)
