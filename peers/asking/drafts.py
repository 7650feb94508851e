"""Drafting ahead: rows of likely tokens go out before the tokens themselves are sampled.

A drafted token's row is an ordinary step of one row, sent behind the one that is awaited. What
comes back is sampled by the same sampler in the same order as without drafts; where it draws the
drafted token, the next row is under way already, and where it draws another one, the rows behind
are forgotten and overwritten. So no answer depends on drafts, whatever the sampler, and each stage
sees only what it sees of an answer that is stopped and goes on differently.

Butler et al., "PipeInfer: Accelerating LLM Inference using Asynchronous Pipelined Speculation",
SC 2024; drafts out of the text itself: Saxena, "Prompt Lookup Decoding", 2023.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from p2pinfer.core.limits import ROWS_IN_FLIGHT_MAX

DRAFTS_MAX = ROWS_IN_FLIGHT_MAX - 1
"""Under way at once, behind the row that is awaited."""

MATCH_TOKENS = 3
"""Tokens in a row that the text must hold twice before the next ones are taken for a draft."""

MATCH_BEFORE_MODEL_TOKENS = 8
"""The same where a draft model would draft too: it is right more often than a short match."""

TEXT_TOKENS_MAX = 16_384
"""Of a prompt, its end: what is drafted from is read when an answer begins, which takes 7 ms."""

COMPARED_TOKENS_MAX = 16
"""Before a place, to find the longest match."""

PLACES_MAX = 8
"""Where such tokens came before, the most recent ones: of these the longest match counts."""


def alike(one: Iterable[int], other: Iterable[int]) -> int:
    """Return how many tokens two texts have in common before they differ."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class TextDrafter:
    """Drafts what followed where the text ran as it does now for the longest stretch.

    ``match_tokens``: how long that must be at least.
    """

    def __init__(self, tokens: Iterable[int], match_tokens: int = MATCH_TOKENS) -> None:
        self._text: list[int] = []
        self._least = match_tokens
        self._followers: dict[tuple[int, ...], list[int]] = {}
        """Where the text went on after some tokens, the most recent place last."""
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Append a token to the text."""
        if len(self._text) >= MATCH_TOKENS:
            places = self._followers.setdefault(tuple(self._text[-MATCH_TOKENS:]), [])
            places.append(len(self._text))
            del places[:-PLACES_MAX]
        self._text.append(token)

    def draft(self, ahead: Sequence[int], most: int) -> list[int]:
        """Return up to ``most`` tokens that may follow the text and the drafts behind it."""
        recent = [*self._text[-COMPARED_TOKENS_MAX:], *ahead][-COMPARED_TOKENS_MAX:]
        places = self._followers.get(tuple(recent[-MATCH_TOKENS:]))
        if not places:
            return []
        length, at = max((self._alike(place, recent), place) for place in places)
        if length < self._least:
            return []
        source = [*self._text[at : at + most], *ahead]
        for number in range(most):  # a text that repeats itself is drafted out of its own draft
            source.append(source[number])
        return source[:most]

    def _alike(self, place: int, recent: Sequence[int]) -> int:
        """Return how many tokens before a place are the recent ones."""
        before = self._text[max(0, place - len(recent)) : place]
        return alike(reversed(before), reversed(recent))


@dataclass
class DraftCount:
    """What became of an answer's drafts."""

    kept: int = 0
    """Tokens that the sampler drew as drafted."""
    wrong: int = 0
    """Drafts in whose place it drew another token."""
    dropped: int = 0
    """Rows that the stages ran in vain: of these drafts, and of those behind them."""
