"""What roles need of an engine: ``llama.engine`` has llama.cpp's, tests bring their own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from p2pinfer.core.errors import EngineError
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sampling import Sampling


class EngineBusy(EngineError):
    """All of the engine's sessions are taken."""


class CannotCopy(EngineError):
    """The engine copies no cells of this session: what it runs cannot be traced, or is too long."""


class Superseded(EngineError):
    """Rows that were overwritten before their turn came, and so were not run."""

    def __init__(self, sentence: str = "rows of a later step took their place") -> None:
        super().__init__(sentence)


REFUSALS: Final = {
    kind.__name__: kind for kind in (EngineError, EngineBusy, CannotCopy, Superseded)
}
"""By their names, as an engine's process gives them."""


@dataclass(frozen=True)
class Decoded:
    """The result of a decode."""

    rows: bytes
    """The residual stream after the last layer, float32 little-endian, row by row."""
    decoding_us: int
    """Time spent in llama.cpp, without waiting; a batch counts whole for each of its sessions."""


Done = Callable[[Decoded | EngineError], None]
"""Takes a decode's result, or why it failed: the engine refused, or its process ended. It is called
as soon as that is known, without a pass through the scheduler; it must not raise."""


RowSteps = Mapping[tuple[int, str], bytes]
"""What each layer computed for one row: float32 little-endian, by the layer, counted from the
stage's first, and the step's name."""


class CellsCopy(Protocol):
    """A session's KV cells as they were at some time, to show what its layers computed."""

    @property
    def attention(self) -> str:
        """How V is kept and attention is computed, by its name in ``core.attention``."""
        ...

    async def read(self, layer: int, first: int, end: int) -> tuple[bytes, bytes]:
        """Return a layer's K and V rows at the positions ``first:end``, as the cache holds them.

        Layers are counted from the stage's first.

        Raises:
            EngineError: the copy has no such layer or positions, the engine failed, or its process
                has ended.
        """
        ...

    async def trace(self, position: int, row: bytes, *, regime: Regime) -> RowSteps:
        """Run one float32 row behind the positions before it, and return every layer's steps.

        The last one's output has the bits that the session's row had. Other sessions go on.

        Raises:
            EngineError: as ``read``.
        """
        ...

    def close(self) -> None:
        """Forget the copy; idempotent."""
        ...


class EngineSession(Protocol):
    """One session's KV cells in a stage."""

    def submit(self, position: int, rows: bytes, done: Done, *, regime: Regime) -> None:
        """Queue float32 rows at consecutive positions; cells from ``position`` on are dropped.

        A session's decodes run, and call ``done``, in the order of submission. Rows that still wait
        when others are submitted for their positions, or for earlier ones, need not run: ``done``
        is called with ``Superseded`` then, at any time. After ``close``, it is not called any more.

        Raises:
            EngineDied: the process that held the session's cells has ended.
        """
        ...

    async def inherit(self, parent: Any, length: int) -> None:
        """Begin with a copy of the first ``length`` positions of another session.

        It belongs to the same engine, and runs at least as many layers. The bits are the same as if
        the rows had been submitted here; where this fails, the session still holds nothing.

        Raises:
            EngineError: the other session does not hold so much, or is over; or memory ran out.
        """
        ...

    async def copy(self, positions: int) -> CellsCopy:
        """Copy the cells of the first positions, which must be decoded; the session may go on.

        An engine keeps one copy at a time, of one of its sessions.

        Raises:
            EngineBusy: there is another copy, or no room for one now.
            CannotCopy: its cells are never copied, or are too many.
            EngineError: it holds fewer positions, or the engine failed.
        """
        ...

    def close(self) -> None:
        """Free the cells; idempotent."""
        ...


@dataclass(frozen=True)
class Room:
    """Of what lengths an engine's sessions may be, in positions."""

    usual: int
    """What each session may hold."""
    longest: int = 0
    """One that was opened for more; 0 if none may be longer than usual."""
    shared: int = 0
    """What all sessions longer than usual hold together."""


