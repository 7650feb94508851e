"""What roles need of an engine; llama.cpp's is in ``stage`` and ``ends``, tests bring their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from p2pinfer.core.errors import EngineError
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sampling import Sampling


class EngineBusy(EngineError):
    """All of the engine's sessions are taken."""


@dataclass(frozen=True)
class Decoded:
    """What a decode gave."""

    rows: bytes
    """The residual stream behind the last layer, float32 little-endian, row by row."""
    decoding_us: int
    """Time spent in llama.cpp, without waiting; a batch counts whole for each of its sessions."""


Done = Callable[[Decoded | EngineError], None]
"""Takes what a decode gave, or why it failed: the engine refused, or its process ended. It is
called as soon as that is known, without a pass of the scheduler in between; it must not raise."""


class EngineSession(Protocol):
    """One session's KV cells in a stage."""

    def submit(self, position: int, rows: bytes, done: Done, *, regime: Regime) -> None:
        """Line up float32 rows at consecutive positions; what lies beyond ``position`` is dropped.

        Decodes of one session run, and are done, in the order of submission. After ``close`` none
        is done any more.

        Raises:
            EngineDied: the process that held the session's cells has ended.
        """
        ...

    def close(self) -> None:
        """Free the cells; idempotent."""
        ...


class StageEngine(Protocol):
    """Runs the layers of one stage for several sessions, each up to a layer of its own.

    Rows can go in only in front of the first layer; they may come out behind any.
    """

    @property
    def first(self) -> int:
        """The model's first layer that it runs."""
        ...

    @property
    def end(self) -> int:
        """The layer behind the last that it runs."""
        ...

    @property
    def width(self) -> int:
        """Numbers in a row."""
        ...

    @property
    def context(self) -> int:
        """Positions per session."""
        ...

    @property
    def numerics_class(self) -> str:
        """Digest of how it computes; see ``probe``."""
        ...

    @property
    def blocks(self) -> bool:
        """Whether it computes blocks exactly; if not, rows may come narrow and wide alone."""
        ...

    def open(self, end: int) -> EngineSession:
        """Reserve a session's cells in layers ``first`` up to but not including ``end``.

        Raises:
            EngineBusy, EngineDied: there are none to give.
        """
        ...


@dataclass(frozen=True)
class Candidate:
    """A token that could follow, and how likely the model finds it."""

    token: int
    piece: bytes
    """The bytes of text that it stands for."""
    logprob: float
    """Natural logarithm of its probability: the logits' softmax, before any sampler."""


@dataclass(frozen=True)
class NextToken:
    """A sampled token, and the rows that continue from it."""

    token: int
    piece: bytes
    """The bytes of text that it stands for."""
    is_end: bool
    """The model ends its answer here; there are no rows."""
    rows: bytes
    """The first end's rows for it; empty where it is the end, or the context is full."""
    decoding_us: int
    candidates: tuple[Candidate, ...] = ()
    """The drawn token, then the likeliest ones in order; nothing unless ``top_logprobs`` asks."""


class EndsSession(Protocol):
    """One session's KV cells in the first and the last layers, and its sampler."""

    def start(self, sampling: Sampling, recent: list[int]) -> None:
        """Sample so from now on; ``recent`` are the tokens that a penalty may look back on."""
        ...

    async def embed(self, position: int, tokens: list[int], *, regime: Regime) -> Decoded:
        """Run tokens through the embedding and the first layers."""
        ...

    async def absorb(self, position: int, rows: bytes, *, regime: Regime) -> int:
        """Run rows through the last layers for their KV cache alone; returns microseconds."""
        ...

    async def next(self, position: int, rows: bytes, *, regime: Regime) -> NextToken:
        """Run rows through the last layers and the head, and sample what follows the last one."""
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
        """The layer behind the last that others must run."""
        ...

    @property
    def width(self) -> int:
        """Numbers in a row."""
        ...

    @property
    def context(self) -> int:
        """Positions per session."""
        ...

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        ...

    @property
    def blocks(self) -> bool:
        """As of ``StageEngine``."""
        ...

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return a text's tokens, with what every text begins with in front unless it is there."""
        ...

    def open(self) -> EndsSession:
        """Reserve a session's cells; raises EngineBusy or EngineDied."""
        ...
