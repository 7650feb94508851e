"""What happened in a run, in plain values: for checks, reports and the digest that names it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange


@dataclass
class AskedQuestion:
    """One question of one requester, and its outcome."""

    number: int
    requester: int
    at_s: float
    prompt: int
    """Tokens."""
    wanted: int
    """Tokens of the answer."""
    tokens: int = 0
    attempts: int = 0
    first_s: float | None = None
    """Seconds until the first token."""
    done_s: float | None = None
    """Seconds until the answer was complete."""
    longest_gap_s: float = 0.0
    """Between two tokens."""
    outcome: str = "open"
    """``answered``; ``broken`` off; ``wrong``; ``nobody`` serves; ``refused``; ``open`` still."""
    why: str = ""
    stages: int = 0
    drafts_kept: int = 0
    """Tokens that were under way before the one before them was drawn."""
    drafts_dropped: int = 0
    """Rows that stages ran in vain."""
    is_last: bool = False
    """Asked in the calm at the end, when every question must be answered."""

    @property
    def tokens_per_s(self) -> float | None:
        """Speed after the first token."""
        if self.done_s is None or self.first_s is None or self.tokens <= 1:
            return None
        return (self.tokens - 1) / max(self.done_s - self.first_s, 1e-9)

    @property
    def tokens_per_trip(self) -> float | None:
        """Tokens after the first, for each that was awaited before the next one set out."""
        if self.tokens_per_s is None:
            return None
        after = self.tokens - 1
        return after / max(1, after - self.drafts_kept)


@dataclass(frozen=True)
class Violation:
    """Something that must never happen."""

    check: str
    at_s: float
    text: str


@dataclass
class Sample:
    """The network at one moment."""

    at_s: float
    peers: int
    least_holders: int
    """Of the layer served by the fewest peers."""
    sessions: int
    tokens: int
    """So far."""
    held: dict[int, LayerRange]
    """What each peer serves, by its number."""


@dataclass
class RunRecord:
    """Everything recorded about a run."""

    questions: list[AskedQuestion] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    caught_s: list[float] = field(default_factory=list)
    """When an audit blamed a peer that lies."""
    log: list[str] = field(default_factory=list)
    """Warnings logged by the roles."""
    _trace: Any = field(default_factory=blake3)

    def message(self, now_s: float, sender: PeerId, receiver: PeerId, message: bytes) -> None:
        """Add a message to the digest."""
        self._trace.update(
            b"%a %b %b %d;" % (now_s, sender[-8:].encode(), receiver[-8:].encode(), len(message))
        )

    def event(self, now_s: float, kind: str, *what: object) -> None:
        """Count an event, and add it to the digest."""
        self.events[kind] += 1
        self._trace.update(f"{now_s!r} {kind} {what!r};".encode())

    def violation(self, check: str, now_s: float, text: str) -> None:
        """Record that an invariant was violated."""
        self.violations.append(Violation(check, round(now_s, 3), text))

    @property
    def digest(self) -> str:
        """Name the run: two are the same if all messages and events were, at the same times."""
        return str(self._trace.copy().digest(16).hex())