class StageEngine(Protocol):
    """Runs the layers of one stage for several sessions, each up to a layer of its own.

    Rows enter only before the first layer; they may leave after any layer.
    """

    @property
    def first(self) -> int:
        """The first of the model's layers that it runs."""
        ...

    @property
    def end(self) -> int:
        """The layer after the last one it runs."""
        ...

    @property
    def width(self) -> int:
        """Numbers in a row."""
        ...

    @property
    def context(self) -> int:
        """Positions of the longest session."""
        ...

    @property
    def room(self) -> "Room":
        """Of which that is the longest."""
        ...

    @property
    def numerics_class(self) -> str:
        """Digest of the probe's outputs, which names its numerics class; see ``probe``."""
        ...

    @property
    def blocks(self) -> bool:
        """Whether it computes blocks exactly; if not, it takes only narrow and wide rows."""
        ...

    def open(self, end: int, context: int | None = None) -> EngineSession:
        """Reserve a session's cells in layers ``first`` up to but not including ``end``.

        Args:
            end: the layer after the last one that it runs.
            context: positions that it may hold; None for as many as usual.

        Raises:
            EngineBusy: no cells are free.
            EngineDied: the engine's process has ended.
        """
        ...


@dataclass(frozen=True)
class Candidate:
    """A token that could come next, and how likely the model considers it."""

    token: int
    piece: bytes
    """The bytes of text it stands for."""
    logprob: float | None
    """Natural logarithm of its probability: the logits' softmax, before any sampler. None of a
    prompt's first token, before which there is nothing."""


Scores = Sequence[tuple[Candidate, ...]]
"""Of each of some tokens: that token, then the likeliest ones in order."""


@dataclass(frozen=True)
class NextToken:
    """A sampled token, and the rows that continue from it."""

    token: int
    piece: bytes
    """The bytes of text it stands for."""
    is_end: bool
    """The model ends its answer here; there are no rows."""
    rows: bytes
    """The first end's rows for it; empty if it ends the answer, was drafted, or finds no room."""
    decoding_us: int
    candidates: tuple[Candidate, ...] = ()
    """The drawn token, then the likeliest ones in order; empty unless ``top_logprobs`` asks."""
    scores: Scores = ()
    """Of the tokens that were said to follow the rows."""


class EndsSession(Protocol):
    """One session's KV cells in the first and the last layers, and its sampler."""

    def start(self, sampling: Sampling, recent: list[int], said: Sequence[int] = ()) -> None:
        """Sample so from now on.

        Args:
            sampling: how.
            recent: the tokens that a penalty may look back on.
            said: the answer's tokens so far, which its grammar has taken already.
        """
        ...

    async def embed(self, position: int, tokens: list[int], *, regime: Regime) -> Decoded:
        """Run tokens through the embedding and the first layers."""
        ...

    async def absorb(self, position: int, rows: bytes, *, regime: Regime) -> int:
        """Run rows through the last layers only to fill their KV cache; return microseconds."""
        ...

    async def score(
        self, position: int, rows: bytes, following: list[int], *, regime: Regime
    ) -> Scores:
        """Absorb rows, and say of the token that follows each one how likely the model found it.

        As many of the likeliest are told as ``Sampling.prompt_logprobs`` asks for.
        """
        ...

    async def next(
        self,
        position: int,
        rows: bytes,
        *,
        regime: Regime,
        drafted: int | None = None,
        following: Sequence[int] = (),
    ) -> NextToken:
        """Run rows through the last layers and the head, and sample the token that follows.

        Args:
            position: of the first row.
            rows: float32 little-endian, at consecutive positions.
            regime: of all of them.
            drafted: a token that was embedded behind them already. Where it is drawn, the first
                layers keep what they hold, and the answer has no rows.
            following: tokens that follow the first rows, to be scored as by ``score``.
        """
        ...

    async def inherit(self, parent: Any, length: int) -> None:
        """Begin with a copy of another session's cells; as for ``EngineSession``."""
        ...

    def close(self) -> None:
        """Free the cells and the sampler; idempotent."""
        ...


class Ends(Protocol):
    """A requester's own part of the model."""

    @property
    def first(self) -> int:
        """The first layer that others must run."""
        ...

    @property
    def end(self) -> int:
        """The layer after the last one that others must run."""
        ...

    @property
    def width(self) -> int:
        """Numbers in a row."""
        ...

    @property
    def context(self) -> int:
        """Positions of the longest session."""
        ...

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        ...

    @property
    def blocks(self) -> bool:
        """As in ``StageEngine``."""
        ...

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return a text's tokens, after the vocabulary's opening tokens unless it has them."""
        ...

    def open(self, context: int | None = None) -> EndsSession:
        """Reserve a session's cells, usual ones or of a length; raises EngineBusy, EngineDied."""
        ...
