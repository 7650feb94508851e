"""Drafting ahead: rows of likely tokens go out before the tokens themselves are sampled.

A drafted token's row is an ordinary step of one row, sent behind the one that is awaited. What
comes back is sampled by the same sampler in the same order as without drafts; where it draws the
drafted token, the next row is under way already, and where it draws another one, the rows behind
are forgotten and overwritten. So no answer depends on drafts, whatever the sampler, and each stage
sees only what it sees of an answer that is stopped and goes on differently.

Butler et al., "PipeInfer: Accelerating LLM Inference using Asynchronous Pipelined Speculation",
SC 2024; drafts out of the text itself: Saxena, "Prompt Lookup Decoding", 2023.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from p2pinfer.core.limits import STEPS_IN_FLIGHT_MAX

DRAFTS_MAX = STEPS_IN_FLIGHT_MAX - 1
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

PAUSE_TOKENS_MIN = 4
PAUSE_TOKENS_MAX = 256
"""Between two tries while each draft is wrong, twice as many each time: at last one token in as
many waits behind a row in vain."""

RIGHT_MIN = 0.25
"""Of the most recent drafts. Where fewer are right there is a pause."""

RIGHT_ASSUMED = 0.5
"""Before any draft was right or wrong; after four wrong ones it is too low."""

OF_USE_MIN = 0.1
"""How likely the last of the drafts under way must be right, and all before it."""

PLAIN_TOKENS = 8
"""Made without drafts when an answer begins, and again after ``PAUSE_TOKENS_MAX`` with
drafts: what drafts gain is measured against these."""

SLOW_PAUSE_TOKENS = 96
"""After drafts that do not pay: eight tokens that take a third longer are 3 % of what follows."""

SLOWER_MAX = 1.02
"""Times the plain time per token. Beyond it drafts do not pay: the machines are busy."""

HICCUP_TIMES = 4
"""Times the plain time per token: what takes longer counts as this. It is another session's prompt,
a lost packet or a stage replaced, and says nothing of drafts."""

LOOK_TOKENS = 16
"""Between two looks at what the stages advertise of their load."""

SHARE_TOKENS = 512
"""About as many of the most recent tokens say how many are drafted: some answers."""

_RIGHT_FADE = 0.8
"""Per draft: the share that is right is an average over about the last five."""

_FADE = 0.95
"""Per token: times are averages over about the last twenty, since load and text change."""


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
    dropped: int = 0
    """Rows that the stages ran in vain."""


class DraftedShare:
    """Which share of a requester's tokens set out as drafts before the token before was drawn.

    It falls where drafts are wrong, where none are found, and where the governor holds them back.
    """

    def __init__(self) -> None:
        self._kept = self._tokens = 0.0

    @property
    def value(self) -> float:
        """From 0 to 1, averaged over the most recent tokens; 0 before there are any."""
        return self._kept / max(self._tokens, SHARE_TOKENS / 4)

    def add(self, kept: int, tokens: int) -> None:
        """Count an answer's tokens, and those of them that were kept drafts."""
        fade = (1 - 1 / SHARE_TOKENS) ** tokens
        self._kept, self._tokens = fade * self._kept + kept, fade * self._tokens + tokens


@dataclass
class _Pace:
    """Seconds per token, an average that fades."""

    seconds: float = 0.0
    tokens: float = 0.0

    def add(self, seconds: float) -> None:
        self.seconds = _FADE * self.seconds + seconds
        self.tokens = _FADE * self.tokens + 1.0

    @property
    def each_s(self) -> float:
        return self.seconds / self.tokens


class Governor:
    """How many tokens an answer may draft ahead: by what became of those before, and their time.

    There are as many as may well be of use, by how often the most recent ones were right. Where
    hardly any was, and where tokens take longer with drafts than without, there is a pause.
    """

    def __init__(self) -> None:
        self._right, self._pause = RIGHT_ASSUMED, PLAIN_TOKENS
        self._next_pause = PAUSE_TOKENS_MIN
        self._since_plain = 0
        self._plain, self._drafting = _Pace(), _Pace()
        self.is_busy = False
        """Stages have other sessions' rows to run: those of drafts would only be in their way."""

    @property
    def depth(self) -> int:
        """How many drafts may be under way at once."""
        if self._pause or self.is_busy:
            return 0
        if self._right**DRAFTS_MAX >= OF_USE_MIN:
            return DRAFTS_MAX
        return max(1, int(math.log(OF_USE_MIN) / math.log(self._right)))

    def kept(self) -> None:
        """Note that a draft was what the sampler drew."""
        self._right = 1 - _RIGHT_FADE * (1 - self._right)
        self._next_pause = PAUSE_TOKENS_MIN

    def dropped(self) -> None:
        """Note that the sampler drew another token than the draft."""
        self._right *= _RIGHT_FADE
        if self._right < RIGHT_MIN:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, PAUSE_TOKENS_MAX)

    def took(self, seconds: float, *, drafting: bool) -> None:
        """Note how long a token took, and whether drafts were under way behind it."""
        self._pause = max(0, self._pause - 1)
        if self._plain.tokens >= PLAIN_TOKENS / 2:
            seconds = min(seconds, HICCUP_TIMES * self._plain.each_s)
        if not drafting:
            self._plain.add(seconds)
            self._since_plain = 0
            return
        self._drafting.add(seconds)
        self._since_plain += 1
        if self._since_plain >= PAUSE_TOKENS_MAX:
            self._pause, self._plain = PLAIN_TOKENS, _Pace()
        elif (
            self._plain.tokens >= PLAIN_TOKENS / 2
            and self._drafting.tokens >= PLAIN_TOKENS  # some wait for a trip, some hardly at all
            and self._drafting.each_s > SLOWER_MAX * self._plain.each_s
        ):
            self._pause, self._drafting = SLOW_PAUSE_TOKENS, _Pace()
