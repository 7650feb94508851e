"""A draft model that agrees with the simulated one as often as a scenario says.

What drafts, decides how far ahead, and sends is the code of real requesters; only the small model
itself is a stand-in. Each of its sessions agrees as often as was drawn for it, in tokens that the
text before them decides: so the same text is drafted the same way, however often it is read.
"""

from collections.abc import Callable, Sequence

import trio
from blake3 import blake3

from p2pinfer.core.regimes import Regime
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.base import Decoded, EngineBusy, NextToken, Scores
from sim.engine import Spend
from sim.model import MASK, ORIGIN, VirtualModel, link_of


class _DraftCells:
    """One session of the small model."""

    def __init__(self, ends: "VirtualDraftModel", agreement: float, salt: bytes) -> None:
        self._ends, self._closed = ends, False
        self._agreement, self._salt = agreement, salt
        self._links = [ORIGIN]

    def start(self, sampling: Sampling, recent: list[int], said: Sequence[int] = ()) -> None:
        """Sample: the likeliest token, always."""

    async def inherit(self, parent: "_DraftCells", length: int) -> None:
        """Begin with a copy of another session."""
        await trio.lowlevel.checkpoint()
        self._links = parent._links[: length + 1]

    async def embed(self, position: int, tokens: list[int], *, regime: Regime) -> Decoded:  # noqa: ARG002
        """Read tokens."""
        await self._ends.spend(len(tokens))
        self._read(position, tokens)
        return Decoded(bytes(len(tokens)), 0)

    async def absorb(self, position: int, rows: bytes, *, regime: Regime) -> int:  # noqa: ARG002
        """Have read tokens."""
        await trio.lowlevel.checkpoint()
        return 0

    async def score(
        self,
        position: int,
        rows: bytes,
        following: list[int],
        *,
        regime: Regime,
    ) -> Scores:
        """Know no likelihoods."""
        await self.absorb(position, rows, regime=regime)
        return [()] * len(following)

    async def next(
        self,
        position: int,
        rows: bytes,
        *,
        regime: Regime,  # noqa: ARG002
        drafted: int | None = None,  # noqa: ARG002
        following: Sequence[int] = (),  # noqa: ARG002
    ) -> NextToken:
        """Say what follows, rightly or not, and read it."""
        await self._ends.spend(1)
        after = position + len(rows)
        token = self._say(self._links[after])
        self._read(after, [token])
        return NextToken(token, b"", False, bytes(1), 0)

    def _read(self, position: int, tokens: Sequence[int]) -> None:
        assert position < len(self._links)
        del self._links[position + 1 :]
        for token in tokens:
            self._links.append(link_of(self._links[-1], token))

    def _say(self, link: int) -> int:
        """Return what follows, in an answer: all rows of one are narrow, however this one reads."""
        model, regime = self._ends.model, Regime.NARROW
        token = model.pick((link + model.sum(model.layers, regime=regime)) & MASK, regime)
        lot = blake3(self._salt + link.to_bytes(8, "little")).digest(8)
        agrees = int.from_bytes(lot, "little") < self._agreement * (MASK + 1)
        return token if agrees else 1 + token % (model.vocabulary - 1)

    def close(self) -> None:
        """Free the session; idempotent."""
        if not self._closed:
            self._closed = True
            self._ends.sessions -= 1


class VirtualDraftModel:
    """All layers of a small model, as ``Ends``, on its requester's machine.

    Args:
        model: what it imitates.
        agree: draws how often a session's tokens are the model's, from 0 to 1.
        row_s: that a token takes.
        context: positions of a session.
        sessions: at once.
        spend: lets that many seconds of work pass.
    """

    def __init__(
        self,
        model: VirtualModel,
        agree: Callable[[], float],
        row_s: float,
        *,
        context: int,
        sessions: int,
        spend: Spend = trio.sleep,
    ) -> None:
        self.model, self.context, self.vocabulary = model, context, model.vocabulary
        self.first = self.end = model.layers
        self.width, self.blocks, self.sessions = 1, True, 0
        self._agree, self._row_s, self._sessions_max = agree, row_s, sessions
        self._spend, self._opened = spend, 0

    async def spend(self, rows: int) -> None:
        """Take the time of a decode."""
        await self._spend(self._row_s * rows)

    async def tokenize(self, text: str, *, special: bool) -> list[int]:  # noqa: ARG002
        """Read no text: it is given the tokens of the model that it drafts for."""
        return []

    def open(self, context: int | None = None) -> _DraftCells:  # noqa: ARG002
        """Open a session; raises EngineBusy."""
        if self.sessions >= self._sessions_max:
            raise EngineBusy(f"all {self._sessions_max} sessions are taken")
        self.sessions += 1
        self._opened += 1
        return _DraftCells(self, self._agree(), self._opened.to_bytes(8, "little"))
