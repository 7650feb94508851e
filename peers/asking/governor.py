"""How far an answer drafts ahead: a row goes out while it is likely enough to be of use.

It is of use if its token and all before it are drawn as drafted. That chance must be a tenth, and
a tenth more for each row of others that waits at a stage of the route, or for two sessions that may
have one there: where stages are idle, a row in vain takes nobody's time, and where they are not, it
takes as many people's. Where none waits and links are long, less will do: one of use saves a trip.
"""

import math
from dataclasses import dataclass

from peers.asking.drafts import DRAFTS_MAX

OF_USE_MIN = 0.1
"""How likely the last of the drafts under way must be right, and all before it, where no others
wait. A tenth: where 7 of 10 drafts are right, 2.7 rows are run for each token."""

OF_USE_ROWS = 0.5
"""The same times the rows that find room on the route, where these are more than five."""

OF_USE_FAR_MIN = 0.04
"""On the longest links. Rows for a token are fewer than four then, too."""

RIGHT_ASSUMED = 0.5
"""Before any draft was right or wrong."""

ASSUMED_DRAFTS = 4.0
"""As many drafts count as much as that: after sixteen wrong ones there is a pause."""

RIGHT_FADE = 0.98
"""Per draft: how many are right by and large is an average over about the last fifty."""

LATELY_FADE = 0.8
"""And how many are right lately, over about the last five, since text changes."""

PAUSE_TOKENS_MIN = 4
PAUSE_TOKENS_MAX = 256
"""Between two tries while drafts are wrong, twice as many each time: at last one token in as many
waits behind a row in vain."""

PLAIN_TOKENS = 8
"""Made without drafts now and then: what drafts gain is measured against these."""

PLAIN_EVERY_TOKENS = 1_024
"""Of all answers of a requester, between two such measurements: they cost 1 % where a draft more
than halves the time of a token. While drafts do not pay each session begins with one."""

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

_FADE = 0.95
"""Per token: times are averages over about the last twenty, since load and text change."""


@dataclass
class _Mean:
    """An average that fades."""

    total: float = 0.0
    count: float = 0.0

    def add(self, value: float, fade: float = _FADE) -> None:
        self.total = fade * self.total + value
        self.count = fade * self.count + 1.0

    @property
    def value(self) -> float:
        return self.total / self.count


class DraftRecord:
    """What a requester's drafts have come to, over all of its answers."""

    def __init__(self) -> None:
        self._right = _Mean(RIGHT_ASSUMED * ASSUMED_DRAFTS, ASSUMED_DRAFTS)
        self._lately = RIGHT_ASSUMED
        self._kept = self._tokens = 0.0
        self.rested = 0
        """Tokens since a draft was right or wrong."""
        self.next_pause = PAUSE_TOKENS_MIN
        """Tokens to pause for at the next wrong draft, if hardly any is right."""
        self.since_plain = PLAIN_EVERY_TOKENS
        """Tokens drafted since drafts were last measured to pay."""

    @property
    def right(self) -> float:
        """The share of drafts that are right, by and large or lately, whichever is more."""
        return max(self._right.value, self._lately)

    @property
    def share(self) -> float:
        """Which share of its tokens set out before the token before was drawn, from 0 to 1.

        It falls where drafts are wrong, where none are found, and where they are held back.
        """
        return self._kept / max(self._tokens, SHARE_TOKENS / 4)

    def judge(self, *, is_right: bool) -> None:
        """Note whether a draft was what the sampler drew."""
        self.rested = 0
        self._right.add(is_right, RIGHT_FADE)
        self._lately = LATELY_FADE * self._lately + (1 - LATELY_FADE) * is_right

    def add(self, kept: int, tokens: int) -> None:
        """Count an answer's tokens, and those of them that were kept drafts."""
        fade = (1 - 1 / SHARE_TOKENS) ** tokens
        self._kept, self._tokens = fade * self._kept + kept, fade * self._tokens + tokens


class Governor:
    """How many tokens a session may draft ahead: by what became of those before, and their time.

    There are as many as may well be of use, and as the route holds. Where hardly any draft was
    right, and where tokens take longer with drafts than without, there is a pause.
    """

    def __init__(self, record: DraftRecord) -> None:
        self._record = record
        self._pause = PLAIN_TOKENS if record.since_plain >= PLAIN_EVERY_TOKENS else 0
        self._plain, self._drafting = _Mean(), _Mean()
        self._trip, self._slowest = _Mean(), _Mean()
        self.waiting = 0.0
        """Rows of other sessions that wait at a stage, or may."""

    @property
    def depth(self) -> int:
        """How many drafts may be under way at once."""
        right = max(self._record.right, OF_USE_MIN)  # after a pause one is tried
        of_use = OF_USE_MIN * (1 + self.waiting) if self.waiting else self._of_use_alone
        if self._pause:
            return 0
        if right < of_use:  # others' sessions stay open: else wrong drafts would end all, for ever
            return 1 if self._record.rested >= PAUSE_TOKENS_MAX else 0
        most = min(DRAFTS_MAX, self._room)
        if right**most >= of_use:
            return most
        return max(1, int(math.log(of_use) / math.log(right)))

    @property
    def _of_use_alone(self) -> float:
        """How likely a draft must be of use where no others wait."""
        if not self._trip.count:
            return OF_USE_MIN
        return min(OF_USE_MIN, max(OF_USE_FAR_MIN, OF_USE_ROWS / self._room))

    @property
    def _room(self) -> int:
        """How many rows find room on the route behind the one that is awaited.

        More would wait in front of its slowest stage, and the row after a wrong one behind them.
        """
        if not self._trip.count or self._trip.total >= DRAFTS_MAX * self._slowest.total:
            return DRAFTS_MAX
        return max(1, int(self._trip.total / self._slowest.total))

    def kept(self) -> None:
        """Note that a draft was what the sampler drew."""
        self._record.judge(is_right=True)
        self._record.next_pause = PAUSE_TOKENS_MIN

    def dropped(self) -> None:
        """Note that the sampler drew another token than the draft."""
        record = self._record
        record.judge(is_right=False)
        if record.right < OF_USE_MIN:
            self._pause = record.next_pause
            record.next_pause = min(2 * record.next_pause, PAUSE_TOKENS_MAX)

    def went(self, trip_s: float, slowest_s: float) -> None:
        """Note how long a row took that was no draft, and its slowest stage for it."""
        self._trip.add(trip_s)
        self._slowest.add(slowest_s)

    def took(self, seconds: float, *, drafting: bool) -> None:
        """Note how long a token took, and whether it was a draft or drafts were behind it."""
        record, plain = self._record, self._plain
        self._pause = max(0, self._pause - 1)
        if plain.count >= PLAIN_TOKENS / 2:
            seconds = min(seconds, HICCUP_TIMES * plain.value)
        if not drafting:
            record.rested += 1
            plain.add(seconds)
            return
        self._drafting.add(seconds)
        is_known = plain.count >= PLAIN_TOKENS / 2
        if is_known and self._drafting.count >= PLAIN_TOKENS:  # some wait for a trip, some hardly
            if self._drafting.value > SLOWER_MAX * plain.value:
                self._pause, self._drafting = SLOW_PAUSE_TOKENS, _Mean()
                record.since_plain = PLAIN_EVERY_TOKENS
                return
            if record.since_plain >= PLAIN_EVERY_TOKENS:
                record.since_plain = 0
        record.since_plain += 1
        if record.since_plain == PLAIN_EVERY_TOKENS:
            self._pause, self._plain = PLAIN_TOKENS, _Mean()
